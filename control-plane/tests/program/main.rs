//! The program as an operator runs it: a configuration file, a bucket, Postgres over TLS, signals, probes.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers too")]

mod replica;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use entrepot_proto::v1 as pb;
use entrepot_proto::v1::rules_client::RulesClient;
use entrepot_test_support::program::{probe, try_run};
use entrepot_test_support::{OtlpCollector, wait_until};
use tonic::Code;

use replica::{LIMIT, Place, Replica};

/// How often the first answer after a start is checked, since a wrong one would be visible only for a moment.
const STARTS: usize = 20;

#[tokio::test]
async fn a_control_plane_runs_over_tls_from_start_to_signal() {
    let Some(place) = Place::new().await else { return };
    let key_file = place.folder.path().join("first-key");
    let extra = format!("first_key_file = \"{}\"", key_file.display());
    let replica = Replica::new(&place, "one", &[("api", &extra)]);
    replica.program.start();
    replica.until_ready().await;

    let key = std::fs::read_to_string(&key_file).unwrap();
    assert_eq!(std::fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o600);
    let mut rules = RulesClient::with_interceptor(replica.channel(), replica::login(key.trim_end()));
    assert!(rules.list_rules(pb::ListRulesRequest::default()).await.unwrap().into_inner().rules.is_empty());
    wait_until(LIMIT, "the pool's session and the listener's are encrypted", async || {
        let encrypted = place.encrypted_sessions().await;
        assert!(encrypted.iter().all(|is| *is), "{encrypted:?}");
        encrypted.len() >= 2
    })
    .await;
    let call = [
        r#"rpc_method="entrepot.v1.Rules/ListRules""#,
        r#"rpc_response_status_code="OK""#,
        r#"rpc_system_name="grpc""#,
    ];
    // A call is counted after its answer, and a pass after readiness.
    for (name, labels) in [
        ("rpc_server_call_duration_seconds_count", &call[..]),
        ("db_client_connection_count", &[]),
        ("db_client_connection_max", &[]),
        ("entrepot_snapshot_revision", &[]),
        ("entrepot_pass_duration_seconds_count", &[r#"outcome="done""#]),
    ] {
        wait_until(LIMIT, name, async || {
            probe(replica.operations, "/metrics").await.unwrap().metric(name, labels) > 0.0
        })
        .await;
    }

    // After a restart it finds its administrator, and leaves the file alone.
    assert_eq!(replica.program.stop().await.code(), Some(0));
    std::fs::remove_file(&key_file).unwrap();
    replica.program.start();
    replica.until_ready().await;
    assert!(!key_file.exists());
    assert_eq!(replica.program.stop().await.code(), Some(0));
    let log = replica.program.log();
    let secret = key.trim_end().split_once(':').unwrap().1;
    for (what, secret) in [("first key", secret), ("database password", replica::PASSWORD)] {
        assert!(!log.contains(secret), "the {what} is in the log");
    }
    assert!(log.contains("first-key"), "the search finds what is there");
}

#[tokio::test]
async fn two_that_start_at_once_on_an_empty_database_become_ready() {
    let Some(place) = Place::new().await else { return };
    let files = ["one", "two"].map(|name| place.folder.path().join(format!("key-{name}")));
    let [one, two] = [0, 1].map(|i| {
        let extra = format!("first_key_file = \"{}\"", files[i].display());
        Replica::new(&place, ["one", "two"][i], &[("api", &extra)])
    });
    one.program.start();
    two.program.start();
    tokio::join!(one.until_ready(), two.until_ready());
    assert_eq!(files.iter().filter(|file| file.exists()).count(), 1);
}

#[tokio::test]
async fn a_bucket_that_is_away_is_waited_for_while_probes_are_answered() {
    let Some(seaweed) = entrepot_test_support::Seaweed::start().await else { return };
    let place = Place::with(&seaweed).await;
    let replica = Replica::new(&place, "one", &[]).with_admin();
    seaweed.stop().await;
    // It never claims, not even for a moment, that it waits for nothing.
    for _ in 0..STARTS {
        replica.program.start();
        let first = async {
            loop {
                if let Ok(probed) = probe(replica.operations, "/readyz").await {
                    return probed.status;
                }
            }
        };
        assert_eq!(tokio::time::timeout(LIMIT, first).await.unwrap(), 503);
        replica.program.kill().await;
    }
    replica.program.start();
    wait_until(LIMIT, "it says what it waits for", async || {
        let probed = probe(replica.operations, "/readyz").await;
        probed.is_ok_and(|probed| probed.status == 503 && probed.text.contains("store"))
    })
    .await;
    assert_eq!(probe(replica.operations, "/livez").await.unwrap().status, 200);
    seaweed.resume().await;
    replica.until_ready().await;
}

#[tokio::test]
async fn without_postgres_it_stays_ready_for_nodes_and_tells_operators() {
    let Some(place) = Place::new().await else { return };
    let replica = Replica::new(&place, "one", &[]).with_admin();
    replica.program.start();
    replica.until_ready().await;
    place.postgres.kill().await;
    let mut rules = RulesClient::with_interceptor(replica.channel(), replica::login(replica::ADMIN));
    let error = rules.list_rules(pb::ListRulesRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(probe(replica.operations, "/readyz").await.unwrap().status, 200);
    place.postgres.resume().await;
    wait_until(LIMIT, "calls are answered again", async || {
        rules.list_rules(pb::ListRulesRequest::default()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_database_that_somebody_else_pretends_to_be_gets_no_password() {
    let Some(place) = Place::new().await else { return };
    let other = place.folder.path().join("other-ca.pem");
    std::fs::write(&other, entrepot_test_support::tls::Authority::new().pem()).unwrap();
    let replica = Replica::new(&place, "one", &[]).with_admin();
    replica.program.set_env("ENTREPOT__POSTGRES__CA_FILE", Some(other.to_str().unwrap()));
    replica.program.start();
    replica.program.until_logged(0, "certificate").await;
    assert_eq!(probe(replica.operations, "/readyz").await.unwrap().status, 503);
    replica.program.kill().await;
    replica.program.set_env("ENTREPOT__POSTGRES__CA_FILE", None);
    replica.program.start();
    replica.until_ready().await;
}

#[tokio::test]
async fn a_start_that_needs_a_first_key_ends_with_one_line_that_says_how() {
    let Some(place) = Place::new().await else { return };
    let replica = Replica::new(&place, "one", &[]);
    replica.program.start();
    assert_eq!(replica.program.ended().await.code(), Some(1));
    let log = replica.program.log();
    let last = log.lines().last().unwrap();
    for part in ["ENTREPOT_BOOTSTRAP_KEY=", "ENTREPOT_BOOTSTRAP_KEY_FILE", "api.first_key_file"] {
        assert!(last.contains(part), "{log}");
    }
}

#[tokio::test]
async fn all_mistakes_are_told_at_once_and_no_secret_with_them() {
    let Some(place) = Place::new().await else { return };
    let file = place.folder.path().join("wrong.toml");
    let text = "[api]\nlisten = \"0.0.0.0:5001\"\ncolour = \"red\"\n\
                [postgres]\nurl = \"mysql://me:hunter22@db/x\"\npool_size = \"many\"\n\
                [keys]\ncluster_key_file = \"/nowhere\"\n[redis]\nurls = [\"redis://x\"]\n[nodes]\n";
    std::fs::write(&file, text).unwrap();
    let program = replica::program();
    let (status, _, said) = try_run(&program, &["--check", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(status.code(), Some(2), "{said}");
    for part in [
        "api.listen: 0.0.0.0:5001 is not loopback",
        "allow_plain_api",
        "tls_certificate_file",
        "api.colour: unknown key",
        "postgres.pool_size",
        "keys.cluster_key_file",
        "store.kind",
        "[nodes]",
    ] {
        assert!(said.contains(part), "{part} in:\n{said}");
    }
    assert!(!said.contains("redis") && !said.contains("hunter22"), "{said}");
    let (status, _, said) = try_run(&program, &["--check"], &[("ENTREPOT_BOOTSTRAP_KEY", "admin:short")]);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("ENTREPOT_BOOTSTRAP_KEY: ") && !said.contains("admin:short"), "{said}");

    let replica = Replica::new(&place, "right", &[]);
    let (status, _, said) = try_run(&program, &["--check", "--config", replica.config.to_str().unwrap()], &[]);
    assert_eq!(status.code(), Some(0), "{said}");
}

#[tokio::test]
async fn a_call_is_a_span_of_its_callers_trace() {
    let Some(place) = Place::new().await else { return };
    let collector = OtlpCollector::start().await;
    let telemetry = format!("otlp_endpoint = \"{}\"\notlp_interval = \"200ms\"", collector.url());
    let replica = Replica::new(&place, "one", &[("telemetry", &telemetry)]).with_admin();
    replica.program.start();
    replica.until_ready().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut rules = RulesClient::with_interceptor(replica.channel(), replica::login(replica::ADMIN));
    let mut request = tonic::Request::new(pb::GetRuleRequest { name: "rules/nothing".into() });
    request.metadata_mut().insert("traceparent", format!("00-{trace}-00f067aa0ba902b7-01").parse().unwrap());
    assert_eq!(rules.get_rule(request).await.unwrap_err().code(), Code::NotFound);
    wait_until(Duration::from_secs(30), "the span arrives", async || !collector.trace(trace).is_empty()).await;
    let spans = collector.trace(trace);
    let span =
        spans.iter().find(|span| span.name == "entrepot.v1.Rules/GetRule").unwrap_or_else(|| panic!("{spans:?}"));
    assert_eq!(span.parent_id, "00f067aa0ba902b7", "{span:?}");
    assert_eq!(span.attributes.get("rpc.response.status_code").map(String::as_str), Some("NOT_FOUND"), "{span:?}");
    assert_eq!(span.attributes.get("rpc.system.name").map(String::as_str), Some("grpc"), "{span:?}");
}
