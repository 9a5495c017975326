//! The ways in which a program can be told to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use entrepot_test_support::wait_until;
use rustix::process::{Signal as Kill, getpid, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

use super::*;
use crate::LogFormat;
use crate::telemetry::Config;

const LIMIT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(3600);

/// A signal reaches every program in this process, so only one test runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

async fn program() -> (Program, MutexGuard<'static, ()>) {
    let alone = ONE_AT_A_TIME.lock().await;
    let config = Config {
        service: "entrepot-test",
        instance: "1".to_owned(),
        log_format: LogFormat::Text,
        log_filter: "info".to_owned(),
        otlp: None,
    };
    (Program::assemble(Telemetry::unheard(&config).unwrap()).unwrap(), alone)
}

fn send(signal: Kill) {
    kill_process(getpid(), signal).unwrap();
}

fn is(code: ExitCode, number: u8) -> bool {
    format!("{code:?}") == format!("{:?}", ExitCode::from(number))
}

#[tokio::test]
async fn a_program_says_that_it_is_not_ready_long_before_it_stops() {
    let (program, _alone) = program().await;
    let (health, stopping) = (program.health(), program.tasks().stopping());
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "operations.listen", None).unwrap();
    let addr = listener.local_addr().unwrap();
    program.serve_operations(listener).await;
    let serving = stopping.clone();
    let run = program.run(Drain { notice: LONG, limit: LONG }, async move {
        serving.cancelled().await;
        Ok::<(), io::Error>(())
    });
    let operator = async {
        assert!(health.is_ready());
        send(Kill::TERM);
        wait_until(LIMIT, "it is not ready", async || !health.is_ready()).await;
        // It keeps serving, and answers probes.
        assert!(!stopping.is_cancelled());
        let mut probe = TcpStream::connect(addr).await.unwrap();
        probe.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        probe.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("draining"), "{answer}");
        assert!(!stopping.is_cancelled());
        send(Kill::INT);
    };
    let (code, ()) = tokio::join!(run, operator);
    assert!(stopping.is_cancelled() && is(code, 0));
}

#[tokio::test]
async fn a_program_that_is_not_ready_gives_no_notice() {
    let (program, _alone) = program().await;
    let (stopping, _store) = (program.tasks().stopping(), program.health().condition("store"));
    let run = program.run(Drain { notice: LONG, limit: LONG }, async move {
        stopping.cancelled().await;
        Ok::<(), io::Error>(())
    });
    let both = async { tokio::join!(run, async { send(Kill::TERM) }) };
    let (code, ()) = tokio::time::timeout(LIMIT, both).await.unwrap();
    assert!(is(code, 0));
}

#[tokio::test]
async fn open_work_is_waited_for_until_another_signal() {
    let (program, _alone) = program().await;
    let (tasks, stopping) = (program.tasks(), program.tasks().stopping());
    tasks.spawn("stubborn", std::future::pending());
    let ended = Arc::new(AtomicBool::new(false));
    let run = async {
        let work = std::future::pending::<Result<(), io::Error>>();
        let code = program.run(Drain { notice: Duration::ZERO, limit: LONG }, work).await;
        ended.store(true, Ordering::Relaxed);
        code
    };
    let operator = async {
        send(Kill::TERM);
        stopping.cancelled().await;
        assert!(!ended.load(Ordering::Relaxed));
        send(Kill::TERM);
    };
    let (code, ()) = tokio::time::timeout(LIMIT, async { tokio::join!(run, operator) }).await.unwrap();
    assert!(is(code, 0));
}

#[tokio::test]
async fn open_work_is_waited_for_within_its_limit() {
    let (program, _alone) = program().await;
    program.tasks().spawn("stubborn", std::future::pending());
    let drain = Drain { notice: Duration::ZERO, limit: Duration::from_millis(50) };
    let run = program.run(drain, std::future::pending::<Result<(), io::Error>>());
    let (code, ()) =
        tokio::time::timeout(LIMIT, async { tokio::join!(run, async { send(Kill::TERM) }) }).await.unwrap();
    assert!(is(code, 0));
}

#[tokio::test]
async fn work_that_ends_by_itself_is_a_failure() {
    for outcome in [Err(io::Error::other("the socket is gone")), Ok(())] {
        let (program, _alone) = program().await;
        let stopping = program.tasks().stopping();
        let told = stopping.clone();
        program.tasks().spawn("orderly", async move { told.cancelled().await });
        let code = program.run(Drain { notice: LONG, limit: LONG }, std::future::ready(outcome)).await;
        assert!(stopping.is_cancelled() && is(code, 1));
    }
}

#[tokio::test]
async fn work_that_fails_while_it_ends_is_a_failure_too() {
    let (program, _alone) = program().await;
    let stopping = program.tasks().stopping();
    let run = program.run(Drain { notice: Duration::ZERO, limit: LONG }, async move {
        stopping.cancelled().await;
        Err(io::Error::other("the last write failed"))
    });
    let (code, ()) = tokio::join!(run, async { send(Kill::TERM) });
    assert!(is(code, 1));
}

#[test]
fn a_refused_configuration_has_an_exit_code_of_its_own() {
    let problems = crate::config::Reader::load(Some(std::path::Path::new("/nowhere")), []).unwrap_err();
    assert!(is(refused(&problems), 2));
}
