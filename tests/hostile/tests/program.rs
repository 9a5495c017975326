//! The program itself, with a plain client.

use std::time::Duration;

use entrepot_test_support::{Program, images, wait_until};
use reqwest::{Client, Response};
use serde_json::Value;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

/// The running program.
struct Hostile {
    program: Program,
    client: Client,
    _dir: TempDir,
}

impl Hostile {
    /// Starts it, and waits until it has printed `lines` lines.
    async fn start(arguments: &[&str], lines: usize) -> Self {
        let dir = TempDir::new().expect("a folder can be made");
        let program = Program::new("hostile-upstream", env!("CARGO_BIN_EXE_hostile-upstream"), dir.path());
        let program = arguments
            .iter()
            .fold(program.arg("--listen").arg("127.0.0.1:0"), |program, argument| program.arg(argument));
        program.start();
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
        let client = client.expect("a client can be made");
        let hostile = Self { program, client, _dir: dir };
        wait_until(LIMIT, "it says what it has", async || {
            assert!(hostile.program.is_running(), "{}", hostile.program.log());
            hostile.lines().len() >= lines
        })
        .await;
        hostile
    }

    fn lines(&self) -> Vec<Value> {
        let log = self.program.log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }

    fn url(&self, origin: &str) -> String {
        self.lines()[0][origin].as_str().expect("an address").to_owned()
    }

    async fn get(&self, path: &str) -> reqwest::Result<Response> {
        self.client.get(format!("{}{path}", self.url("url"))).send().await
    }

    async fn body(&self, path: &str) -> reqwest::Result<Vec<u8>> {
        Ok(self.get(path).await?.bytes().await?.to_vec())
    }
}

#[tokio::test]
async fn it_serves_what_its_seed_makes_plays_its_faults_and_counts() {
    let hostile = Hostile::start(
        &[
            "--seed",
            "7",
            "--image",
            "demo/app:v1=200KiBx2",
            "--image",
            "demo/many:v1=1000x1@linux/amd64,linux/arm64",
            "--fault",
            "GET /v2/demo/app/blobs/=reset-after:70000*1",
            "--fault",
            "manifests/v1=status:429:7*1",
        ],
        3,
    )
    .await;
    let said = hostile.lines();
    let layer = said[1]["layers"][0]["digest"].as_str().unwrap().to_owned();
    assert_eq!(
        (said[1]["image"].as_str(), layer.clone()),
        (Some("demo/app:v1"), images::sha256(&images::random_bytes(7, 200 << 10)))
    );
    assert_eq!(
        (said[2]["image"].as_str(), said[2]["children"].as_array().map(Vec::len)),
        (Some("demo/many:v1"), Some(2))
    );

    let throttled = hostile.get("/v2/demo/app/manifests/v1").await.unwrap();
    assert_eq!((throttled.status().as_u16(), throttled.headers()["retry-after"].as_bytes()), (429, &b"7"[..]));
    let manifest = hostile.body("/v2/demo/app/manifests/v1").await.unwrap();
    assert_eq!(Some(images::sha256(&manifest).as_str()), said[1]["manifest"].as_str());
    let path = format!("/v2/demo/app/blobs/{layer}");
    assert!(hostile.body(&path).await.is_err(), "the connection is reset");
    assert_eq!(images::sha256(&hostile.body(&path).await.unwrap()), layer);

    let counted: Value = serde_json::from_slice(&hostile.body("/_requests").await.unwrap()).unwrap();
    let blob = &counted["paths"][format!("GET {path}")];
    assert_eq!((blob["requests"].as_u64(), blob["statuses"]["200"].as_u64()), (Some(2), Some(2)));
    let bytes = blob["bytes"].as_u64().unwrap();
    assert!((200 << 10..(200 << 10) + 70_001).contains(&bytes), "{bytes}");

    assert!(hostile.program.stop().await.success());
    let end = hostile.lines().pop().unwrap();
    assert_eq!(end["requests"]["paths"], counted["paths"]);
    assert_eq!(end["private"]["connections"], 0);
}

#[tokio::test]
async fn redirects_lead_to_its_other_origins_which_see_who_comes() {
    let hostile = Hostile::start(
        &[
            "--image",
            "app:v1=1000x1",
            "--fault",
            "GET /v2/app/blobs/=redirect-elsewhere*1",
            "--fault",
            "GET /v2/app/blobs/=redirect-private*1",
            "--fault",
            "manifests/=redirect-loop",
        ],
        2,
    )
    .await;
    let layer = hostile.lines()[1]["layers"][0]["digest"].as_str().unwrap().to_owned();
    let path = format!("/v2/app/blobs/{layer}");
    // Both faults apply to the same request; the later one decides where it leads.
    let location = |response: &Response| response.headers()["location"].to_str().unwrap().to_owned();
    let first = hostile.get(&path).await.unwrap();
    assert_eq!(location(&first), format!("{}{path}", hostile.url("private")));
    let looped = hostile.get("/v2/app/manifests/v1").await.unwrap();
    assert_eq!((looped.status().as_u16(), location(&looped).as_str()), (307, "?again"));

    let elsewhere = format!("{}{path}", hostile.url("elsewhere"));
    let got = hostile.client.get(&elsewhere).send().await.unwrap();
    assert_eq!(images::sha256(&got.bytes().await.unwrap()), layer);
    let trapped = hostile.client.get(&elsewhere).bearer_auth("secret").send().await.unwrap();
    assert_eq!(trapped.status(), 400);
    assert!(hostile.program.stop().await.success());
    let end = hostile.lines().pop().unwrap();
    assert_eq!(end["elsewhere"]["paths"][format!("GET {path}")]["with_authorization"], 1);
}

#[tokio::test]
async fn its_seed_decides_the_same_faults_again() {
    let statuses = async || {
        let hostile = Hostile::start(&["--seed", "3", "--chaos", "50", "--image", "app:v1=1000x1"], 2).await;
        let mut seen = Vec::new();
        for _ in 0..12 {
            // Some answers never arrive, or not completely.
            let answer = tokio::time::timeout(Duration::from_secs(3), hostile.body("/v2/app/manifests/v1")).await;
            seen.push(answer.ok().and_then(Result::ok).map(|bytes| images::sha256(&bytes)));
        }
        assert!(hostile.program.stop().await.success());
        seen
    };
    let first = statuses().await;
    assert_eq!(first, statuses().await);
    let different: std::collections::HashSet<_> = first.iter().collect();
    assert!(different.len() > 1, "some go wrong, and some do not: {first:?}");
}
