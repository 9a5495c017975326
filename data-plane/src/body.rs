//! Bodies of answers: bytes in memory, or a stream with its own back-pressure.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};

/// Why a body ends early. The connection is closed before all promised bytes are sent, so that the client notices.
#[derive(Debug, thiserror::Error)]
#[error("the body ends early")]
pub(crate) struct Cut(#[source] Box<dyn std::error::Error + Send + Sync>);

impl Cut {
    /// A cut caused by `source`.
    pub(crate) fn because(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }
}

/// The body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Cut>;

/// Keeps `held` until the body is sent or given up.
pub(crate) fn holding(body: Body, held: impl Send + Unpin + 'static) -> Body {
    Holding { body, _held: held }.boxed_unsync()
}

struct Holding<T> {
    body: Body,
    _held: T,
}

impl<T: Unpin> http_body::Body for Holding<T> {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// No bytes.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// These bytes.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// A stream of bytes.
pub(crate) fn stream(bytes: impl Stream<Item = Result<Bytes, Cut>> + Send + 'static) -> Body {
    let frames = bytes.then(async |chunk| {
        if chunk.is_err() {
            // Buffered data is sent whenever nothing more comes for a moment. Otherwise, if the body breaks off at
            // once, the answer's head would be lost with it, and the client would see no answer at all.
            tokio::task::yield_now().await;
        }
        chunk.map(Frame::data)
    });
    StreamBody::new(frames).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn an_answers_head_leaves_before_a_body_that_breaks_off_at_once() {
        let (mut client, server) = tokio::io::duplex(1024);
        let broken = || stream(futures_util::stream::once(async { Err(Cut::because("on purpose")) }));
        let service = service_fn(async |_| Ok::<_, Infallible>(http::Response::new(broken())));
        let serving = http1::Builder::new().serve_connection(TokioIo::new(server), service);
        let asking = async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let (served, answer) = tokio::join!(serving, asking);
        assert!(served.is_err(), "the connection ends with the body");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
        assert!(!answer.contains("\r\n0\r\n"), "a chunked body that is cut has no end: {answer:?}");
    }
}
