//! Byte ranges: which part of a blob does a client want?
//!
//! Source: RFC 9110 §14. Several ranges at once get the whole blob, which the RFC allows and every client handles.

use std::ops::Range;

/// The part of a blob that a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// Some of it; never empty, always inside the blob.
    Part(Range<u64>),
    /// A part that the blob does not have.
    Unsatisfiable,
}

/// Reads a `Range` header for a blob of `size_bytes`. Anything but a single byte range is ignored, as the RFC says.
pub fn wanted(header: Option<&str>, size_bytes: u64) -> Wanted {
    let Some(spec) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else { return Wanted::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    let number = |text: &str| -> Option<u64> {
        // The standard parser accepts a sign, which the grammar does not.
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (start, end) = match (number(first.trim()), number(last.trim())) {
        (None, Some(suffix)) if first.trim().is_empty() => (size_bytes.saturating_sub(suffix), size_bytes),
        (Some(start), None) if last.trim().is_empty() => (start, size_bytes),
        (Some(start), Some(last)) => (start, last.saturating_add(1).min(size_bytes)),
        _ => return Wanted::Whole,
    };
    if start < end && start < size_bytes { Wanted::Part(start..end) } else { Wanted::Unsatisfiable }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn r_range_01_to_03_single_ranges() {
        for (header, expected) in [
            ("bytes=500-1499", Wanted::Part(500..1500)),
            ("bytes=500-", Wanted::Part(500..2048)),
            ("bytes=-500", Wanted::Part(1548..2048)),
            ("bytes=2000-5000", Wanted::Part(2000..2048)),
            ("bytes=2000-2048", Wanted::Part(2000..2048)),
            ("bytes=0-", Wanted::Part(0..2048)),
            ("bytes=-5000", Wanted::Part(0..2048)),
            ("bytes=5000-10000", Wanted::Unsatisfiable),
            ("bytes=2048-", Wanted::Unsatisfiable),
            ("bytes=500-0", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=0-99999999999999999999", Wanted::Part(0..2048)),
        ] {
            assert_eq!(wanted(Some(header), 2048), expected, "{header}");
        }
    }

    #[test]
    fn r_range_06_several_ranges_and_what_is_no_range_get_the_whole() {
        for header in ["bytes=0-1,5-6", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "items=0-1", "bytes"] {
            assert_eq!(wanted(Some(header), 2048), Wanted::Whole, "{header}");
        }
        assert_eq!(wanted(None, 2048), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_and_always_inside(header in ".{0,40}|bytes=[0-9]{0,22}-[0-9]{0,22}", size: u64) {
            if let Wanted::Part(range) = wanted(Some(&header), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
