//! Suggestions for misspelled names.

/// The known name that is nearest to `name`, if it is near enough to be a suggestion.
pub(super) fn of<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = known.into_iter().map(|known| (distance(name, known), known));
    let (distance, nearest) = distances.min()?;
    // One typo is accepted, and one more per four letters.
    (distance <= 1 + name.len() / 4).then_some(nearest)
}

/// How many letters have to be inserted, removed or replaced (Levenshtein's distance).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_near_and_other_words_are_not() {
        let known = ["listen", "tls_key_file", "external_url"];
        assert_eq!(of("listn", known), Some("listen"));
        assert_eq!(of("extrenal_url", known), Some("external_url"));
        assert_eq!(of("tls-key-file", known), Some("tls_key_file"));
        assert_eq!(of("bucket", known), None);
        assert_eq!(of("listen", []), None);
    }
}
