//! The messages that a working node sends to nodes that wait for it, as bytes.
//!
//! A message is its kind (one byte), the length of its body (four bytes, the most significant one first), and its body.
//! Content is passed on as it comes, before its message is complete.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// A leader's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// It is alive. Sent regularly, whatever the leader itself waits for.
    Beat,
    /// It has begun to get the content, which has this size, if known.
    Open(Option<u64>),
    /// The next bytes of the content.
    Content(Bytes),
    /// Its work is done: all bytes are there, and stored if the store accepted them.
    Ended,
    /// What it has sent is wrong.
    Rejected,
    /// It stops; another node may continue.
    Left,
}

/// The stream is not that of a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a word that no node says")]
pub(crate) struct Malformed;

mod kind {
    pub(super) const BEAT: u8 = 0;
    pub(super) const OPEN: u8 = 1;
    pub(super) const CONTENT: u8 = 2;
    pub(super) const ENDED: u8 = 3;
    pub(super) const REJECTED: u8 = 4;
    pub(super) const LEFT: u8 = 5;
}

/// The kind and the length.
const HEAD_BYTES: usize = 5;
/// The body of [`Word::Open`], if the size is known.
const SIZE_BYTES: usize = 8;

impl Word {
    /// The bytes of a message, except the content in it, which follows.
    pub(crate) fn head(&self) -> Bytes {
        let mut head = BytesMut::with_capacity(HEAD_BYTES + SIZE_BYTES);
        let (kind, len) = match self {
            Self::Beat => (kind::BEAT, 0),
            Self::Open(size) => (kind::OPEN, size.map_or(0, |_| SIZE_BYTES)),
            Self::Content(bytes) => (kind::CONTENT, bytes.len()),
            Self::Ended => (kind::ENDED, 0),
            Self::Rejected => (kind::REJECTED, 0),
            Self::Left => (kind::LEFT, 0),
        };
        head.put_u8(kind);
        // Content is sent in chunks, far below the limit.
        head.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        if let Self::Open(Some(size)) = self {
            head.put_u64(*size);
        }
        head.freeze()
    }
}

/// Parses a stream of messages.
#[derive(Debug, Default)]
pub(crate) struct Words {
    received: BytesMut,
    /// How many bytes of the current message's content are still to come.
    left_bytes: usize,
}

impl Words {
    /// Adds more bytes of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Whether a message has begun and is not complete.
    pub(crate) fn is_midway(&self) -> bool {
        self.left_bytes > 0 || !self.received.is_empty()
    }

    /// The next message, or the next piece of one with content.
    pub(crate) fn next(&mut self) -> Result<Option<Word>, Malformed> {
        if self.left_bytes == 0 {
            let Some(head) = self.received.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
            let (kind, len) = (head[0], u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize);
            let body = &self.received[HEAD_BYTES..];
            let word = match (kind, len) {
                (kind::BEAT, 0) => Word::Beat,
                (kind::OPEN, 0) => Word::Open(None),
                (kind::OPEN, SIZE_BYTES) => match body.first_chunk::<SIZE_BYTES>() {
                    Some(size) => Word::Open(Some(u64::from_be_bytes(*size))),
                    None => return Ok(None),
                },
                (kind::CONTENT, len) if len > 0 => {
                    self.received.advance(HEAD_BYTES);
                    self.left_bytes = len;
                    return Ok(self.content());
                }
                (kind::ENDED, 0) => Word::Ended,
                (kind::REJECTED, 0) => Word::Rejected,
                (kind::LEFT, 0) => Word::Left,
                _ => return Err(Malformed),
            };
            self.received.advance(HEAD_BYTES + len);
            return Ok(Some(word));
        }
        Ok(self.content())
    }

    fn content(&mut self) -> Option<Word> {
        let len = self.left_bytes.min(self.received.len());
        if len == 0 {
            return None;
        }
        self.left_bytes -= len;
        Some(Word::Content(self.received.split_to(len).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word() -> impl Strategy<Value = Word> {
        prop_oneof![
            Just(Word::Beat),
            any::<Option<u64>>().prop_map(Word::Open),
            proptest::collection::vec(any::<u8>(), 1..100).prop_map(|bytes| Word::Content(bytes.into())),
            Just(Word::Ended),
            Just(Word::Rejected),
            Just(Word::Left),
        ]
    }

    /// Merges adjacent messages with content.
    fn merge_content(words: Vec<Word>) -> Vec<Word> {
        let mut joined: Vec<Word> = Vec::new();
        for word in words {
            match (joined.last_mut(), word) {
                (Some(Word::Content(before)), Word::Content(bytes)) => *before = [&before[..], &bytes].concat().into(),
                (_, word) => joined.push(word),
            }
        }
        joined
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard_however_it_is_cut(said in proptest::collection::vec(word(), 0..20), cut in 1_usize..40) {
            let mut stream = Vec::new();
            for word in &said {
                stream.extend_from_slice(&word.head());
                if let Word::Content(bytes) = word {
                    stream.extend_from_slice(bytes);
                }
            }
            let (mut words, mut heard) = (Words::default(), Vec::new());
            for piece in stream.chunks(cut) {
                words.push(piece);
                while let Some(word) = words.next().unwrap() {
                    heard.push(word);
                }
            }
            prop_assert!(!words.is_midway());
            prop_assert_eq!(merge_content(heard), merge_content(said));
        }

        #[test]
        fn a_stream_of_anything_ends_in_words_or_in_an_error(stream in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut words = Words::default();
            words.push(&stream);
            // Each message takes bytes, so this ends.
            while let Ok(Some(_)) = words.next() {}
        }
    }
}
