//! Tests of the fixture, with a real Postgres.

use std::time::Duration;

use entrepot_test_support::{Postgres, wait_until};
use tokio_postgres::NoTls;

/// Runs a statement that returns one text.
async fn ask(url: &str, sql: &str) -> Result<String, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let answered = async {
        let row = client.query_one(sql, &[]).await;
        drop(client);
        row.map(|row| row.get(0))
    };
    tokio::join!(answered, connection).0
}

#[tokio::test]
async fn every_test_has_a_database_of_its_own() {
    let postgres = Postgres::shared().await;
    let (one, other) = tokio::join!(postgres.database(), postgres.database());
    assert_ne!(one, other);
    let make = "CREATE TABLE t AS SELECT 'made' AS x";
    let (client, connection) = tokio_postgres::connect(&one, NoTls).await.unwrap();
    let made = async {
        client.batch_execute(make).await.unwrap();
        drop(client);
    };
    tokio::join!(made, connection).1.unwrap();
    assert_eq!(ask(&one, "SELECT x FROM t").await.unwrap(), "made");
    assert!(ask(&other, "SELECT x FROM t").await.is_err());
}

#[tokio::test]
async fn a_database_is_copied_from_a_template() {
    let postgres = Postgres::shared().await;
    let template = postgres.template("filled").await;
    let (client, connection) = tokio_postgres::connect(&template, NoTls).await.unwrap();
    let filled = async {
        client.batch_execute("CREATE TABLE t AS SELECT 'copied' AS x").await.unwrap();
        drop(client);
    };
    tokio::join!(filled, connection).1.unwrap();
    let copy = postgres.database_from("filled").await;
    assert_eq!(ask(&copy, "SELECT x FROM t").await.unwrap(), "copied");
}

#[tokio::test]
async fn one_that_was_stopped_or_killed_comes_back_with_its_data() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    for kill in [false, true] {
        if kill {
            postgres.kill().await
        } else {
            postgres.stop().await
        }
        assert!(ask(&url, "SELECT current_database()::text").await.is_err());
        postgres.resume().await;
        assert!(ask(&url, "SELECT current_database()::text").await.unwrap().starts_with("test_"));
    }
    let folder = postgres.socket_folder();
    drop(postgres);
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_process_that_is_killed_leaves_nothing_behind() {
    // This test runs itself in a second process, which starts a Postgres, prints its address, and waits to be killed.
    const NAME: &str = "a_process_that_is_killed_leaves_nothing_behind";
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--nocapture") && arguments.iter().any(|argument| argument == NAME) {
        let postgres = Postgres::start().await;
        println!("\nfolder={}", postgres.socket_folder().display());
        std::future::pending::<()>().await;
    }
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let folder = loop {
        let line = lines.next_line().await.unwrap().expect("the second process says where its Postgres is");
        if let Some(folder) = line.strip_prefix("folder=") {
            break std::path::PathBuf::from(folder);
        }
    };
    assert!(folder.join("data/postmaster.pid").exists());
    child.kill().await.unwrap();
    wait_until(Duration::from_secs(20), "the folder is gone", async || !folder.exists()).await;
}
