//! What a request asks for: which content of which repository, and which part of a list.

use entrepot_domain::{Digest, Reference, Referrer, RepositoryName};
use url::form_urlencoded;

use crate::error::RouteError;

/// Which content of which repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The repository, in the client's spelling.
    pub(crate) repository: RepositoryName,
    /// What in it.
    pub(crate) content: Content,
}

/// Which content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A manifest or index.
    Manifest(Reference),
    /// A blob.
    Blob(Digest),
}

impl Content {
    /// The tag or digest that names it.
    pub(crate) fn reference(&self) -> String {
        match self {
            Self::Manifest(reference) => reference.to_string(),
            Self::Blob(digest) => digest.to_string(),
        }
    }
}

/// The most tags in one answer, and as many as there are unless a client wants fewer.
const MOST: usize = 1000;

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TagPage {
    /// How many tags at most.
    pub(crate) count: usize,
    /// The tag that they come behind; it need not exist.
    pub(crate) last: String,
}

/// Which referrers are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReferrerFilter {
    /// Those of any of these types; empty is all.
    pub(crate) artifact_types: Vec<String>,
}

impl ReferrerFilter {
    /// Reads the query of a request.
    pub(crate) fn parse(query: &str) -> Self {
        // Types hold `+`, which clients send as it is, too; none holds a space, which it would mean here.
        let query = query.replace('+', "%2B");
        let types = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "artifactType");
        let artifact_types = types.map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty()).collect();
        Self { artifact_types }
    }

    pub(crate) fn takes(&self, referrer: &Referrer) -> bool {
        let is = |wanted: &String| referrer.artifact_type.as_deref() == Some(wanted.as_str());
        self.artifact_types.is_empty() || self.artifact_types.iter().any(is)
    }
}

impl TagPage {
    /// Reads the query of a request.
    ///
    /// # Errors
    /// If `n` is no number.
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
        assert_eq!(taken, [true, true, false, false]);
        assert!(ReferrerFilter::default().takes(&referrer(None)));
    }
}
