//! The listener for operators and probes, with `/livez`, `/readyz` and `/metrics`.

use std::fmt::Write;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tracing::debug;

use crate::listen::{Accepted, Bounds};
use crate::{Health, Listener, Metrics, Tasks, chain};

/// How long a client may take to send a request's head, and how long an idle connection is kept.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// How many connections are served at once; further ones wait.
const CONNECTION_LIMIT: usize = 64;

/// Serves on `listener` in tasks of `tasks`, until they are told to stop.
pub async fn serve(listener: impl Into<Listener>, health: Health, metrics: Metrics, tasks: &Tasks) {
    let listener = listener.into();
    let router = router(health, metrics);
    let inner = tasks.clone();
    tasks.spawn("operations", async move {
        let stopping = inner.stopping();
        let converse = |accepted, _| {
            let (router, stopping) = (router.clone(), stopping.clone());
            async move {
                stopping.run_until_cancelled(converse(accepted, router)).await;
            }
        };
        listener.serve("operations.connection", Bounds::new(CONNECTION_LIMIT), &inner, converse).await;
    });
}

fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz).with_state(health))
        .route("/metrics", get(render).with_state(metrics))
}

/// 200 with one line per remark, or 503 with one line per condition that does not hold.
async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let failing = health.not_ready();
    if failing.is_empty() {
        let mut lines = "ready\n".to_owned();
        for (name, remark) in health.remarks() {
            let _ = writeln!(lines, "{name}: {remark}");
        }
        return (StatusCode::OK, lines);
    }
    let mut lines = String::new();
    for (name, why) in failing {
        let _ = writeln!(lines, "{name}: {why}");
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

async fn render(State(metrics): State<Metrics>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

async fn converse(accepted: Accepted, router: Router) {
    let stream = match accepted.handshake().await {
        Ok(stream) => stream,
        Err(error) => return debug!("an operations connection did not begin: {}", chain(&error)),
    };
    // No connection is closed to make room: there are few, and each is a probe's.
    let _asking = stream.visit().ask();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        debug!("an operations connection ended early: {}", chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use entrepot_test_support::tls::Authority;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::tls::{Alpn, Tls};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_see_life_readiness_and_metrics() {
        let (tasks, health, metrics) = (Tasks::new(), Health::new(), Metrics::new("entrepot-test"));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "operations.listen", None).unwrap();
        let addr = listener.local_addr().unwrap();
        let store = health.condition("store");
        metrics.meter("test").u64_counter("entrepot.test").build().add(1, &[]);
        serve(listener, health.clone(), metrics, &tasks).await;

        assert!(get(addr, "/livez").await.starts_with("HTTP/1.1 200"));
        let answer = get(addr, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("store: starting\n"), "{answer}");
        store.ready();
        assert!(get(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
        store.ready_but("nearly full");
        assert!(get(addr, "/readyz").await.ends_with("ready\nstore: nearly full\n"));
        assert!(get(addr, "/metrics").await.contains("entrepot_test_total"));
        assert!(get(addr, "/").await.starts_with("HTTP/1.1 404"));

        // An idle connection does not delay the end.
        let _idle = TcpStream::connect(addr).await.unwrap();
        assert!(tasks.drain(Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn probes_can_come_over_tls() {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let (certificate, key) = authority.certificate_for(&["127.0.0.1"]);
        let (certificate_file, key_file) = (folder.path().join("crt"), folder.path().join("key"));
        std::fs::write(&certificate_file, certificate).unwrap();
        std::fs::write(&key_file, key).unwrap();
        let tls = Tls::load(certificate_file, key_file, Alpn::Http1).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "operations.listen", Some(tls)).unwrap();
        let addr = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        serve(listener, Health::new(), Metrics::new("entrepot-test"), &tasks).await;

        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(tasks.drain(Duration::from_secs(10)).await);
    }
}
