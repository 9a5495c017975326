//! Pages of lists: their size, and where they begin.
//!
//! A page token contains the end of the previous page, sealed for its list and filter. It reveals nothing, cannot be
//! forged, and is refused for any other list.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use entrepot_proto::convert::Violations;
use entrepot_trust::ClusterKey;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

/// The default size of a page.
const DEFAULT: i64 = 100;
/// The largest page.
const LIMIT: i64 = 1000;

/// The requested page of a list.
pub(super) struct Page<K> {
    /// The end of the previous page; `None` on the first page.
    pub(super) after: Option<K>,
    size: i64,
    purpose: String,
}

impl<K: Serialize + DeserializeOwned> Page<K> {
    /// Reads the requested page of the list `list`. `bound_to` distinguishes lists of one kind, for example by their
    /// filter.
    pub(super) fn read(
        key: &ClusterKey,
        list: &str,
        bound_to: &[&str],
        page_size: i32,
        page_token: &str,
    ) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        let size = match i64::from(page_size) {
            ..0 => violations.take("page_size", Err("must not be negative")),
            0 => Some(DEFAULT),
            size => Some(size.min(LIMIT)),
        };
        let purpose = purpose(list, bound_to);
        let after = match page_token {
            "" => Some(None),
            token => {
                const WRONG: &str =
                    "must be a `next_page_token` of this very list with the same filter; leave it empty to start over";
                violations.take("page_token", open(key, &purpose, token).map(Some).ok_or(WRONG))
            }
        };
        let page = (|| Some(Self { after: after?, size: size?, purpose }))();
        violations.finish(page)
    }

    /// How many rows to fetch: one more than the page holds, to see whether there is a next page.
    pub(super) fn fetch(&self) -> i64 {
        self.size + 1
    }

    /// Cuts the fetched rows to the size of the page, and returns the token of the next page.
    pub(super) fn cut<T>(&self, key: &ClusterKey, rows: &mut Vec<T>, position: impl FnOnce(&T) -> K) -> String {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        if rows.len() <= size {
            return String::new();
        }
        rows.truncate(size);
        let Some(last) = rows.last() else { return String::new() };
        let position = serde_json::to_vec(&position(last)).expect("positions are plain values");
        URL_SAFE_NO_PAD.encode(key.seal(&self.purpose, &position))
    }
}

fn purpose(list: &str, bound_to: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in bound_to {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    format!("page-token/{list}/{}", hex::encode(hasher.finalize()))
}

fn open<K: DeserializeOwned>(key: &ClusterKey, purpose: &str, token: &str) -> Option<K> {
    let sealed = URL_SAFE_NO_PAD.decode(token).ok()?;
    serde_json::from_slice(key.unseal(purpose, &sealed).ok()?.expose()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: &ClusterKey, filter: &str, size: i32, token: &str) -> Result<Page<String>, Violations> {
        Page::read(key, "list", &[filter], size, token)
    }

    #[test]
    fn sizes_are_filled_in_lowered_and_refused() {
        let key = ClusterKey::generate();
        let fetch = |size| read(&key, "", size, "").map(|page| page.fetch());
        assert_eq!((fetch(0), fetch(7), fetch(i32::MAX)), (Ok(101), Ok(8), Ok(1001)));
        assert_eq!(fetch(-1).unwrap_err().to_string(), "`page_size` must not be negative");
    }

    #[test]
    fn a_token_leads_on_in_its_own_list_only() {
        let key = ClusterKey::generate();
        let first = read(&key, "a", 2, "").unwrap();
        let mut rows = vec!["x", "y", "z"];
        let token = first.cut(&key, &mut rows, |row| (*row).to_owned());
        assert_eq!(rows, ["x", "y"]);
        assert_eq!(read(&key, "a", 2, &token).unwrap().after.as_deref(), Some("y"));
        for (filter, token) in [("b", token.as_str()), ("a", "x"), ("a", &token[1..])] {
            assert!(read(&key, filter, 2, token).is_err());
        }
        assert_eq!(first.cut(&key, &mut rows, |row| (*row).to_owned()), "");
    }
}
