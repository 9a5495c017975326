//! `entrepot up` as users run it: both planes, the embedded Postgres, and the output that scripts rely on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;

use entrepot_test_support::wait_until_blocking;

#[path = "shared/registry.rs"]
mod registry;

use registry::{KEY, LIMIT, Registry, entrepot, passable, processes_in, up};

#[test]
fn the_lines_that_scripts_rely_on_work_as_written() {
    let folder = passable();
    let data = folder.path().join("data");
    let registry = Registry::start_as(up(&data, Some(KEY)).args(["--largest-blob", "8GiB", "--damaged-kept", "30d"]));

    registry.text(
        "entrepot upstream create local --kind oci --endpoint http://127.0.0.1:5100 --allow-plain-http --allow-private-addresses",
    );
    registry.text("entrepot rule create demo --upstream local");
    let explained = registry.text("entrepot rule explain demo/team/app:v1");
    assert!(explained.contains("http://127.0.0.1:5100/v2/team/app/manifests/v1"), "{explained}");
    let password = registry.text("entrepot login-password");
    assert_eq!(password.trim().split('.').count(), 3, "the token and nothing else");
    assert_eq!(registry.text("entrepot repository list --output json"), "{\"repositories\":[]}\n");
    assert_eq!(registry.text("entrepot damaged list --output json"), "{\"damaged_objects\":[]}\n");

    let rule = registry.json("entrepot rule get rules/demo --output json");
    assert_eq!((&rule["prefix"], &rule["upstream"]), (&"demo".into(), &"upstreams/local".into()));
    assert_eq!(registry.json("entrepot upstream list -o json")["upstreams"][0]["kind"], "OCI");
    assert!(registry.text("entrepot rule list").starts_with("RULE  PREFIX  UPSTREAM"));
    registry.text(
        "entrepot rule update demo --window 12h --mode background --max-stale 7d --immutable-tag v* --tag-window latest=5m",
    );
    let shown = registry.text("entrepot rule get demo");
    for part in ["12h", "background", "v*", "latest=5m", "7d", "keep"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let explained = registry.json("entrepot rule explain demo/team/app:latest -o json");
    assert_eq!((&explained["window"], &explained["tag_pattern"]), (&"300s".into(), &"latest".into()), "{explained}");
    let explained = registry.text("entrepot rule explain demo/team/app:v1");
    assert!(explained.contains("never asked about it again, since it matches `v*`"), "{explained}");
    registry.text("entrepot rule update demo --upstream-prefix mirror");
    assert_eq!(registry.json("entrepot rule get demo -o json")["upstream_prefix"], "mirror");
    assert_eq!(registry.text("entrepot rule delete demo"), "deleted rules/demo\n");
    assert_eq!(registry.text("entrepot upstream delete local"), "deleted upstreams/local\n");
    registry.stop();
}

#[test]
fn templates_are_made_shown_tried_out_and_refused() {
    let folder = passable();
    let registry = Registry::start(&folder.path().join("data"), Some(KEY));
    registry.text("entrepot upstream create local --kind oci --endpoint http://127.0.0.1:5100 --allow-plain-http --allow-private-addresses");
    registry.text("entrepot rule create demo --upstream local");
    registry.text(
        "entrepot template create teams --prefix demo/team --tag-mutability immutable-with-exclusion --exclude latest \
         --resource-tag team=web",
    );
    let dry_run = registry.text("entrepot rule explain demo/team/app:v1");
    for part in ["demo/team/app (would be created)", "teams", "immutable but latest tags; team=web"] {
        assert!(dry_run.contains(part), "{part}: {dry_run}");
    }
    let json = registry.json("entrepot rule explain demo/team/app:v1 -o json");
    assert_eq!(
        (&json["template"], &json["created"]["template"]),
        (&"templates/teams".into(), &"templates/teams".into())
    );
    assert!(registry.text("entrepot template list").starts_with("TEMPLATE  PREFIX"));
    registry.text("entrepot template update teams --description teams'");
    assert_eq!(registry.json("entrepot template get teams -o json")["description"], "teams'");
    let refused = registry.run("entrepot template create bad --tag-mutability immutable --exclude v*");
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("template.image_tag_mutability_exclusion_filters: "), "{text}");
    assert_eq!(registry.text("entrepot template delete teams"), "deleted templates/teams\n");
    registry.stop();
}

