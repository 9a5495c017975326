//! Tables for people, without lines, colours or truncation, so that they survive a pipe.

use std::io::{self, Write};

use chrono::{DateTime, SecondsFormat};
use comfy_table::{Table, presets};
use prost_types::Timestamp;

/// Values with their headings.
pub(crate) type Cells = Vec<(&'static str, String)>;

/// One answer, with one line per value.
pub(crate) fn details(out: &mut dyn Write, cells: &Cells) -> io::Result<()> {
    let rows = cells.iter().filter(|(_, value)| !value.is_empty());
    write_table(out, plain().add_rows(rows.map(|(heading, value)| [(*heading).to_owned(), value.clone()])))
}

/// A list, with one line per item below the headings.
pub(super) fn list(out: &mut dyn Write, rows: &[Cells]) -> io::Result<()> {
    let Some(first) = rows.first() else { return Ok(()) };
    let mut table = plain();
    table.set_header(first.iter().map(|(heading, _)| *heading));
    table.add_rows(rows.iter().map(|row| row.iter().map(|(_, value)| if value.is_empty() { "-" } else { value })));
    write_table(out, &mut table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn write_table(out: &mut dyn Write, table: &mut Table) -> io::Result<()> {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A time, such as `2025-11-23 20:27:03 UTC`; empty if there is none.
pub(crate) fn time(time: Option<&Timestamp>) -> String {
    time.and_then(|time| DateTime::from_timestamp(time.seconds, time.nanos.try_into().ok()?))
        .map(|time| time.to_rfc3339_opts(SecondsFormat::Secs, true).replace('T', " ").replace('Z', " UTC"))
        .unwrap_or_default()
}

/// `text` with a time, such as `v1 (2025-11-23 20:27:03 UTC)`.
pub(crate) fn timed(text: &str, at: Option<&Timestamp>) -> String {
    match time(at) {
        at if at.is_empty() => text.to_owned(),
        at => format!("{text} ({at})"),
    }
}

/// A size, such as `12.5 MiB`.
pub(crate) fn size(bytes: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_aligned_and_keep_empty_places() {
        let row = |name: &str, rule: &str| vec![("NAME", name.to_owned()), ("RULE", rule.to_owned())];
        let mut out = vec![];
        list(&mut out, &[row("demo/team/app", "demo"), row("x", "")]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME           RULE\ndemo/team/app  demo\nx              -\n");
    }

    #[test]
    fn sizes_and_times_are_for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(size(13_107_200), "12.5 MiB");
        let at = Timestamp { seconds: 1_763_929_623, nanos: 5 };
        assert_eq!(time(Some(&at)), "2025-11-23 20:27:03 UTC");
        assert_eq!(timed("v1", None), "v1");
    }
}
