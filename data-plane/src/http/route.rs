//! Parses what a request asks for. Paths are parsed from the end, since repository names contain `/`.

use entrepot_domain::digest::DigestError;
use entrepot_domain::reference::ReferenceError;
use entrepot_domain::{Digest, Reference, RepositoryName};
use http::Method;

use crate::error::{Asked, RouteError};
use crate::target::{Content, Target};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`: is this a registry, and is a login needed?
    Base,
    /// `/token`: a bearer token.
    Token,
    /// Content of a repository.
    Pull(Target),
    /// The tags of a repository, whose name is in the client's spelling.
    Tags(RepositoryName),
    /// The referrers of a manifest. The repository's name is in the client's spelling.
    Referrers(RepositoryName, Digest),
}

impl Route {
    /// The route with placeholders, for metrics and names of spans.
    pub(crate) fn template(&self) -> &'static str {
        match self {
            Self::Base => "/v2/",
            Self::Token => "/token",
            Self::Pull(Target { content: Content::Manifest(_), .. }) => "/v2/{name}/manifests/{reference}",
            Self::Pull(Target { content: Content::Blob(_), .. }) => "/v2/{name}/blobs/{digest}",
            Self::Tags(_) => "/v2/{name}/tags/list",
            Self::Referrers(..) => "/v2/{name}/referrers/{digest}",
        }
    }

    /// The requested content, if any.
    pub(crate) fn target(&self) -> Option<&Target> {
        match self {
            Self::Pull(target) => Some(target),
            Self::Base | Self::Token | Self::Tags(_) | Self::Referrers(..) => None,
        }
    }

    /// The requested repository, if any.
    pub(crate) fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Pull(target) => Some(&target.repository),
            Self::Tags(repository) | Self::Referrers(repository, _) => Some(repository),
            Self::Base | Self::Token => None,
        }
    }

    /// Parses method and path. Query parameters do not matter here.
    ///
    /// # Errors
    /// See [`RouteError`].
    pub(crate) fn parse(method: &Method, path: &str) -> Result<Self, RouteError> {
        let reads = method == Method::GET || method == Method::HEAD;
        match path {
            "/v2" | "/v2/" if reads => return Ok(Self::Base),
            "/token" if reads || method == Method::POST => return Ok(Self::Token),
            "/v2" | "/v2/" | "/token" => return Err(RouteError::Method),
            _ => {}
        }
        let rest = path.strip_prefix("/v2/").ok_or(RouteError::NoSuchPath)?;
        let target = if let Some((name, kind, last)) = split_from_end(rest) {
            let last = decode(last)?;
            let repository = || decode(name)?.parse().map_err(RouteError::from);
            match kind {
                "manifests" => Target { repository: repository()?, content: Content::Manifest(manifest(&last)?) },
                // Uploads have a path of their own, `<name>/blobs/uploads/`, and are refused because of their method.
                "blobs" if last != "uploads" => {
                    Target { repository: repository()?, content: Content::Blob(blob(&last)?) }
                }
                "tags" if last == "list" && reads => return Ok(Self::Tags(repository()?)),
                "tags" if last == "list" => return Err(RouteError::Method),
                "referrers" if reads => return Ok(Self::Referrers(repository()?, manifest_digest(&last)?)),
                "referrers" => return Err(RouteError::Method),
                "blobs" | "uploads" if !reads => return Err(RouteError::Method),
                _ => return Err(RouteError::NoSuchPath),
            }
        } else {
            return Err(RouteError::NoSuchPath);
        };
        if reads { Ok(Self::Pull(target)) } else { Err(RouteError::Method) }
    }
}

/// `<name>/<kind>/<last>`. The trailing slash or session of an upload is left to the kind.
fn split_from_end(path: &str) -> Option<(&str, &str, &str)> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let (rest, last) = path.rsplit_once('/')?;
    let (name, kind) = rest.rsplit_once('/')?;
    Some((name, kind, last))
}

/// Decodes `%XX` once. A decoded slash is not a separator; a name that contains one is refused because of its raw text.
fn decode(text: &str) -> Result<String, RouteError> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let lower = text.to_ascii_lowercase();
    if lower.contains("%2f") {
        return Err(RouteError::EncodedSlash);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| RouteError::NoSuchPath)
}

fn manifest(text: &str) -> Result<Reference, RouteError> {
    text.parse().map_err(|error| match error {
        ReferenceError::Tag(error) => RouteError::Tag(error),
        ReferenceError::Digest(error) => digest_error(error, Asked::Manifest),
    })
}

fn manifest_digest(text: &str) -> Result<Digest, RouteError> {
    text.parse().map_err(|error| digest_error(error, Asked::Manifest))
}

fn blob(text: &str) -> Result<Digest, RouteError> {
    text.parse().map_err(|error| digest_error(error, Asked::Blob))
}

fn digest_error(error: DigestError, asked: Asked) -> RouteError {
    match error {
        DigestError::Malformed => RouteError::MalformedDigest,
        DigestError::UnknownAlgorithm => RouteError::UnknownAlgorithm(asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(path: &str) -> Result<Route, RouteError> {
        Route::parse(&Method::GET, path)
    }

    fn pull(name: &str, content: Content) -> Result<Route, RouteError> {
        Ok(Route::Pull(Target { repository: name.parse().unwrap(), content }))
    }

    #[test]
    fn r_name_01_paths_are_parsed_from_their_end() {
        let tag = |tag: &str| Content::Manifest(Reference::Tag(tag.parse().unwrap()));
        assert_eq!(get("/v2/a/manifests/v1"), pull("a", tag("v1")));
        assert_eq!(get("/v2/manifests/blobs/tags/manifests/v1"), pull("manifests/blobs/tags", tag("v1")));
        assert_eq!(get(&format!("/v2/a/b/blobs/{DIGEST}")), pull("a/b", Content::Blob(DIGEST.parse().unwrap())));
        let by_digest = Content::Manifest(Reference::Digest(DIGEST.parse().unwrap()));
        assert_eq!(get(&format!("/v2/a/manifests/{DIGEST}")), pull("a", by_digest.clone()));
        assert_eq!(get(&format!("/v2/a/manifests/{}", DIGEST.replace(':', "%3A"))), pull("a", by_digest));
    }

    #[test]
    fn lists_of_tags_are_told_from_tags_and_repositories_of_that_name() {
        assert_eq!(get("/v2/a/b/tags/list"), Ok(Route::Tags("a/b".parse().unwrap())));
        assert_eq!(get("/v2/tags/tags/list"), Ok(Route::Tags("tags".parse().unwrap())));
        let tag = Content::Manifest(Reference::Tag("list".parse().unwrap()));
        assert_eq!(get("/v2/a/tags/manifests/list"), pull("a/tags", tag));
        assert!(matches!(get("/v2/A/tags/list"), Err(RouteError::Name(_))));
        assert_eq!(Route::parse(&Method::DELETE, "/v2/a/tags/list"), Err(RouteError::Method));
    }

    #[test]
    fn referrers_are_those_of_a_digest_and_told_from_repositories_of_that_name() {
        let of = |name: &str| Ok(Route::Referrers(name.parse().unwrap(), DIGEST.parse().unwrap()));
        assert_eq!(get(&format!("/v2/a/b/referrers/{DIGEST}")), of("a/b"));
        assert_eq!(get(&format!("/v2/referrers/referrers/{}", DIGEST.replace(':', "%3A"))), of("referrers"));
        assert_eq!(get("/v2/a/referrers/latest"), Err(RouteError::MalformedDigest));
        assert_eq!(Route::parse(&Method::DELETE, &format!("/v2/a/referrers/{DIGEST}")), Err(RouteError::Method));
    }

    #[test]
    fn r_name_04_malformed_references_are_told_apart() {
        assert!(matches!(get("/v2/a/manifests/.INVALID_MANIFEST_NAME"), Err(RouteError::Tag(_))));
        assert_eq!(get("/v2/a/manifests/sha256:baddigeststring"), Err(RouteError::MalformedDigest));
        assert_eq!(get("/v2/a/blobs/sha256:totallywrong"), Err(RouteError::MalformedDigest));
        assert_eq!(get("/v2/a/blobs/nodigest"), Err(RouteError::MalformedDigest));
        assert_eq!(get("/v2/a/blobs/blake3:00"), Err(RouteError::UnknownAlgorithm(Asked::Blob)));
    }

    #[test]
    fn r_name_09_an_encoded_slash_does_not_separate_and_dots_lead_nowhere() {
        assert_eq!(get("/v2/a%2Fb/manifests/v1"), Err(RouteError::EncodedSlash));
        assert!(matches!(get("/v2/../manifests/v1"), Err(RouteError::Name(_))));
        assert!(matches!(get("/v2/a/%2e%2e/manifests/v1"), Err(RouteError::Name(_))));
        assert!(matches!(get("/v2/A/manifests/v1"), Err(RouteError::Name(_))));
        assert!(matches!(get("/v2/a//b/manifests/v1"), Err(RouteError::Name(_))));
    }

    #[test]
    fn r_base_04_unknown_paths_and_wrong_methods_are_told_apart() {
        assert_eq!(get("/v2"), Ok(Route::Base));
        assert_eq!(get("/v2/"), Ok(Route::Base));
        assert_eq!(get("/token"), Ok(Route::Token));
        assert_eq!(Route::parse(&Method::POST, "/token"), Ok(Route::Token));
        for path in ["/", "/v1/", "/v2/a", "/v2/a/tags/all", "/v2/_catalog", "/v2/a/blobs/uploads/", "/v3"] {
            assert_eq!(get(path), Err(RouteError::NoSuchPath), "{path}");
        }
        for (method, path) in [
            (Method::POST, "/v2/a/blobs/uploads/"),
            (Method::PATCH, "/v2/a/blobs/uploads/x"),
            (Method::PUT, "/v2/a/manifests/v1"),
            (Method::DELETE, "/v2/a/manifests/v1"),
            (Method::PUT, "/v2/"),
        ] {
            assert_eq!(Route::parse(&method, path), Err(RouteError::Method), "{method} {path}");
        }
    }
}
