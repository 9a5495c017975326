//! Places at which a test can make a node die, as in a power cut: nothing is flushed, and nobody is told.
//!
//! Without the feature `failpoints` this does nothing. With it, the environment variable `ENTREPOT_FAILPOINT` names the
//! place: `fill.after_upload`, or `fill.after_upload:3` for the third time that it is reached.

/// All places, in the order in which a pull of an image reaches them.
pub const NAMES: [&str; 16] = [
    "manifest.after_claim",
    "manifest.after_fetch",
    "manifest.after_object",
    "manifest.after_events",
    "manifest.after_repository",
    "manifest.after_link",
    "manifest.after_tag",
    "manifest.before_release",
    "fill.after_claim",
    "fill.after_head",
    "fill.after_first_part",
    "fill.after_verification",
    "fill.after_upload",
    "fill.after_events",
    "fill.after_link",
    "fill.before_release",
];

/// The further places that a sync of a moved tag reaches.
pub const SYNC_NAMES: [&str; 2] = ["sync.before_content", "sync.before_tag"];

/// Ends the process here, if a test wants that.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) fn hit(_name: &'static str) {}

/// Ends the process here, if a test wants that.
#[cfg(feature = "failpoints")]
pub(crate) fn hit(name: &'static str) {
    debug_assert!(NAMES.contains(&name) || SYNC_NAMES.contains(&name), "the failpoint `{name}` is not listed");
    if armed::ARMED.as_ref().is_some_and(|armed| armed.is_due(name)) {
        tracing::error!("dies at the failpoint `{name}`, as a test wants it");
        std::process::abort();
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// The place where this process should die.
    pub(super) static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        #[expect(clippy::disallowed_methods, reason = "no configuration of a registry: only tests know of it")]
        let text = std::env::var("ENTREPOT_FAILPOINT").ok()?;
        Some(Armed::parse(&text))
    });

    pub(super) struct Armed {
        name: String,
        /// How many more times the place must be reached.
        left: AtomicU32,
    }

    impl Armed {
        pub(super) fn parse(text: &str) -> Self {
            let (name, times) = text.split_once(':').unwrap_or((text, "1"));
            Self { name: name.to_owned(), left: AtomicU32::new(times.parse().unwrap_or(1)) }
        }

        pub(super) fn is_due(&self, name: &str) -> bool {
            self.name == name && self.left.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_place_is_due_when_it_is_reached_as_often_as_the_test_said() {
            let once = Armed::parse("fill.after_upload");
            assert!(!once.is_due("fill.after_link"));
            assert!(once.is_due("fill.after_upload"));
            let third = Armed::parse("fill.after_upload:3");
            let due = [(); 4].map(|()| third.is_due("fill.after_upload"));
            assert_eq!(due, [false, false, true, false]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_that_is_listed_is_somewhere_in_the_code_once() {
        let code = [
            include_str!("fill/driver.rs"),
            include_str!("fill/driver/fetch.rs"),
            include_str!("fill/driver/store.rs"),
            include_str!("fill/upload.rs"),
            include_str!("resolve/manifest.rs"),
            include_str!("resolve/sync.rs"),
            include_str!("repository/writer.rs"),
        ];
        let code = code.concat();
        for name in NAMES.iter().chain(&SYNC_NAMES) {
            assert_eq!(code.matches(&format!("failpoint::hit(\"{name}\")")).count(), 1, "{name}");
        }
        assert_eq!(code.matches("failpoint::hit(").count(), NAMES.len() + SYNC_NAMES.len());
    }
}
