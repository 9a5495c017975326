//! Resource names: `rules/hub`, `repositories/hub/library/nginx/tags/1.27`.
//!
//! Repository names contain slashes. So names are parsed by the expected type, and the parts after the repository from
//! the right.

use std::fmt::Display;
use std::str::FromStr;

use entrepot_domain::{Digest, Reference, RepositoryName, ResourceId, Tag};
use uuid::Uuid;

/// Why a text is not the expected resource name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It has another form.
    #[error("must be `{0}`")]
    Shape(&'static str),
    /// It has the right form, but one part is invalid.
    #[error("must be `{shape}`: {why}")]
    Part {
        /// The expected form.
        shape: &'static str,
        /// Why the part is invalid.
        why: String,
    },
}

/// Selects an image of a repository, by digest or by one of its tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSelector {
    Digest(Digest),
    Tag(Tag),
}

/// `upstreams/<id>`.
pub fn upstream(id: &ResourceId) -> String {
    format!("upstreams/{id}")
}

/// `rules/<id>`.
pub fn rule(id: &ResourceId) -> String {
    format!("rules/{id}")
}

/// `templates/<id>`.
pub fn template(id: &ResourceId) -> String {
    format!("templates/{id}")
}

/// `principals/<id>`.
pub fn principal(id: &ResourceId) -> String {
    format!("principals/{id}")
}

/// `principals/<id>/accessKeys/<key id>`.
pub fn access_key(principal: &ResourceId, key_id: &str) -> String {
    format!("principals/{principal}/accessKeys/{key_id}")
}

/// `nodes/<id>`.
pub fn node(id: &ResourceId) -> String {
    format!("nodes/{id}")
}

/// `damagedObjects/<uuid>`.
pub fn damaged_object(object: Uuid) -> String {
    format!("damagedObjects/{object}")
}

/// `answers/<request id>`.
pub fn answer(request_id: &str) -> String {
    format!("answers/{request_id}")
}

/// `operations/<uid>`.
pub fn operation(uid: Uuid) -> String {
    format!("operations/{uid}")
}

/// `repositories/<repository name>`.
pub fn repository(name: &RepositoryName) -> String {
    format!("repositories/{name}")
}

/// `repositories/<repository name>/images/<digest>`.
pub fn image(repository: &RepositoryName, digest: &Digest) -> String {
    format!("repositories/{repository}/images/{digest}")
}

/// `repositories/<repository name>/images/<digest>` or `repositories/<repository name>/tags/<tag>`.
pub fn reference(repository: &RepositoryName, reference: &Reference) -> String {
    match reference {
        Reference::Digest(digest) => image(repository, digest),
        Reference::Tag(tag) => format!("repositories/{repository}/tags/{tag}"),
    }
}

/// Reads `nodes/<id>`.
///
/// # Errors
/// If it is something else.
pub fn parse_node(name: &str) -> Result<ResourceId, Error> {
    below(name, "nodes/", "nodes/<id>")
}

/// Reads `operations/<uid>`.
///
/// # Errors
/// If it is something else.
pub fn parse_operation(name: &str) -> Result<Uuid, Error> {
    below(name, "operations/", "operations/<uid>")
}

/// Reads `upstreams/<id>`.
///
/// # Errors
/// If it is something else.
pub fn parse_upstream(name: &str) -> Result<ResourceId, Error> {
    below(name, "upstreams/", "upstreams/<id>")
}

/// Reads `rules/<id>`.
///
/// # Errors
/// If it is something else.
pub fn parse_rule(name: &str) -> Result<ResourceId, Error> {
    below(name, "rules/", "rules/<id>")
}

/// Reads `templates/<id>`.
///
/// # Errors
/// If it is something else.
pub fn parse_template(name: &str) -> Result<ResourceId, Error> {
    below(name, "templates/", "templates/<id>")
}

/// Reads `principals/<id>`.
///
/// # Errors
/// If it is something else.
pub fn parse_principal(name: &str) -> Result<ResourceId, Error> {
    below(name, "principals/", "principals/<id>")
}

/// Reads `principals/<id>/accessKeys/<key id>`.
///
/// # Errors
/// If it is something else.
pub fn parse_access_key(name: &str) -> Result<(ResourceId, String), Error> {
    const SHAPE: &str = "principals/<id>/accessKeys/<key id>";
    let (principal, key_id) = name.split_once("/accessKeys/").ok_or(Error::Shape(SHAPE))?;
    if key_id.is_empty() || key_id.contains('/') {
        return Err(Error::Shape(SHAPE));
    }
    Ok((below(principal, "principals/", SHAPE)?, key_id.to_owned()))
}