#[test]
fn what_nodes_do_and_why_they_answered_so_is_told() {
    let folder = passable();
    let registry = Registry::start(&folder.path().join("data"), Some(KEY));
    // The node's connection to the API may take a moment.
    let fills = || registry.run("entrepot fills --once").status.success();
    wait_until_blocking(LIMIT, "the node can be asked", fills);
    assert_eq!(registry.text("entrepot fills --once --output json"), "{\"fills\":[]}\n");
    registry.text(
        "entrepot upstream create hub --kind docker-hub --budget 5000/1d --fallback-endpoint https://mirror.example",
    );
    // Its snapshot may take a moment, too.
    let is_healthy = || registry.text("entrepot upstream list").contains("healthy");
    wait_until_blocking(LIMIT, "the node reports the upstream's health", is_healthy);
    assert!(registry.text("entrepot upstream list").contains("5000 of 5000/24h"));
    let shown = registry.text("entrepot upstream get hub");
    for part in ["https://mirror.example", "5000/24h", "ENDPOINT IN USE", "healthy"] {
        assert!(shown.contains(part), "{shown}");
    }
    let health = &registry.json("entrepot upstream get hub --output json")["health"];
    assert_eq!(health["nodes"][0]["endpoints"].as_array().map(Vec::len), Some(2), "{health}");
    let wrong = registry.run("entrepot upstream update hub --budget lots");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("5000/1d"), "{wrong:?}");

    let mut watch = entrepot();
    watch.args(["fills", "--output", "json"]).env("ENTREPOT_API", registry.told("API")).env("ENTREPOT_KEY", KEY);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        assert_eq!(lines.next().unwrap().unwrap(), "{\"fills\":[],\"silent_nodes\":[]}");
    }
    drop(lines);
    assert!(watch.wait().unwrap().success(), "it ends when nobody reads");

    let mut stream = TcpStream::connect(registry.told("registry")).unwrap();
    let request = "GET /v2/demo/app/manifests/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let id = answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
    let why = registry.text(&format!("entrepot why {id}"));
    assert!(why.starts_with("It was refused with status 401:\n  - log in first"), "{why}");
    assert!(why.contains("demo/app") && why.contains(id), "{why}");
    let why = registry.json(&format!("entrepot why answers/{id} --output json"));
    assert_eq!((&why["http_status"], &why["reference"]), (&401.into(), &"v1".into()));
    let forgotten = registry.run(&format!("entrepot why {}{}", &id[..id.len() - 8], "0".repeat(8)));
    assert_eq!(forgotten.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&forgotten.stderr).contains("10,000"), "{forgotten:?}");
    registry.stop();
}

#[test]
fn refusals_say_what_to_do() {
    let folder = passable();
    let registry = Registry::start(&folder.path().join("data"), Some(KEY));
    let refused = |line: &str, key: &str| {
        let output = registry.run_as(line, key);
        assert_eq!(output.status.code(), Some(1), "{line}");
        String::from_utf8(output.stderr).unwrap()
    };
    let text = refused("entrepot rule list", "admin:wrong-secret");
    assert!(text.starts_with("error: ") && text.contains("ENTREPOT_KEY"), "{text}");
    let text = refused("entrepot rule create Demo_1 --upstream nowhere --prefix UPPER/case", KEY);
    assert!(text.contains("\n  rule_id: ") && text.contains("\n  rule.prefix: "), "{text}");
    let text = refused("entrepot rule get nothing", KEY);
    assert!(text.contains("nothing"), "{text}");

    registry.text("entrepot principal create ci --permission-set puller");
    let key = registry.text("entrepot access-key create ci");
    let text = refused("entrepot upstream list", key.trim());
    assert!(text.contains("administrator"), "{text}");
    let key_id = key.split(':').next().unwrap();
    registry.text(&format!("entrepot access-key revoke ci/{key_id}"));
    assert!(registry.text("entrepot access-key list ci").contains("revoked"));
    registry.stop();
}

