//! The listener and its connections.

use std::sync::Arc;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Core;
use super::answer::answer;
use super::wire::{HardEnd, Wire};

/// Serves until the set is shut down or dropped, which closes the listener and every connection.
pub(super) fn start(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, core: Arc<Core>) -> JoinSet<()> {
    let tls = tls.map(TlsAcceptor::from);
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            core.log.connected();
            connections.spawn(connection(stream, tls.clone(), core.clone()));
            while connections.try_join_next().is_some() {}
        }
    });
    server
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, core: Arc<Core>) {
    // Without it a small body waits for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let (wire, hard) = Wire::new(stream);
    match tls {
        None => speak(wire, core, hard).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(wire).await {
                speak(stream, core, hard).await;
            }
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, core: Arc<Core>, hard: HardEnd) {
    let service = service_fn(move |request| answer(core.clone(), request, hard.clone()));
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    // A client that hangs up and a script that does are no news.
    let _ = connection.await;
}
