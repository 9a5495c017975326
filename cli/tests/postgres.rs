//! The supervisor of the embedded Postgres, with a real one.
//!
//! As root, Postgres runs as another user, and some of the tests are repeated in a process that is not root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use entrepot_cli::up::postgres::{Config, DEFAULT_USER, Error, Postgres, State};
use entrepot_test_support::wait_until_blocking;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);
/// The variable that makes this program supervise a Postgres in the given folder until its standard input ends.
const FOLDER: &str = "ENTREPOT_TEST_POSTGRES_FOLDER";

fn config(folder: &Path) -> Config {
    Config {
        folder: folder.to_owned(),
        user: DEFAULT_USER.to_owned(),
        path: std::env::var_os("PATH").unwrap_or_default(),
    }
}

/// A folder that others may pass through.
fn passable() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).unwrap();
    folder
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The pid that Postgres has written, if there is one.
fn postmaster(folder: &Path) -> Option<i32> {
    fs::read_to_string(folder.join("data/postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
}

fn kill(pid: i32) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
}

/// All processes that work in the folder, even those whose postmaster is gone.
fn processes(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))).collect()
}

/// The mode of the socket's folder: open to its owner, and to root by its group, so root needs no privilege.
fn passed_mode() -> u32 {
    if is_root() { 0o710 } else { 0o700 }
}

fn socket(connection: &str) -> PathBuf {
    let folder = connection.strip_prefix("host='").unwrap().split('\'').next().unwrap();
    Path::new(folder).join(".s.PGSQL.5432")
}

#[tokio::test]
async fn an_empty_folder_becomes_a_private_postgres_that_stops_with_its_supervisor() {
    let parent = passable();
    let folder = parent.path().join("postgres");
    let postgres = Postgres::start(config(&folder)).unwrap();
    postgres.settled(LIMIT).await.unwrap();
    let connection = postgres.connection().to_owned();

    UnixStream::connect(socket(&connection)).unwrap();
    for path in [&folder, &folder.join("data"), socket(&connection).parent().unwrap()] {
        let metadata = fs::metadata(path).unwrap();
        let mode = if path.ends_with("data") { 0o700 } else { passed_mode() };
        assert_eq!(metadata.mode() & 0o777, mode, "{}", path.display());
        assert_ne!(metadata.uid(), 0, "{}", path.display());
    }
    let pid_file = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
    assert_eq!(pid_file.lines().nth(5), Some(""), "no address is listened on");

    postgres.stop().await;
    assert_eq!((processes(&folder), postmaster(&folder)), (vec![], None));

    // The second start finds the same database.
    fs::write(folder.join("data/marker"), "").unwrap();
    let postgres = Postgres::start(config(&folder)).unwrap();
    postgres.settled(LIMIT).await.unwrap();
    assert_eq!(postgres.connection(), connection);
    assert!(folder.join("data/marker").exists());
    postgres.stop().await;
}

#[tokio::test]
async fn a_postgres_that_dies_is_started_again() {
    let parent = passable();
    let folder = parent.path().join("postgres");
    let postgres = Postgres::start(config(&folder)).unwrap();
    postgres.settled(LIMIT).await.unwrap();
    let first = postmaster(&folder).unwrap();

    let mut state = postgres.state();
    state.mark_unchanged();
    kill(first);
    tokio::time::timeout(LIMIT, state.wait_for(|state| matches!(state, State::Down(_)))).await.unwrap().unwrap();
    tokio::time::timeout(LIMIT, state.wait_for(|state| matches!(state, State::Ready))).await.unwrap().unwrap();
    assert_ne!(postmaster(&folder).unwrap(), first);
    postgres.stop().await;
}

#[tokio::test]
async fn an_initdb_that_was_cut_off_is_done_again() {
    let parent = passable();
    let folder = parent.path().join("postgres");
    let mut supervisor = supervise(&folder, None);
    wait_until_blocking(LIMIT, "initdb is at work", || folder.join("data.new/PG_VERSION").exists());
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    wait_until_blocking(LIMIT, "initdb ends with its parent", || processes(&folder).is_empty());
    assert!(!folder.join("data").exists());

    let postgres = Postgres::start(config(&folder)).unwrap();
    postgres.settled(LIMIT).await.unwrap();
    assert!(!folder.join("data.new").exists());
    postgres.stop().await;
}

#[test]
fn kill_9_of_the_supervisor_leaves_no_postgres_and_the_next_start_recovers() {
    let parent = passable();
    let folder = parent.path().join("postgres");
    for _ in 0..2 {
        let mut supervisor = supervise(&folder, None);
        wait_until_blocking(LIMIT, "Postgres is up", || {
            postmaster(&folder).is_some() && !processes(&folder).is_empty()
        });
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        wait_until_blocking(LIMIT, "Postgres ends with its parent", || processes(&folder).is_empty());
    }
}

#[test]
fn the_end_of_the_supervisor_is_waited_for() {
    let parent = passable();
    let folder = parent.path().join("postgres");
    let mut supervisor = supervise(&folder, None);
    wait_until_ready(&mut supervisor);
    drop(supervisor.stdin.take());
    assert!(supervisor.wait().unwrap().success());
    assert!(processes(&folder).is_empty());
}