#[test]
fn a_first_key_is_made_in_a_file_and_never_printed_and_stopping_leaves_nothing_running() {
    let folder = passable();
    let data = folder.path().join("data");
    let registry = Registry::start(&data, None);
    let file = data.join("first-key");
    assert_eq!(registry.told("first key"), format!("cat {}", file.display()));
    let key = fs::read_to_string(&file).unwrap().trim().to_owned();
    assert!(registry.welcome.iter().all(|line| !line.contains(&key)), "{:?}", registry.welcome);
    assert!(registry.run_as("entrepot rule list", &key).status.success());
    let probe = format!("{}/readyz", registry.told("operations"));
    assert!(entrepot().args(["health", "--url", &probe]).status().unwrap().success());

    let postgres = if rustix::process::geteuid().is_root() { 0o710 } else { 0o700 };
    for (name, mode) in [
        ("cluster.key", 0o600),
        ("first-key", 0o600),
        ("snapshot.key", 0o600),
        ("store", 0o700),
        ("postgres", postgres),
    ] {
        assert_eq!(fs::metadata(data.join(name)).unwrap().mode() & 0o777, mode, "{name}");
    }
    let second = up(&data, None).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process"), "{second:?}");
    registry.stop();
    assert_eq!(processes_in(&data), 0);
    let restored = entrepot().args(["admin", "restore", "--data-dir"]).arg(&data).output().unwrap();
    let said = String::from_utf8_lossy(&restored.stderr).into_owned();
    assert!(restored.status.success() && said.contains("the database was not behind"), "{said}");
    assert_eq!(processes_in(&data), 0);

    fs::remove_file(&file).unwrap();
    let registry = Registry::start(&data, None);
    assert!(registry.told("first key").contains("not in"), "{:?}", registry.welcome);
    assert!(registry.run_as("entrepot rule list", &key).status.success());
    registry.stop();
}

#[test]
fn it_comes_back_after_kill_9_and_serves_pulls_without_postgres() {
    let folder = passable();
    let data = folder.path().join("data");
    let registry = Registry::start(&data, Some(KEY));
    registry.text("entrepot upstream create quay --kind quay");
    registry.kill();

    let registry = Registry::start(&data, Some(KEY));
    assert!(registry.text("entrepot upstream list").contains("quay"));
    registry.stop();

    // The database cannot be started, but the registry starts from the published snapshot.
    let (database, away) = (data.join("postgres/data"), data.join("postgres/data.away"));
    fs::rename(&database, &away).unwrap();
    fs::create_dir(&database).unwrap();
    fs::write(database.join("PG_VERSION"), "9\n").unwrap();
    let probe = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut process = up(&data, Some(KEY)).args(["--operations-listen", &probe]).stdout(Stdio::null()).spawn().unwrap();
    let url = format!("http://{probe}/readyz");
    wait_until_blocking(LIMIT, "it is ready without Postgres", || {
        entrepot().args(["health", "--url", &url]).stderr(Stdio::null()).status().unwrap().success()
    });
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_taken_port_and_clear_text_for_others_are_refused_before_anything_is_made() {
    let folder = passable();
    let data = folder.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for (flag, addr, code, parts) in [
        ("--registry-listen", addr.as_str(), 1, [addr.as_str(), "--registry-listen"]),
        ("--api-listen", "0.0.0.0:5001", 2, ["clear-text gRPC", "--allow-plain-api"]),
        ("--registry-listen", "0.0.0.0:5000", 2, ["clear-text registry", "--allow-plain-registry"]),
        ("--registry-listen", "[::]:5000", 2, ["clear-text registry", "--allow-plain-registry"]),
        ("--largest-blob", "8", 2, ["--largest-blob", "8MiB"]),
    ] {
        let output = up(&data, None).args([flag, addr]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    assert!(!data.exists());
}

#[test]
fn a_first_start_without_postgres_names_what_to_install() {
    let folder = passable();
    let data = folder.path().join("data");
    fs::create_dir_all(data.join("postgres/data")).unwrap();
    fs::write(data.join("postgres/data/PG_VERSION"), "9\n").unwrap();
    let output = up(&data, None).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("\nerror: the database in") && text.contains("made by PostgreSQL 9,"), "{text}");
}
