//! A client that reads one large blob and compares each byte as it comes. Where its answer is cut it goes on by Range
//! through the load balancer, as containerd would.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode, header};

use crate::client::Client;

/// How often a reader goes on after it was cut.
const MOST_CUTS: usize = 8;
/// How long it waits before that, times how often it has.
const PAUSE: Duration = Duration::from_millis(100);

/// A blob, and what it must be.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) digest: String,
    /// What is asked for.
    pub(crate) path: String,
    pub(crate) bytes: Bytes,
}

/// What a reader saw. Its bytes were right.
#[derive(Debug)]
pub(crate) struct Seen {
    /// From the beginning of all readers to the first byte of this one.
    pub(crate) first_byte: Duration,
    /// How much the upstream had sent when the first byte came.
    pub(crate) landed_before: u64,
    /// The longest time without a byte after the first one.
    pub(crate) longest_stall: Duration,
    pub(crate) end: Duration,
    /// Why its answers ended before the blob did, one after the other.
    pub(crate) cuts: Vec<String>,
}

/// How far a reader is.
struct Reading<'a> {
    wanted: &'a Wanted,
    at: usize,
    first: Option<(Instant, u64)>,
    last: Instant,
    longest_stall: Duration,
}

/// Reads a blob whole: first with `client`, and whenever that is cut, with `balanced`. `landed` says how much the
/// upstream has sent.
///
/// # Errors
/// If a byte is wrong, or the reader was cut too often.
pub(crate) async fn read(
    wanted: &Wanted,
    client: &Client,
    balanced: &Client,
    began: Instant,
    landed: impl Fn() -> u64,
) -> Result<Seen> {
    let mut reading = Reading { wanted, at: 0, first: None, last: began, longest_stall: Duration::ZERO };
    let mut cuts: Vec<String> = Vec::new();
    while let Some(cut) = reading.go_on(if cuts.is_empty() { client } else { balanced }, &landed).await? {
        cuts.push(cut);
        ensure!(cuts.len() <= MOST_CUTS, "given up after {cuts:#?}");
        tokio::time::sleep(PAUSE * u32::try_from(cuts.len())?).await;
    }
    let (first, landed_before) = reading.first.unwrap_or((reading.last, 0));
    let (first_byte, end) = (first - began, reading.last - began);
    Ok(Seen { first_byte, landed_before, longest_stall: reading.longest_stall, end, cuts })
}

impl Reading<'_> {
    /// Reads on to the end, or until it is cut, and says why. An error is a wrong answer.
    async fn go_on(&mut self, client: &Client, landed: impl Fn() -> u64) -> Result<Option<String>> {
        let begin = self.at;
        let mut request = client.request(Method::GET, &self.wanted.path);
        if begin > 0 {
            request = request.header(header::RANGE, format!("bytes={begin}-"));
        }
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Ok(Some(format!("no answer at {begin}: {:#}", anyhow::Error::from(error)))),
        };
        if !answer.status().is_success() {
            return Ok(Some(format!("{} at {begin}: {}", answer.status(), answer.text().await.unwrap_or_default())));
        }
        if begin > 0 {
            ensure!(answer.status() == StatusCode::PARTIAL_CONTENT, "a range was answered with {}", answer.status());
            let said = answer.headers().get(header::CONTENT_RANGE).and_then(|said| said.to_str().ok());
            let right = said.is_some_and(|said| said.starts_with(&format!("bytes {begin}-")));
            ensure!(right, "the range from {begin} on was answered with {said:?}");
        }
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => self.came(&chunk, &landed)?,
                Ok(None) => break,
                Err(error) => return Ok(Some(format!("cut at {}: {:#}", self.at, anyhow::Error::from(error)))),
            }
        }
        ensure!(
            self.at == self.wanted.bytes.len(),
            "{} of {} bytes, and a proper end",
            self.at,
            self.wanted.bytes.len()
        );
        Ok(None)
    }

    fn came(&mut self, chunk: &[u8], landed: impl Fn() -> u64) -> Result<()> {
        let now = Instant::now();
        match self.first {
            None => self.first = Some((now, landed())),
            Some(_) => self.longest_stall = self.longest_stall.max(now - self.last),
        }
        self.last = now;
        let expected = self.wanted.bytes.get(self.at..self.at + chunk.len());
        ensure!(expected.is_some_and(|expected| expected == chunk), "the bytes from {} on are wrong", self.at);
        self.at += chunk.len();
        Ok(())
    }
}
