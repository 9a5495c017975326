//! Which requests of HTTP/1.1 go over a link.

use parking_lot::Mutex;

const METHODS: [&str; 5] = ["GET", "HEAD", "PUT", "POST", "DELETE"];
/// A longer line is no request's.
const LINE_BYTES: usize = 8 * 1024;
/// More requests than this are counted by nobody.
const REQUESTS: usize = 100_000;

/// The requests of all connections of a link, if somebody wants to know.
#[derive(Default)]
pub(super) struct Requests(Mutex<Option<Vec<String>>>);

impl Requests {
    /// What has been requested since the last call, as `GET /path`. From the first call on requests are recorded.
    pub(super) fn take(&self) -> Vec<String> {
        self.0.lock().replace(Vec::new()).unwrap_or_default()
    }
}

/// Finds the requests in what one connection sends.
///
/// A body may come right before the next request, on the same line; so it is the line's end that counts.
pub(super) struct Scanner<'r> {
    requests: &'r Requests,
    line: Vec<u8>,
}

impl<'r> Scanner<'r> {
    pub(super) fn new(requests: &'r Requests) -> Self {
        Self { requests, line: Vec::new() }
    }

    /// Reads what comes next.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            self.line.drain(..self.line.len().saturating_sub(LINE_BYTES));
            if part.ends_with(b"\n") {
                if let (Some(request), Some(all)) = (request(&self.line), &mut *self.requests.0.lock())
                    && all.len() < REQUESTS
                {
                    all.push(request);
                }
                self.line.clear();
            }
        }
    }
}

fn request(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line.strip_suffix(b" HTTP/1.1\r\n")?);
    let (before, path) = line.rsplit_once(' ')?;
    let method = METHODS.iter().find(|method| before.ends_with(**method))?;
    Some(format!("{method} {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_found_whatever_their_pieces_are_and_whatever_body_is_before_them() {
        let sent = b"GET /a?b=c HTTP/1.1\r\nhost: x\r\n\r\nPUT /d HTTP/1.1\r\ncontent-length: 9\r\n\r\n{\"a\": 1}\nHEAD /e HTTP/1.1\r\n\r\n";
        for size in [1, 7, sent.len()] {
            let requests = Requests::default();
            requests.take();
            let mut scanner = Scanner::new(&requests);
            sent.chunks(size).for_each(|piece| scanner.read(piece));
            assert_eq!(requests.take(), ["GET /a?b=c", "PUT /d", "HEAD /e"], "{size}");
        }
    }
}