#[tokio::test]
async fn a_pid_file_whose_number_is_somebody_elses_by_now_does_not_hinder() {
    let parent = passable();
    let folder = parent.path().join("postgres");
    let postgres = Postgres::start(config(&folder)).unwrap();
    postgres.settled(LIMIT).await.unwrap();
    let pid_file = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
    postgres.stop().await;

    let owner = fs::metadata(&folder).unwrap();
    let mut other = command_as(is_root().then_some((owner.uid(), owner.gid())), "sleep");
    let mut other = other.arg("600").spawn().unwrap();
    let (_, rest) = pid_file.split_once('\n').unwrap();
    let stale = folder.join("data/postmaster.pid");
    fs::write(&stale, format!("{}\n{rest}", other.id())).unwrap();
    chown(&stale, Some(owner.uid()), Some(owner.gid())).unwrap();

    let postgres = Postgres::start(config(&folder)).unwrap();
    postgres.settled(LIMIT).await.unwrap();
    assert!(other.try_wait().unwrap().is_none(), "the other process is left alone");
    postgres.stop().await;
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn data_of_another_major_version_is_refused_with_the_remedy() {
    let parent = passable();
    let folder = parent.path().join("postgres");
    fs::create_dir_all(folder.join("data")).unwrap();
    fs::write(folder.join("data/PG_VERSION"), "9\n").unwrap();
    let postgres = Postgres::start(config(&folder)).unwrap();
    let text = postgres.settled(LIMIT).await.unwrap_err().to_string();
    assert!(text.contains("made by PostgreSQL 9,") && text.contains("pg_upgrade"), "{text}");
    postgres.stop().await;
}

#[tokio::test]
async fn a_path_that_is_too_long_for_a_socket_gets_a_shorter_one() {
    let parent = passable();
    let long = parent.path().join("l".repeat(120));
    fs::create_dir(&long).unwrap();
    let folder = long.join("postgres");
    for _ in 0..2 {
        let postgres = Postgres::start(config(&folder)).unwrap();
        postgres.settled(LIMIT).await.unwrap();
        let socket = socket(postgres.connection());
        assert_eq!(fs::read_link(folder.join("socket")).unwrap(), socket.parent().unwrap());
        assert_eq!(fs::metadata(socket.parent().unwrap()).unwrap().mode() & 0o777, passed_mode());
        UnixStream::connect(socket).unwrap();
        postgres.stop().await;
    }
    fs::remove_dir(fs::read_link(folder.join("socket")).unwrap()).unwrap();
}

#[tokio::test]
async fn a_folder_that_the_user_cannot_enter_is_named() {
    if !is_root() {
        return;
    }
    let parent = passable();
    let barred = parent.path().join("barred");
    fs::create_dir(&barred).unwrap();
    fs::set_permissions(&barred, Permissions::from_mode(0o700)).unwrap();
    let postgres = Postgres::start(config(&barred.join("postgres"))).unwrap();
    let error = postgres.settled(LIMIT).await.unwrap_err();
    assert!(matches!(&error, Error::Barred { folder, .. } if *folder == barred), "{error}");
    assert!(error.to_string().contains(&format!("chmod o+x {}", barred.display())), "{error}");
    postgres.stop().await;
}

#[tokio::test]
async fn a_missing_user_and_a_missing_postgres_name_what_to_install() {
    let parent = passable();
    let folder = parent.path().join("postgres");
    if is_root() {
        let config = Config { user: "entrepot-nobody-has-this-name".to_owned(), ..config(&folder) };
        let postgres = Postgres::start(config).unwrap();
        let text = postgres.settled(LIMIT).await.unwrap_err().to_string();
        assert!(text.contains("apt-get install postgresql") && text.contains("--postgres-user"), "{text}");
        postgres.stop().await;
    }
    assert!(Error::NotInstalled.to_string().contains("apt-get install postgresql"));
}

#[test]
fn who_is_not_root_runs_it_as_themselves() {
    if !is_root() {
        return;
    }
    let nobody = 65534;
    let parent = passable();
    let home = parent.path().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(nobody), Some(nobody)).unwrap();
    // The program itself may be in a folder that others cannot enter.
    let program = parent.path().join("supervisor");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let folder = home.join("postgres");

    let mut supervisor = supervise(&folder, Some((program, nobody)));
    wait_until_ready(&mut supervisor);
    assert_eq!(fs::metadata(folder.join("data")).unwrap().uid(), nobody);
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    wait_until_blocking(LIMIT, "Postgres ends with its parent", || processes(&folder).is_empty());
}

/// A separate process that keeps a Postgres running.
fn supervise(folder: &Path, other: Option<(PathBuf, u32)>) -> Child {
    let program = other.as_ref().map_or_else(|| std::env::current_exe().unwrap(), |(program, _)| program.clone());
    command_as(other.map(|(_, uid)| (uid, uid)), program)
        .args(["--ignored", "--exact", "supervisor", "--nocapture"])
        .env(FOLDER, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn command_as(ids: Option<(u32, u32)>, program: impl Into<OsString>) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(program.into());
    if let Some((uid, gid)) = ids {
        command.uid(uid).gid(gid).current_dir("/");
    }
    command
}

fn wait_until_ready(supervisor: &mut Child) {
    let mut seen = vec![];
    let mut out = supervisor.stdout.take().unwrap();
    while !seen.ends_with(b"supervisor is ready\n") {
        let mut byte = [0];
        assert_eq!(out.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    supervisor.stdout = Some(out);
}

#[tokio::test]
#[ignore = "a part of other tests, which run it as a process of its own"]
async fn supervisor() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let postgres = Postgres::start(config(Path::new(&folder))).unwrap();
    postgres.settled(LIMIT).await.unwrap();
    println!("supervisor is ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut vec![])).await.unwrap().unwrap();
    postgres.stop().await;
}
