//! The steps on the way to an upstream.

use entrepot_domain::Upstream;
use entrepot_test_support::tls::Authority;
use entrepot_test_support::{Auth, FakeUpstream, Fault};
use entrepot_upstream::{Client, ProbeKind, ProbeState, ProbeStep};

use crate::{client, name, reference, short, upstream_at, upstream_with_credential};

use ProbeKind::{Manifest, Name, Tcp, Tls, Token};
use ProbeState::{Failed, Passed, Skipped};

async fn probe(client: &Client) -> Vec<ProbeStep> {
    let (repository, tag) = (name("demo"), reference("v1"));
    let steps = client.probe(Some((&repository, &tag))).await;
    assert_eq!(steps.iter().map(|step| step.kind).collect::<Vec<_>>(), [Name, Tcp, Tls, Token, Manifest]);
    steps
}

/// The step that failed, and what it says; those behind it must have been skipped.
fn failure(steps: &[ProbeStep]) -> (ProbeKind, &str) {
    let at = steps.iter().position(|step| step.state == Failed).unwrap_or_else(|| panic!("no failure in {steps:?}"));
    assert!(steps[at + 1..].iter().all(|step| step.state == Skipped), "{steps:?}");
    (steps[at].kind, &steps[at].message)
}

#[tokio::test]
async fn every_step_passes_with_an_upstream_that_works() {
    let authority = Authority::new();
    let fake = FakeUpstream::start_tls(&authority).await;
    fake.set_auth(Auth::Token("puller".into(), "pass-word-1".into()));
    let image = fake.publish_image("demo", "v1", &[]);
    let upstream = Upstream { ca_certificates: authority.pem(), ..upstream_with_credential(&fake.url()) };
    let steps = probe(&client(&upstream)).await;
    assert!(steps.iter().all(|step| step.state == Passed), "{steps:?}");
    assert!(steps[3].message.contains("credential"), "{steps:?}");
    assert!(steps[4].message.contains(&image.manifest), "{steps:?}");
}

#[tokio::test]
async fn plain_http_has_no_tls_and_without_a_sample_there_is_no_manifest() {
    let fake = FakeUpstream::start().await;
    let states: Vec<_> =
        client(&upstream_at(&fake.url())).probe(None).await.into_iter().map(|step| step.state).collect();
    assert_eq!(states, [Passed, Passed, Skipped, Passed, Skipped]);
}

#[tokio::test]
async fn each_failure_names_its_step_and_a_remedy() {
    let fake = FakeUpstream::start().await;
    let mut upstream = upstream_at(&fake.url());

    let steps = probe(&client(&upstream)).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Manifest && message.contains("no `demo:v1`"), "{message}");

    fake.set_auth(Auth::Token("puller".into(), "another".into()));
    let steps = probe(&client(&upstream)).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Token && message.contains("give the upstream a credential"), "{message}");

    let steps = probe(&client(&upstream_with_credential(&fake.url()))).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Token && message.contains("check its user name and password"), "{message}");

    upstream.allow_private_addresses = false;
    let steps = probe(&client(&upstream)).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Name && message.contains("allow_private_addresses"), "{message}");

    fake.stop().await;
    let steps = probe(&client(&upstream_at(&fake.url()))).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Tcp && message.contains("refused"), "{message}");
}

#[tokio::test]
async fn names_and_certificates_that_do_not_work_are_told() {
    let url = format!("https://{}.invalid", "x".repeat(64));
    let steps = probe(&client(&upstream_at(&url))).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Name && message.contains("spelling"), "{message}");

    let fake = FakeUpstream::start_tls(&Authority::new()).await;
    let steps = probe(&client(&upstream_at(&fake.url()))).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Tls && message.contains("ca_certificates"), "{message}");

    let plain = FakeUpstream::start().await;
    let steps = probe(&client(&upstream_at(&plain.url().replace("http", "https")))).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Tls && message.contains("plain HTTP"), "{message}");
}

#[tokio::test]
async fn a_probe_ends_though_the_upstream_says_nothing() {
    let fake = FakeUpstream::start().await;
    fake.script("HEAD ", Fault::Silence);
    let steps = probe(&Client::new(&upstream_at(&fake.url()), short()).unwrap()).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Token && message.contains("too long"), "{message}");
}
