//! Requests to a program's operations listener.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A frozen program never answers.
const LIMIT: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug)]
pub struct Probed {
    pub status: u16,
    /// Its body.
    pub text: String,
}

impl Probed {
    /// A value from metrics in Prometheus' text format: the sum over all lines with this name whose labels contain all
    /// of `labels`, each written as `key="value"`.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let lines = self.text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let matches = found == name && labels.iter().all(|label| rest.contains(label));
            matches.then(|| value.parse::<f64>().ok()).flatten()
        });
        values.sum()
    }
}

/// `GET path`.
///
/// # Errors
/// If nobody answers within 5 s.
pub async fn probe(address: SocketAddr, path: &str) -> std::io::Result<Probed> {
    match tokio::time::timeout(LIMIT, get(address, path)).await {
        Ok(answer) => answer.map_err(std::io::Error::other),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

async fn get(address: SocketAddr, path: &str) -> Result<Probed, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request =
        http::Request::get(path).header(http::header::HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let text = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
        Ok(Probed { status: head.status.as_u16(), text })
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end with the last byte, before that was read.
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_the_series_that_match() {
        let text = "# HELP a_total x\na_total{outcome=\"hit\",content=\"blob\"} 2\na_total{outcome=\"miss\"} 3\nab_total 9\nb 1\n";
        let probed = Probed { status: 200, text: text.to_owned() };
        assert_eq!(probed.metric("a_total", &[]), 5.0);
        assert_eq!(probed.metric("a_total", &["outcome=\"hit\""]), 2.0);
        assert_eq!(probed.metric("b", &[]), 1.0);
        assert_eq!(probed.metric("c", &[]), 0.0);
    }
}
