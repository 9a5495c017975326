//! Rules map namespace prefixes to upstreams.

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::freshness;
use crate::name::{NameError, NamespacePrefix, RepositoryName, ResourceId};
use crate::upstream::UpstreamKind;

/// Maps a namespace prefix to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Identifies the rule for ever, even if another rule later takes its id or prefix.
    pub uid: Uuid,
    /// What operators call it.
    pub id: ResourceId,
    /// Which repositories it covers.
    pub prefix: NamespacePrefix,
    /// The upstream that fills them.
    pub upstream_uid: Uuid,
    /// The prefix at the upstream, which goes in front of the rest of the name.
    pub upstream_prefix: NamespacePrefix,
    /// How long its tags are trusted, and what happens then.
    pub freshness: freshness::Policy,
}

/// The two names of a repository that a rule covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Its name here, in the one spelling under which it is kept.
    pub repository: RepositoryName,
    pub upstream_repository: RepositoryName,
}

impl Rule {
    /// Identifies the place where this rule's content comes from. It changes when the rule is pointed elsewhere.
    ///
    /// Content that landed under one origin proves nothing about what another origin may show, and a tag confirmed by
    /// one origin was never confirmed by the other. So records carry the origin instead of the rule.
    pub fn origin(&self) -> Uuid {
        let mut hasher = Sha256::new();
        hasher.update(self.uid);
        hasher.update(self.upstream_uid);
        hasher.update(self.upstream_prefix.path());
        let hash: [u8; 32] = hasher.finalize().into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// The names that a client's `name` stands for under this rule, whose upstream is of `kind`. A name that the rule
    /// does not cover is treated as if it were below the rule's prefix.
    ///
    /// # Errors
    /// If the name at the upstream, or the canonical name here, is too long.
    pub fn map(&self, name: &RepositoryName, kind: UpstreamKind) -> Result<Mapped, NameError> {
        let rest = self.prefix.strip(name).unwrap_or(name.as_str());
        // The upstream's own naming quirk applies to the whole name that the upstream sees.
        if !self.upstream_prefix.is_root() {
            return Ok(Mapped { repository: name.clone(), upstream_repository: self.upstream_prefix.join(rest)? });
        }
        let canonical = kind.canonical(rest)?;
        Ok(Mapped { repository: self.prefix.join(canonical.as_str())?, upstream_repository: canonical })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(prefix: &str, upstream_prefix: &str) -> Rule {
        Rule {
            uid: Uuid::nil(),
            id: "r".parse().unwrap(),
            prefix: prefix.parse().unwrap(),
            upstream_uid: Uuid::nil(),
            upstream_prefix: upstream_prefix.parse().unwrap(),
            freshness: freshness::Policy::default(),
        }
    }

    #[test]
    fn names_are_mapped_as_ecr_maps_them() {
        for (prefix, upstream_prefix, name, upstream_name) in [
            ("ecr-public", "ROOT", "ecr-public/my-app/image1", "my-app/image1"),
            ("ROOT", "ROOT", "my-app/image1", "my-app/image1"),
            ("team-a", "team-a", "team-a/myapp/image1", "team-a/myapp/image1"),
            ("my-app", "upstream-app", "my-app/image1", "upstream-app/image1"),
            ("a/b", "c/d", "a/b/x", "c/d/x"),
        ] {
            let name: RepositoryName = name.parse().unwrap();
            let mapped = rule(prefix, upstream_prefix).map(&name, UpstreamKind::Oci).unwrap();
            assert_eq!((mapped.repository, mapped.upstream_repository.as_str()), (name, upstream_name));
        }
    }

    #[test]
    fn a_rule_that_is_pointed_elsewhere_has_another_origin() {
        let (a, b) = (rule("a", "ROOT"), rule("a", "x"));
        assert_ne!(a.origin(), b.origin());
        let mut renamed = a.clone();
        renamed.prefix = "c".parse().unwrap();
        renamed.freshness.mode = freshness::Mode::Off;
        assert_eq!(a.origin(), renamed.origin());
    }

    #[test]
    fn docker_hubs_two_spellings_are_one_repository() {
        for name in ["hub/nginx", "hub/library/nginx"] {
            let mapped = rule("hub", "ROOT").map(&name.parse().unwrap(), UpstreamKind::DockerHub).unwrap();
            assert_eq!(mapped.repository.as_str(), "hub/library/nginx");
            assert_eq!(mapped.upstream_repository.as_str(), "library/nginx");
        }
        let mapped = rule("nginx", "grafana").map(&"nginx/loki".parse().unwrap(), UpstreamKind::DockerHub).unwrap();
        assert_eq!((mapped.repository.as_str(), mapped.upstream_repository.as_str()), ("nginx/loki", "grafana/loki"));
    }

    #[test]
    fn a_name_that_grows_too_long_is_an_error() {
        let name = format!("h/{}", "a".repeat(250)).parse().unwrap();
        assert!(rule("h", "ROOT").map(&name, UpstreamKind::DockerHub).is_err());
    }
}
