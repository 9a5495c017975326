//! A scanner for HTTP field values, by the grammar that their lists and parameters share: tokens, quoted strings, and
//! blanks between them (RFC 9110, §5.6).
//!
//! Values are bytes: non-ASCII bytes are legal in quoted strings and have no meaning here. No library reads everything
//! that is legal in `Link` and `WWW-Authenticate` and continues after anything illegal.

/// A quoted string without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endless;

/// A position in a field value.
#[derive(Clone, Debug)]
pub(crate) struct Scan<'v> {
    left: &'v [u8],
}

impl<'v> Scan<'v> {
    pub(crate) fn new(value: &'v [u8]) -> Self {
        Self { left: value }
    }

    /// The next byte.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.left.first().copied()
    }

    /// Everything after the position.
    pub(crate) fn left(&self) -> &'v [u8] {
        self.left
    }

    /// Takes the bytes for which `of` is true.
    pub(crate) fn take_while(&mut self, of: impl Fn(u8) -> bool) -> &'v [u8] {
        let end = self.left.iter().position(|byte| !of(*byte)).unwrap_or(self.left.len());
        let (taken, left) = self.left.split_at(end);
        self.left = left;
        taken
    }

    /// Skips blanks.
    pub(crate) fn blanks(&mut self) {
        self.take_while(is_blank);
    }

    /// Skips `byte` and returns true, if it is the next one.
    pub(crate) fn eat(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        if is_next {
            self.left = &self.left[1..];
        }
        is_next
    }

    /// Takes a token, which may be empty.
    pub(crate) fn token(&mut self) -> &'v [u8] {
        self.take_while(is_token)
    }

    /// Takes an equals sign, if one follows, and the value of a parameter: a token, or a quoted string, which is
    /// returned without its quotes. `None` if there is no value.
    ///
    /// # Errors
    /// If a quoted string has no end.
    pub(crate) fn value(&mut self) -> Result<Option<Vec<u8>>, Endless> {
        self.blanks();
        if !self.eat(b'=') {
            return Ok(None);
        }
        self.blanks();
        if self.eat(b'"') {
            return self.quoted().map(Some).ok_or(Endless);
        }
        // This accepts more than a token, since some addresses are written without quotes.
        let token = self.take_while(|byte| !is_blank(byte) && !b",;\"".contains(&byte));
        Ok(Some(token.to_vec()))
    }

    /// Skips to the next byte of `ends` that is not in a quoted string.
    pub(crate) fn skip_to(&mut self, ends: &[u8]) {
        while let Some(byte) = self.peek().filter(|byte| !ends.contains(byte)) {
            self.eat(byte);
            if byte == b'"' {
                let _ = self.quoted();
            }
        }
    }

    fn quoted(&mut self) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        loop {
            text.extend_from_slice(self.take_while(|byte| byte != b'"' && byte != b'\\'));
            if self.eat(b'"') {
                return Some(text);
            }
            // After a backslash any byte stands for itself; a final backslash stands for nothing.
            self.eat(b'\\');
            text.push(self.peek()?);
            self.left = &self.left[1..];
        }
    }
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
