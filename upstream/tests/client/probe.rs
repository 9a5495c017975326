//! The steps towards a pull from an upstream.

use entrepot_domain::Upstream;
use entrepot_test_support::tls::Authority;
use entrepot_test_support::{Auth, FakeUpstream, Fault};
use entrepot_upstream::{Client, ProbeKind, ProbeState, ProbeStep};

use crate::{REGISTRY, client, name, reference, short, upstream_at, upstream_with_credential};

use ProbeKind::{Manifest, Name, Tcp, Tls, Token};
use ProbeState::{Failed, Passed, Skipped};

async fn probe(client: &Client) -> Vec<ProbeStep> {
    let (repository, tag) = (name("demo"), reference("v1"));
    let steps = client.probe(Some((&repository, &tag))).await;
    assert_eq!(steps.iter().map(|step| step.kind).collect::<Vec<_>>(), [Name, Tcp, Tls, Token, Manifest]);
    steps
}

/// The failed step and its message; all later steps must have been skipped.
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
    let steps = probe(&Client::new(&upstream_at(&fake.url()), REGISTRY, short()).unwrap()).await;
    let (kind, message) = failure(&steps);
    assert!(kind == Token && message.contains("too long"), "{message}");
}

#[tokio::test]
async fn what_does_not_answer_as_a_registry_does_is_none() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    let client = client(&upstream_at(&fake.url()));
    for (fault, why) in [
        (Fault::Html, "a web page"),
        (Fault::Status(404, None), "status 404"),
        (Fault::Status(403, None), "status 403"),
        (Fault::Status(401, None), "does not say which"),
        (Fault::Redirect(302, format!("{}/sign-in", fake.url())), "status 404"),
    ] {
        for sample in [true, false] {
            fake.script("GET /v2/", fault.clone());
            let (repository, tag) = (name("demo"), reference("v1"));
            let steps = client.probe(sample.then_some((&repository, &tag))).await;
            fake.heal();
            let (kind, message) = failure(&steps);
            assert!(kind == Token && message.contains("is no registry") && message.contains(why), "{message}");
        }
    }
    // A page that identifies itself as a registry's, and a registry that does not identify itself.
    fake.script_times("GET /v2/", Fault::Html, 1);
    fake.script_times("GET /v2/", Fault::Header("docker-distribution-api-version".into(), "registry/2.0".into()), 1);
    assert!(probe(&client).await.iter().all(|step| step.state != Failed));
    fake.script("GET /v2/demo/manifests/", Fault::Status(508, None));
    fake.script("HEAD ", Fault::Status(508, None));
    let steps = probe(&client).await;
    assert!(failure(&steps).1.contains("leads back to this registry"), "{steps:?}");
}

#[tokio::test]
async fn a_manifest_that_is_known_by_get_alone_is_there() {
    let fake = FakeUpstream::start().await;
    fake.publish_image("demo", "v1", &[]);
    fake.script("HEAD ", Fault::Status(404, None));
    let steps = probe(&client(&upstream_at(&fake.url()))).await;
    assert!(steps.iter().all(|step| step.state != Failed), "{steps:?}");
}

#[tokio::test]
async fn where_the_realm_is_elsewhere_the_line_that_lets_it_have_the_credential_is_told() {
    let (fake, other) = (FakeUpstream::start().await, FakeUpstream::start_at(([127, 0, 0, 2], 0).into()).await);
    fake.set_auth(Auth::Token("puller".into(), "pass-word-1".into()));
    fake.set_realm(format!("{}/token", other.url()));
    fake.publish_image("demo", "v1", &[]);
    let mut upstream = upstream_with_credential(&fake.url());
    upstream.allow_hosts = vec!["cdn.example".parse().unwrap()];
    let steps = client(&upstream).probe(None).await;
    let (kind, message) = failure(&steps);
    let line = format!("`entrepot upstream update fake --allow-host cdn.example --allow-host {}`", other.address());
    assert!(kind == Token && message.ends_with(&line), "{message}");
}
