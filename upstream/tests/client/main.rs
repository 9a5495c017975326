//! The client against a scripted registry over real HTTP.

mod budgets;
mod content;
mod egress;
mod fallbacks;
mod login;
mod probe;
mod referrers;
mod tags;
mod troubles;

use std::net::SocketAddr;
use std::time::Duration;

use entrepot_domain::upstream::{Credential, Endpoint, PlainHttp};
use entrepot_domain::{Digest, Reference, RepositoryName, Secret, Upstream, UpstreamKind};
use entrepot_test_support::FakeUpstream;
use entrepot_upstream::{Client, Error, Limits};

/// An upstream at `url` that may be at a private address.
fn upstream_at(url: &str) -> Upstream {
    Upstream {
        uid: uuid::Uuid::from_u128(1),
        id: "fake".parse().expect("an id"),
        kind: UpstreamKind::Oci,
        endpoint: Endpoint::parse(url, PlainHttp::Allowed).expect("an endpoint"),
        allow_private_addresses: true,
        allow_hosts: Vec::new(),
        ca_certificates: String::new(),
        credential: None,
        budget: None,
        fallback_endpoints: Vec::new(),
        revision: 1,
    }
}

/// An upstream at `url` with a credential.
fn upstream_with_credential(url: &str) -> Upstream {
    let credential = Credential { username: "puller".into(), password: Secret::new("pass-word-1".into()) };
    Upstream { credential: Some(credential), ..upstream_at(url) }
}

/// Limits that are short enough for tests of what takes too long.
fn short() -> Limits {
    Limits {
        connect: Duration::from_millis(300),
        head: Duration::from_millis(300),
        token: Duration::from_millis(300),
        stall: Duration::from_millis(300),
        retry_wait: Duration::from_millis(1),
        ..Limits::default()
    }
}

fn client(upstream: &Upstream) -> Client {
    let limits = Limits { retry_wait: Duration::from_millis(1), ..Limits::default() };
    Client::new(upstream, limits).expect("a client")
}

fn client_of(fake: &FakeUpstream) -> Client {
    client(&upstream_at(&fake.url()))
}

fn name(text: &str) -> RepositoryName {
    text.parse().expect("a name")
}

fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}

fn digest(text: &str) -> Digest {
    text.parse().expect("a digest")
}

/// Reads a blob to its end.
async fn read_blob(client: &Client, repository: &str, blob: &str) -> Result<Vec<u8>, Error> {
    use futures_util::TryStreamExt;
    let body = client.blob(&name(repository), &digest(blob)).await?;
    body.stream
        .try_fold(Vec::new(), async |mut all, chunk| {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await
}

/// A listener at another loopback address that counts who connects to it.
struct Canary {
    address: SocketAddr,
    listener: std::net::TcpListener,
}

impl Canary {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.9:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket can be told not to block");
        Self { address: listener.local_addr().expect("an address"), listener }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Panics if anybody has connected. A connection that was made is in the queue by then.
    fn assert_untouched(&self) {
        let error = self.listener.accept().expect_err("nobody connects to the canary");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}
