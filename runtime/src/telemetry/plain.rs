//! Log lines that show exactly what they contain, even if strangers have supplied some of the text.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

/// How much of a stranger's text goes into a log line.
const TEXT_BYTES: usize = 1024;

/// The beginning of a text that somebody else wrote, short enough for a log line.
pub fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= TEXT_BYTES {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(TEXT_BYTES)]))
}

/// Whether a character can make a terminal or a reader show something else than what is there: control characters, line
/// separators, and characters that change the direction of writing.
fn is_confusing(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

/// A line in which such characters are escaped, in a way that is also valid in JSON strings.
fn plain(line: &str, colours: bool) -> Cow<'_, str> {
    let (text, end) = line.strip_suffix('\n').map_or((line, ""), |text| (text, "\n"));
    // The line's own colours begin with ESC; its content has already been cleaned of that.
    let is_odd = |c: char| is_confusing(c) && !(colours && c == '\u{1b}');
    if !text.contains(is_odd) {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len() + 32);
    for c in text.chars() {
        if is_odd(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out.push_str(end);
    Cow::Owned(out)
}

/// Writes each line in the form of [`plain`].
pub(super) struct PlainLines<W> {
    pub(super) writer: W,
    /// Whether lines may have colours.
    pub(super) colours: bool,
}

/// Writes one line, which arrives as a whole.
pub(super) struct PlainLine<W> {
    writer: W,
    colours: bool,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for PlainLines<W> {
    type Writer = PlainLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        PlainLine { writer: self.writer.make_writer(), colours: self.colours }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        PlainLine { writer: self.writer.make_writer_for(metadata), colours: self.colours }
    }
}

impl<W: Write> Write for PlainLine<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.writer.write_all(plain(&String::from_utf8_lossy(line), self.colours).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_confuses_terminals_and_readers_is_spelt_out() {
        assert_eq!(
            plain("a \u{202e}b\u{2028}\u{85}\u{9b}\u{7}c\rd\n", false),
            "a \\u202eb\\u2028\\u0085\\u009b\\u0007c\\u000dd\n"
        );
        assert_eq!(plain("\u{1b}[1mINFO\u{1b}[0m \u{2066}x\n", true), "\u{1b}[1mINFO\u{1b}[0m \\u2066x\n");
        assert_eq!(plain("\u{1b}[1m", false), "\\u001b[1m");
        assert!(matches!(plain("Zürich — 東京 🙂\n", false), Cow::Borrowed(_)));
    }

    #[test]
    fn only_the_beginning_of_a_long_text_is_logged() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&"é".repeat(60_000)).into_owned();
        assert!(long.len() <= TEXT_BYTES + '…'.len_utf8() && long.ends_with('…'), "{}", long.len());
    }
}
