//! A client that reads one piece of content and compares each byte as it comes. Where its answer is cut it goes on by
//! Range, as containerd would.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode, header};

use crate::client::Client;

/// How often a reader goes on after it was cut.
const MOST_CUTS: usize = 8;
/// How long it waits before that, times how often it has.
const PAUSE: Duration = Duration::from_millis(100);
/// How much of a wrong answer is told.
const SHOWN_BYTES: usize = 500;

/// Content, and what it must be.
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
    /// Why its answers ended before the content did, one after the other.
    pub(crate) cuts: Vec<Cut>,
}

/// An answer that did not come, was an error, or ended too early.
#[derive(Debug)]
pub(crate) struct Cut {
    /// When it was asked for, and when it ended.
    pub(crate) asked: Instant,
    pub(crate) ended: Instant,
    /// What the node calls the request; `None` if no node has answered, or the load balancer.
    pub(crate) request_id: Option<String>,
    /// Its status, if it has one.
    pub(crate) status: Option<StatusCode>,
    /// The code of the OCI error that it was; empty for none.
    pub(crate) code: String,
    /// Whether one of its bytes was wrong. Nobody believes an answer that did not end, so that may be.
    pub(crate) wrong: bool,
    pub(crate) problem: String,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node().unwrap_or("no node");
        write!(f, "{node}: {} (after {:.2?})", self.problem, self.ended - self.asked)
    }
}

impl Cut {
    /// Which node has answered; request ids are `node-1-` and a number.
    pub(crate) fn node(&self) -> Option<&str> {
        Some(self.request_id.as_deref()?.rsplit_once('-')?.0)
    }
}

/// How far a reader is.
pub(crate) struct Reading<'a> {
    wanted: &'a Wanted,
    at: usize,
    first: Option<(Instant, u64)>,
    last: Instant,
    longest_stall: Duration,
}

/// Reads content whole: first with `client`, and whenever that is cut, with `balanced`. `landed` says how much the
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
    let mut reading = Reading::of(wanted, began);
    let mut cuts: Vec<Cut> = Vec::new();
    while let Some(cut) = reading.go_on(if cuts.is_empty() { client } else { balanced }, &landed).await? {
        ensure!(!cut.wrong, "a byte was wrong before {cut}");
        cuts.push(cut);
        ensure!(cuts.len() <= MOST_CUTS, "given up after {cuts:#?}");
        tokio::time::sleep(PAUSE * u32::try_from(cuts.len())?).await;
    }
    let (first, landed_before) = reading.first.unwrap_or((reading.last, 0));
    let (first_byte, end) = (first - began, reading.last - began);
    Ok(Seen { first_byte, landed_before, longest_stall: reading.longest_stall, end, cuts })
}

impl<'a> Reading<'a> {
    /// Nothing has come yet.
    pub(crate) fn of(wanted: &'a Wanted, began: Instant) -> Self {
        Self { wanted, at: 0, first: None, last: began, longest_stall: Duration::ZERO }
    }

    /// Reads on to the end, or until it is cut.
    ///
    /// # Errors
    /// If an answer is wrong: it is not what was asked for, or it ends properly and a byte of it is wrong.
    pub(crate) async fn go_on(&mut self, client: &Client, landed: impl Fn() -> u64) -> Result<Option<Cut>> {
        let mut cut = Cut {
            asked: Instant::now(),
            ended: Instant::now(),
            request_id: None,
            status: None,
            code: String::new(),
            wrong: false,
            problem: String::new(),
        };
        let (begin, problem) = (self.at, self.receive(client, landed, &mut cut).await?);
        cut.ended = Instant::now();
        let Some(problem) = problem else {
            ensure!(!cut.wrong, "{} from {begin} on has a proper end, and {}", self.wanted.path, cut.problem);
            let (at, length) = (self.at, self.wanted.bytes.len());
            ensure!(at == length, "{}: {at} of {length} bytes, and a proper end", self.wanted.path);
            return Ok(None);
        };
        if cut.wrong || self.wanted.path.contains("/manifests/") {
            // Nothing of this answer is of use; manifests have no ranges.
            self.at = begin;
        }
        cut.problem = problem;
        Ok(Some(cut))
    }

    /// Reads one answer, and says why it did not reach the end.
    async fn receive(&mut self, client: &Client, landed: impl Fn() -> u64, cut: &mut Cut) -> Result<Option<String>> {
        let begin = self.at;
        let mut request = client.request(Method::GET, &self.wanted.path);
        if begin > 0 {
            request = request.header(header::RANGE, format!("bytes={begin}-"));
        }
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Ok(Some(format!("no answer at {begin}: {:#}", anyhow::Error::from(error)))),
        };
        cut.status = Some(answer.status());
        let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        cut.request_id = text("x-request-id");
        if !answer.status().is_success() {
            let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
            let body: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            cut.code = body["errors"][0]["code"].as_str().unwrap_or_default().to_owned();
            return Ok(Some(format!("{status} at {begin}: {text}")));
        }
        if begin > 0 {
            ensure!(answer.status() == StatusCode::PARTIAL_CONTENT, "a range was answered with {}", answer.status());
            let said = text("content-range");
            let right = said.as_ref().is_some_and(|said| said.starts_with(&format!("bytes {begin}-")));
            ensure!(right, "the range from {begin} on was answered with {said:?}");
        }
        let headers = answer.headers().clone();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) if self.came(&chunk, &landed) => {}
                Ok(Some(chunk)) => {
                    cut.wrong = true;
                    let shown = String::from_utf8_lossy(&chunk[..chunk.len().min(SHOWN_BYTES)]);
                    cut.problem = format!("something is wrong before {}: {headers:?} {shown:?}", self.at);
                }
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(format!("cut at {}: {:#}", self.at, anyhow::Error::from(error)))),
            }
        }
    }

    /// Whether these bytes are right.
    fn came(&mut self, chunk: &[u8], landed: impl Fn() -> u64) -> bool {
        let now = Instant::now();
        match self.first {
            None => self.first = Some((now, landed())),
            Some(_) => self.longest_stall = self.longest_stall.max(now - self.last),
        }
        self.last = now;
        let expected = self.wanted.bytes.get(self.at..self.at + chunk.len());
        self.at += chunk.len();
        expected.is_some_and(|expected| expected == chunk)
    }
}
