//! How a client learns where to log in.
//!
//! Source: RFC 6750 §3 and the distribution project's token authentication.

use http::HeaderValue;
use uuid::Uuid;

/// What a 401 answer asks for.
pub(crate) struct Challenge<'a> {
    /// Where this registry is, as its clients see it, without a trailing slash.
    pub(crate) base: &'a str,
    /// The registry, which is the audience of its tokens.
    pub(crate) registry_id: Option<Uuid>,
    /// What the request would have needed, such as `repository:hub/nginx:pull`.
    pub(crate) scope: Option<String>,
}

impl Challenge<'_> {
    /// The header's lines: Bearer first, since clients take the first that they know.
    pub(crate) fn lines(&self, problem: Option<&str>) -> Vec<HeaderValue> {
        let base = self.base;
        let service = self.registry_id.map_or_else(|| "entrepot".to_owned(), |id| id.to_string());
        let mut bearer = format!(r#"Bearer realm="{base}/token",service="{service}""#);
        for (name, value) in [("scope", self.scope.as_deref()), ("error", problem)] {
            if let Some(value) = value {
                bearer.push_str(&format!(r#",{name}="{value}""#));
            }
        }
        // A repository name and a checked host hold nothing that a header may not.
        [bearer, format!(r#"Basic realm="{base}""#)]
            .iter()
            .filter_map(|line| HeaderValue::from_str(line).ok())
            .collect()
    }
}
