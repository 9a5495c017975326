//! The registries that a request has come through, as the header `Via` lists them. They let registries that ask each
//! other in a circle notice it.
//!
//! Source: RFC 9110, §7.6.3. Each registry adds itself by its id. Proxies in between are counted, but passed on without
//! their names, which concern nobody else.

use std::fmt;

use uuid::Uuid;

/// How many hops a request may have behind it. Nobody should need longer chains of registries.
const MOST: usize = 5;

/// The hops behind a request, the first one first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hops(Vec<Option<Uuid>>);

/// Why a request is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loop {
    /// It has been here before.
    #[error("it has come through this registry before, so its upstreams lead back to it")]
    Returned,
    /// It has come through more registries than any sensible setup has.
    #[error("it has come through more than {MOST} others")]
    TooLong,
}

impl Hops {
    /// Reads the values of `Via`. Anything is accepted, and no more is kept than is needed.
    pub fn read<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> Self {
        Self(values.into_iter().flat_map(entries).map(registry).take(MOST + 1).collect())
    }

    /// Checks that the registry `own` may forward a request with these hops behind it.
    ///
    /// # Errors
    /// If the request goes round in a circle, or may do so.
    pub fn check(&self, own: Uuid) -> Result<(), Loop> {
        if self.0.contains(&Some(own)) {
            return Err(Loop::Returned);
        }
        if self.0.len() > MOST { Err(Loop::TooLong) } else { Ok(()) }
    }

    /// These hops, followed by the registry `own`.
    #[must_use]
    pub fn and(&self, own: Uuid) -> Self {
        Self(self.0.iter().copied().chain([Some(own)]).collect())
    }
}

impl fmt::Display for Hops {
    /// Writes the value of `Via`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, hop) in self.0.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            match hop {
                Some(registry) => write!(f, "{comma}1.1 {registry}")?,
                None => write!(f, "{comma}1.1 proxy")?,
            }
        }
        Ok(())
    }
}

/// Splits at commas, except at those inside comments, which may be nested.
fn entries(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut depth, mut is_escaped) = (0_usize, false);
    let entries = value.split(move |byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if depth > 0 => is_escaped = true,
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' => return depth == 0,
            _ => {}
        }
        false
    });
    entries.filter(|entry| !entry.trim_ascii().is_empty())
}

/// The registry that a hop names, if it names one: the word after the protocol is the receiver.
fn registry(entry: &[u8]) -> Option<Uuid> {
    let mut words = entry.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    Uuid::try_parse_ascii(words.nth(1)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Uuid = Uuid::from_u128(10);
    const B: Uuid = Uuid::from_u128(11);

    fn read(values: &[&str]) -> Hops {
        Hops::read(values.iter().map(|value| value.as_bytes()))
    }

    #[test]
    fn a_request_goes_no_further_when_it_comes_back_or_has_come_too_far() {
        let of_a = Hops::default().and(A);
        assert_eq!((of_a.check(A), of_a.check(B)), (Err(Loop::Returned), Ok(())));
        assert_eq!(of_a.and(B).check(A), Err(Loop::Returned));
        let long: Vec<String> = (0..5).map(|number| format!("1.1 host-{number}")).collect();
        assert_eq!(read(&[&long.join(",")]).check(A), Ok(()));
        assert_eq!(read(&[&long.join(","), "HTTP/1.0 fred"]).check(A), Err(Loop::TooLong));
        assert_eq!(read(&[&format!("1.1 {A}"), &long.join(",")]).check(A), Err(Loop::Returned));
    }

    #[test]
    fn hops_are_read_as_they_may_be_written_and_passed_on_without_names_but_those_of_registries() {
        assert_eq!(
            read(&["1.0 fred, 1.1 p.example.net:8080 (a, (b, c) \\), d)", "", " , "]).to_string(),
            "1.1 proxy, 1.1 proxy"
        );
        assert_eq!(read(&[&format!("1.1  {A} (an, entrepot),HTTP/2 {B}")]).to_string(), format!("1.1 {A}, 1.1 {B}"));
        assert_eq!(read(&[&format!("1.1 {}", A.to_string().to_uppercase())]), Hops::default().and(A));
        assert_eq!(
            (Hops::default().to_string(), read(&["(", "1.1"]).to_string()),
            (String::new(), "1.1 proxy, 1.1 proxy".into())
        );
    }

    proptest! {
        #[test]
        fn any_value_is_read_and_what_was_written_is_read_as_it_was(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..4)) {
            let hops = Hops::read(values.iter().map(Vec::as_slice)).and(B);
            prop_assert!(hops.check(B).is_err());
            let again = Hops::read([hops.to_string().as_bytes()]);
            prop_assert_eq!(again.0.len(), hops.0.len().min(MOST + 1));
        }
    }
}
