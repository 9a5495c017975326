//! `entrepot health`: a probe for container images without another HTTP client.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::error::Error;
use crate::output;
use crate::tls::TlsArgs;

/// A probe that takes longer fails.
const LIMIT: Duration = Duration::from_secs(5);
/// Larger than any answer.
const BODY_MAX_BYTES: usize = 64 * 1024;

type Answer = (http::StatusCode, String);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  entrepot health --url http://127.0.0.1:5002/readyz && echo ready
  entrepot health --url https://127.0.0.1:5002/readyz --ca ca.pem --tls-name node-1.example")]
pub(crate) struct Args {
    /// The URL to request: /readyz (can it serve requests?) or /livez (is it running?) on a program's operations
    /// listener.
    #[arg(long, default_value = "http://127.0.0.1:5002/readyz")]
    url: Url,
}

pub(crate) async fn run(args: Args, tls: &TlsArgs) -> Result<ExitCode, Error> {
    let host = args.url.host_str().unwrap_or_default();
    let tls = match args.url.scheme() {
        "http" if !host.is_empty() => None,
        "https" if !host.is_empty() => Some(tls.rustls(host)?),
        _ => return Err(Error::Usage(format!("`{}` must be an http:// or https:// URL", args.url))),
    };
    let unreachable = |why: String| {
        Error::Failed(format!("{} does not answer ({why}): is the program running, and is this right?", args.url))
    };
    let (status, body) = match tokio::time::timeout(LIMIT, get(&args.url, tls)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable(format!("no answer within {} s", LIMIT.as_secs()))),
    };
    if !status.is_success() {
        return Err(Error::Failed(format!("not ready ({}): {}", status.as_u16(), body.trim())));
    }
    output::print(|out| writeln!(out, "ready"))?;
    Ok(ExitCode::SUCCESS)
}

async fn get(url: &Url, tls: Option<(Arc<ClientConfig>, ServerName<'static>)>) -> anyhow::Result<Answer> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(80);
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    match tls {
        Some((config, name)) => exchange(url, TlsConnector::from(config).connect(name, stream).await?).await,
        None => exchange(url, stream).await,
    }
}

async fn exchange(url: &Url, stream: impl AsyncRead + AsyncWrite + Unpin + Send) -> anyhow::Result<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
    let request = http::Request::get(&url[url::Position::BeforePath..url::Position::AfterQuery])
        .header(http::header::HOST, host)
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, BODY_MAX_BYTES).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
        anyhow::Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end with the last byte, before that was read; servers with TLS often end it without a
        // close_notify.
        ended = connection => exchange.await.map_err(|error| ended.err().map_or(error, anyhow::Error::from)),
    }
}
