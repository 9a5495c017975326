//! Resource names, which people may write with or without their collection.

use crate::error::Error;

/// `rules/demo` for both `demo` and `rules/demo`.
pub(crate) fn full(collection: &str, name: &str) -> String {
    format!("{collection}/{}", short(collection, name))
}

/// `demo` for both `demo` and `rules/demo`.
pub(crate) fn short<'a>(collection: &str, name: &'a str) -> &'a str {
    name.strip_prefix(collection).and_then(|rest| rest.strip_prefix('/')).unwrap_or(name)
}

/// The resource for `<repository>:<tag>`, `<repository>@<digest>` or a full image name.
///
/// If both a tag and a digest are given, the digest decides.
pub(crate) fn image(text: &str) -> Result<String, Error> {
    let path = short("repositories", text);
    if path.contains("/images/sha256:") || path.contains("/images/sha512:") || (path != text && path.contains("/tags/"))
    {
        return Ok(full("repositories", path));
    }
    if let Some((repository, digest)) = path.split_once('@') {
        return Ok(format!("repositories/{}/images/{digest}", without_tag(repository)));
    }
    match path.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        Some((repository, tag)) => Ok(format!("repositories/{repository}/tags/{tag}")),
        None => Err(Error::Usage(format!(
            "`{text}` does not say which image: write `{path}:TAG` or `{path}@sha256:…`; `entrepot image list {path}` \
             shows them"
        ))),
    }
}

/// The resource for `<principal>/<key id>` or a full access key name.
pub(crate) fn access_key(text: &str) -> Result<String, Error> {
    match short("principals", text).split('/').collect::<Vec<_>>()[..] {
        [principal, key] | [principal, "accessKeys", key] => Ok(format!("principals/{principal}/accessKeys/{key}")),
        _ => Err(Error::Usage(format!("`{text}` is not `PRINCIPAL/KEY_ID`"))),
    }
}

fn without_tag(repository: &str) -> &str {
    match repository.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => repository,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_collection_may_be_left_out() {
        assert_eq!(full("rules", "demo"), "rules/demo");
        assert_eq!(full("rules", "rules/demo"), "rules/demo");
        assert_eq!(full("repositories", "demo/team/app"), "repositories/demo/team/app");
        assert_eq!(full("rules", "rulesmith"), "rules/rulesmith");
    }

    #[test]
    fn images_are_named_by_tag_or_digest() {
        for (text, name) in [
            ("demo/team/app:v1".to_owned(), "repositories/demo/team/app/tags/v1".to_owned()),
            (format!("demo/app@{DIGEST}"), format!("repositories/demo/app/images/{DIGEST}")),
            (format!("demo/app:v1@{DIGEST}"), format!("repositories/demo/app/images/{DIGEST}")),
            (format!("repositories/demo/app/images/{DIGEST}"), format!("repositories/demo/app/images/{DIGEST}")),
            ("repositories/demo/app/tags/v1".to_owned(), "repositories/demo/app/tags/v1".to_owned()),
            ("demo/tags/app:v1".to_owned(), "repositories/demo/tags/app/tags/v1".to_owned()),
        ] {
            assert_eq!(image(&text).unwrap(), name);
        }
        assert!(image("demo/team/app").unwrap_err().to_string().contains("entrepot image list demo/team/app"));
    }

    #[test]
    fn access_keys_are_named_below_their_principal() {
        for text in ["ci/AK1", "principals/ci/AK1", "principals/ci/accessKeys/AK1"] {
            assert_eq!(access_key(text).unwrap(), "principals/ci/accessKeys/AK1");
        }
        assert!(access_key("AK1").is_err());
    }
}