/// Reads `answers/<request id>`, and returns the node that gave the answer, and the whole request id. A request id is
/// the node's id, a hyphen, and a part that is unique for the node.
///
/// # Errors
/// If it is something else.
pub fn parse_answer(name: &str) -> Result<(ResourceId, String), Error> {
    const SHAPE: &str = "answers/<request id>";
    let request_id = name.strip_prefix("answers/").ok_or(Error::Shape(SHAPE))?;
    let (node, number) = request_id.rsplit_once('-').ok_or(Error::Shape(SHAPE))?;
    if number.len() != 32 || !number.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Error::Part { shape: SHAPE, why: format!("`{request_id}` is not an id that nodes give") });
    }
    Ok((part(node, SHAPE)?, request_id.to_owned()))
}

/// Reads `repositories/<repository name>`.
///
/// # Errors
/// If it is something else.
pub fn parse_repository(name: &str) -> Result<RepositoryName, Error> {
    below(name, "repositories/", "repositories/<repository name>")
}

/// Reads `repositories/<repository name>/images/<digest>` or `repositories/<repository name>/tags/<tag>`.
///
/// # Errors
/// If it is something else.
pub fn parse_image(name: &str) -> Result<(RepositoryName, ImageSelector), Error> {
    const SHAPE: &str = "repositories/<repository name>/images/<digest>` or `repositories/<repository name>/tags/<tag>";
    let (rest, last) = name.rsplit_once('/').ok_or(Error::Shape(SHAPE))?;
    let (repository, collection) = rest.rsplit_once('/').ok_or(Error::Shape(SHAPE))?;
    let selector = match collection {
        "images" => ImageSelector::Digest(part(last, SHAPE)?),
        "tags" => ImageSelector::Tag(part(last, SHAPE)?),
        _ => return Err(Error::Shape(SHAPE)),
    };
    Ok((below(repository, "repositories/", SHAPE)?, selector))
}

fn below<T: FromStr<Err: Display>>(name: &str, collection: &str, shape: &'static str) -> Result<T, Error> {
    part(name.strip_prefix(collection).ok_or(Error::Shape(shape))?, shape)
}

fn part<T: FromStr<Err: Display>>(text: &str, shape: &'static str) -> Result<T, Error> {
    text.parse().map_err(|error: T::Err| Error::Part { shape, why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_there_and_back() {
        let id: ResourceId = "docker-hub".parse().unwrap();
        assert_eq!(parse_upstream(&upstream(&id)), Ok(id.clone()));
        assert_eq!(parse_rule(&rule(&id)), Ok(id.clone()));
        assert_eq!(parse_node(&node(&id)), Ok(id.clone()));
        assert_eq!(parse_principal(&principal(&id)), Ok(id.clone()));
        assert_eq!(parse_access_key(&access_key(&id, "K1")), Ok((id, "K1".into())));
        let request_id = "node-1-0193a7c2d4f07b118e5d3a6b9c0d1e2f";
        assert_eq!(parse_answer(&answer(request_id)), Ok(("node-1".parse().unwrap(), request_id.into())));
        let nginx: RepositoryName = "hub/library/nginx".parse().unwrap();
        assert_eq!(parse_repository(&repository(&nginx)), Ok(nginx.clone()));
        let digest = Digest::sha256(b"");
        assert_eq!(parse_image(&image(&nginx, &digest)), Ok((nginx.clone(), ImageSelector::Digest(digest))));
        let tag = ImageSelector::Tag("1.27".parse().unwrap());
        assert_eq!(parse_image("repositories/hub/library/nginx/tags/1.27"), Ok((nginx, tag)));
    }

    #[test]
    fn what_follows_a_repository_is_read_from_the_right() {
        let (repository, _) = parse_image("repositories/a/tags/b/images/tags/v1").unwrap();
        assert_eq!(repository.as_str(), "a/tags/b/images");
    }

    #[test]
    fn other_shapes_are_refused_with_the_right_one() {
        assert_eq!(parse_rule("hub").unwrap_err().to_string(), "must be `rules/<id>`");
        assert!(parse_rule("rules/Hub").unwrap_err().to_string().contains("`Hub` must be 1 to 63"));
        for name in ["", "repositories/a", "repositories/a/images", "repositories/a/images/v1", "a/tags/v1"] {
            assert!(parse_image(name).is_err(), "{name}");
        }
        for name in ["answers/", "answers/x", "answers/node-1-77", "node-1-0193a7c2d4f07b118e5d3a6b9c0d1e2f"] {
            assert!(parse_answer(name).is_err(), "{name}");
        }
        for name in ["principals/a", "principals/a/accessKeys/", "principals/a/accessKeys/b/c", "accessKeys/b"] {
            assert!(parse_access_key(name).is_err(), "{name}");
        }
    }
}
