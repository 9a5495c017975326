//! Tells a client where to log in.
//!
//! Source: RFC 6750 §3 and the distribution project's token authentication.

use http::HeaderValue;
use uuid::Uuid;

/// The content of a 401 answer.
pub(crate) struct Challenge<'a> {
    /// This registry's URL as its clients see it, without a trailing slash.
    pub(crate) base: &'a str,
    /// The registry's id, which is the audience of its tokens.
    pub(crate) registry_id: Option<Uuid>,
    /// The missing permission, such as `repository:hub/nginx:pull`.
    pub(crate) scope: Option<String>,
}

impl Challenge<'_> {
    /// The lines of the header. Bearer comes first, since clients take the first scheme that they know.
    pub(crate) fn lines(&self, problem: Option<&str>) -> Vec<HeaderValue> {
        let base = self.base;
        let service = self.registry_id.map_or_else(|| "entrepot".to_owned(), |id| id.to_string());
        let mut bearer = format!(r#"Bearer realm="{base}/token",service="{service}""#);
        for (name, value) in [("scope", self.scope.as_deref()), ("error", problem)] {
            if let Some(value) = value {
                bearer.push_str(&format!(r#",{name}="{value}""#));
            }
        }
        // Repository names and checked hosts contain only legal characters.
        [bearer, format!(r#"Basic realm="{base}""#)]
            .iter()
            .filter_map(|line| HeaderValue::from_str(line).ok())
            .collect()
    }
}
