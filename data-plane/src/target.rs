//! What a request asks for: content of a repository, or a part of a list.

use entrepot_domain::{Digest, Reference, Referrer, RepositoryName};
use url::form_urlencoded;

use crate::error::RouteError;

/// Content of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The repository, in the client's spelling.
    pub(crate) repository: RepositoryName,
    /// The content.
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A manifest or index.
    Manifest(Reference),
    Blob(Digest),
}

impl Content {
    /// The tag or digest.
    pub(crate) fn reference(&self) -> String {
        match self {
            Self::Manifest(reference) => reference.to_string(),
            Self::Blob(digest) => digest.to_string(),
        }
    }
}

/// The most tags in one answer, which is also the default.
const MOST: usize = 1000;

/// The requested part of a list of tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TagPage {
    /// How many tags at most.
    pub(crate) count: usize,
    /// The tag after which the page begins; it need not exist.
    pub(crate) last: String,
}

/// Which referrers are requested.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReferrerFilter {
    /// Only those of any of these types; empty means all.
    pub(crate) artifact_types: Vec<String>,
}

impl ReferrerFilter {
    /// Reads the query of a request.
    pub(crate) fn parse(query: &str) -> Self {
        // Types contain `+`, which some clients do not encode. It would be read as a space, which no type contains.
        let query = query.replace('+', "%2B");
        let types = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "artifactType");
        let artifact_types = types.map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty()).collect();
        Self { artifact_types }
    }

    /// Whether a referrer matches. If its type is unknown, it is included, and the client has to find out itself.
    pub(crate) fn takes(&self, referrer: &Referrer) -> bool {
        let Some(known) = referrer.known_type() else { return true };
        self.artifact_types.is_empty() || self.artifact_types.iter().any(|wanted| wanted == known)
    }
}

impl TagPage {
    /// Reads the query of a request.
    ///
    /// # Errors
    /// If `n` is not a number.
    pub(crate) fn parse(query: &str) -> Result<Self, RouteError> {
        let mut page = Self { count: MOST, last: String::new() };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "n" => page.count = value.parse::<usize>().map_err(|_| RouteError::PageSize)?.min(MOST),
                "last" => page.last = value.into_owned(),
                _ => {}
            }
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_which_page_and_no_page_is_larger_than_1000() {
        let page = |count, last: &str| Ok(TagPage { count, last: last.to_owned() });
        assert_eq!(TagPage::parse(""), page(1000, ""));
        assert_eq!(TagPage::parse("n=10&last=v1.2"), page(10, "v1.2"));
        assert_eq!(TagPage::parse("last=a%2Bb&other=1&n=0"), page(0, "a+b"));
        assert_eq!(TagPage::parse("n=100000"), page(1000, ""));
        for query in ["n=", "n=-1", "n=many", "n=1.5"] {
            assert_eq!(TagPage::parse(query), Err(RouteError::PageSize), "{query}");
        }
    }

    #[test]
    fn r_ref_03_types_are_any_of_those_named_with_a_plus_in_either_spelling() {
        let types = |query| ReferrerFilter::parse(query).artifact_types;
        assert_eq!(types("artifactType=a%2Fb%2Bjson&artifactType=c/d+json"), ["a/b+json", "c/d+json"]);
        assert_eq!(types("artifactType=&n=3"), [""; 0]);
        let referrer = |artifact_type: Option<&str>| Referrer {
            digest: None,
            artifact_type: artifact_type.map(Into::into),
            descriptor: "{}".into(),
        };
        let filter = ReferrerFilter::parse("artifactType=a&artifactType=b");
        let taken = [Some("a"), Some("b"), Some("c"), None].map(|text| filter.takes(&referrer(text)));
        assert_eq!(taken, [true, true, false, true], "what nobody has told of may be anything");
        assert!(ReferrerFilter::default().takes(&referrer(None)));
    }
}
