//! Templates.

use entrepot_domain::template::{RepositorySettings, ResourceTags, TagMutability};
use entrepot_domain::{NamespacePrefix, ResourceId, Template};

use super::{Violations, names, word};
use crate::node::v1 as node;
use crate::v1 as wire;
use crate::v1::template::AppliedFor;

/// The longest description.
const MAX_DESCRIPTION_CHARS: usize = 256;

/// The part of a template that operators decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The repositories it is for.
    pub prefix: NamespacePrefix,
    /// A description for people.
    pub description: String,
    /// Whether tags may move.
    pub tag_mutability: TagMutability,
    /// The marks of the repositories.
    pub resource_tags: ResourceTags,
}

impl Settings {
    /// Reads the settings of the template `id` from a request's field `template`.
    ///
    /// # Errors
    /// Names every field that is invalid or whose feature does not exist yet.
    pub fn read(id: &ResourceId, template: &wire::Template) -> Result<Self, Violations> {
        let mut violations = Violations::default();
        let v = &mut violations;
        let prefix = if template.prefix.is_empty() { id.as_str() } else { &template.prefix };
        let prefix = v.take("template.prefix", prefix.parse());
        let length = template.description.chars().count();
        if length > MAX_DESCRIPTION_CHARS {
            let why = format!("must be at most {MAX_DESCRIPTION_CHARS} characters long, and is {length}");
            v.add("template.description", why);
        }
        let tag_mutability = tag_mutability(v, template);
        let resource_tags = resource_tags(v, &template.resource_tags);
        refuse_what_is_not_there(v, template);
        let settings = (|| {
            Some(Self {
                prefix: prefix?,
                description: template.description.clone(),
                tag_mutability: tag_mutability?,
                resource_tags,
            })
        })();
        violations.finish(settings)
    }

    /// Writes the settings into a template.
    pub fn write(&self, template: &mut wire::Template) {
        template.prefix = self.prefix.to_string();
        template.applied_for = vec![AppliedFor::PullThroughCache.into()];
        template.description.clone_from(&self.description);
        template.image_tag_mutability = mutability_to_wire(&self.tag_mutability).into();
        template.image_tag_mutability_exclusion_filters = exclusions(&self.tag_mutability);
        template.resource_tags = resource_tags_to_wire(&self.resource_tags);
    }
}

fn tag_mutability(v: &mut Violations, template: &wire::Template) -> Option<TagMutability> {
    const FILTERS: &str = "template.image_tag_mutability_exclusion_filters";
    let Ok(said) = wire::TagMutability::try_from(template.image_tag_mutability) else {
        v.add("template.image_tag_mutability", "is not known here; this control plane may be older than the caller");
        return None;
    };
    let is_said = said != wire::TagMutability::Unspecified;
    let name = if is_said { said } else { wire::TagMutability::Mutable }.as_str_name();
    let name = word("TAG_MUTABILITY_", name);
    let mut patterns = Vec::new();
    for (i, filter) in template.image_tag_mutability_exclusion_filters.iter().enumerate() {
        patterns.extend(v.take(&format!("{FILTERS}[{i}]"), filter.parse()));
    }
    if patterns.len() < template.image_tag_mutability_exclusion_filters.len() {
        return None;
    }
    v.take(FILTERS, TagMutability::new(name, patterns))
}

fn resource_tags(v: &mut Violations, sent: &[wire::ResourceTag]) -> ResourceTags {
    let mut tags = ResourceTags::default();
    for (i, tag) in sent.iter().enumerate() {
        v.take(&format!("template.resource_tags[{i}]"), tags.add(&tag.key, &tag.value));
    }
    tags
}

/// Refuses fields that have no effect, since accepting them would be a false promise.
fn refuse_what_is_not_there(v: &mut Violations, template: &wire::Template) {
    for (i, way) in template.applied_for.iter().enumerate() {
        if !matches!(AppliedFor::try_from(*way), Ok(AppliedFor::Unspecified | AppliedFor::PullThroughCache)) {
            let why = "is not supported yet: repositories are created by first pulls alone; leave it out, or say \
                       APPLIED_FOR_PULL_THROUGH_CACHE";
            v.add(format!("template.applied_for[{i}]"), why);
        }
    }
    for (field, is_set, why) in [
        (
            "repository_policy",
            !template.repository_policy.is_empty(),
            "is not supported yet: who may pull is decided by permissions of principals; leave it empty",
        ),
        (
            "lifecycle_policy",
            !template.lifecycle_policy.is_empty(),
            "is not supported yet: repositories keep all their images; leave it empty",
        ),
        (
            "encryption_configuration",
            template.encryption_configuration.is_some(),
            "is not supported yet: how content is encrypted is decided by the bucket; leave it out",
        ),
        (
            "custom_role_arn",
            !template.custom_role_arn.is_empty(),
            "means nothing here: nodes create repositories in their own right; leave it empty",
        ),
    ] {
        if is_set {
            v.add(format!("template.{field}"), why);
        }
    }
}

/// The mutability in the form of the API.
pub fn mutability_to_wire(mutability: &TagMutability) -> wire::TagMutability {
    match mutability {
        TagMutability::Mutable => wire::TagMutability::Mutable,
        TagMutability::Immutable => wire::TagMutability::Immutable,
        TagMutability::MutableExcept(_) => wire::TagMutability::MutableWithExclusion,
        TagMutability::ImmutableExcept(_) => wire::TagMutability::ImmutableWithExclusion,
    }
}

/// The exempt patterns as text.
pub fn exclusions(mutability: &TagMutability) -> Vec<String> {
    mutability.exclusions().iter().map(ToString::to_string).collect()
}

/// The marks in the form of the API.
pub fn resource_tags_to_wire(tags: &ResourceTags) -> Vec<wire::ResourceTag> {
    tags.iter().map(|(key, value)| wire::ResourceTag { key: key.to_owned(), value: value.to_owned() }).collect()
}

/// Writes the settings that a repository was created with into a repository.
pub fn write_repository(settings: &RepositorySettings, repository: &mut wire::Repository) {
    repository.template = settings.template.as_ref().map(names::template).unwrap_or_default();
    repository.image_tag_mutability = mutability_to_wire(&settings.tag_mutability).into();
    repository.image_tag_mutability_exclusion_filters = exclusions(&settings.tag_mutability);
    repository.resource_tags = resource_tags_to_wire(&settings.resource_tags);
}

/// Reads a template from a snapshot.
///
/// # Errors
/// Names every invalid field.
pub fn from_snapshot(template: &node::SnapshotTemplate) -> Result<Template, Violations> {
    let mut violations = Violations::default();
    let uid = violations.take("uid", template.uid.parse());
    let id = violations.take("template_id", template.template_id.parse());
    let prefix = violations.take("prefix", template.prefix.parse());
    let tag_mutability =
        violations.take("settings.tag_mutability", mutability_from_snapshot(template.settings.as_ref()));
    let template = (|| {
        let resource_tags = settings_from_node(template.settings.as_ref()).resource_tags;
        Some(Template { uid: uid?, id: id?, prefix: prefix?, tag_mutability: tag_mutability?, resource_tags })
    })();
    violations.finish(template)
}

/// A template in the form of a snapshot.
pub fn to_snapshot(template: &Template) -> node::SnapshotTemplate {
    node::SnapshotTemplate {
        uid: template.uid.to_string(),
        template_id: template.id.to_string(),
        prefix: template.prefix.to_string(),
        settings: Some(settings_to_node(&template.settings())),
        minimum_reader: 0,
    }
}

/// Reads whether tags may move. An unknown value must not be ignored, since it may forbid that.
fn mutability_from_snapshot(settings: Option<&node::RepositorySettings>) -> Result<TagMutability, String> {
    let Some(settings) = settings.filter(|settings| !settings.tag_mutability.is_empty()) else {
        return Ok(TagMutability::default());
    };
    let exclusions: Result<Vec<_>, _> = settings.tag_mutability_exclusions.iter().map(|text| text.parse()).collect();
    let exclusions = exclusions.map_err(|error| format!("{error}"))?;
    TagMutability::new(&settings.tag_mutability, exclusions).map_err(|error| error.to_string())
}

/// Reads the settings of a new repository; unknown parts are left out.
pub fn settings_from_node(settings: Option<&node::RepositorySettings>) -> RepositorySettings {
    let Some(settings) = settings else { return RepositorySettings::default() };
    RepositorySettings::lenient(
        &settings.template_id,
        &settings.tag_mutability,
        &settings.tag_mutability_exclusions,
        settings.resource_tags.iter().map(|tag| (tag.key.as_str(), tag.value.as_str())),
    )
}

/// The settings of a new repository in wire form.
pub fn settings_to_node(settings: &RepositorySettings) -> node::RepositorySettings {
    let tag = |(key, value): (&str, &str)| node::ResourceTag { key: key.to_owned(), value: value.to_owned() };
    node::RepositorySettings {
        template_id: settings.template.as_ref().map(ToString::to_string).unwrap_or_default(),
        tag_mutability: settings.tag_mutability.as_str().to_owned(),
        tag_mutability_exclusions: exclusions(&settings.tag_mutability),
        resource_tags: settings.resource_tags.iter().map(tag).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ResourceId {
        "hub".parse().unwrap()
    }

    fn tag(key: &str, value: &str) -> wire::ResourceTag {
        wire::ResourceTag { key: key.into(), value: value.into() }
    }

    #[test]
    fn settings_survive_the_wire_and_the_snapshot() {
        let sent = wire::Template {
            description: "for teams".into(),
            image_tag_mutability: wire::TagMutability::ImmutableWithExclusion.into(),
            image_tag_mutability_exclusion_filters: vec!["latest".into(), "edge*".into()],
            resource_tags: vec![tag("team", "platform")],
            ..Default::default()
        };
        let settings = Settings::read(&id(), &sent).unwrap();
        assert_eq!(settings.prefix.to_string(), "hub");
        let mut written = wire::Template::default();
        settings.write(&mut written);
        assert_eq!(written.applied_for, [i32::from(AppliedFor::PullThroughCache)]);
        assert_eq!(Settings::read(&id(), &written).unwrap(), settings);
        let template = Template {
            uid: uuid::Uuid::nil(),
            id: id(),
            prefix: "ROOT".parse().unwrap(),
            tag_mutability: settings.tag_mutability,
            resource_tags: settings.resource_tags,
        };
        assert_eq!(from_snapshot(&to_snapshot(&template)), Ok(template));
    }

    #[test]
    fn what_is_wrong_or_not_there_yet_is_named_at_once() {
        let sent = wire::Template {
            prefix: "A".into(),
            applied_for: vec![AppliedFor::PullThroughCache.into(), AppliedFor::Replication.into(), 9],
            description: "x".repeat(257),
            image_tag_mutability_exclusion_filters: vec!["v*".into()],
            resource_tags: vec![tag("a", ""), tag("a", "")],
            repository_policy: "{}".into(),
            lifecycle_policy: "{}".into(),
            encryption_configuration: Some(wire::EncryptionConfiguration::default()),
            custom_role_arn: "arn:aws:iam::1:role/x".into(),
            ..Default::default()
        };
        let violations = Settings::read(&id(), &sent).unwrap_err();
        let fields: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "template.prefix",
                "template.description",
                "template.image_tag_mutability_exclusion_filters",
                "template.resource_tags[1]",
                "template.applied_for[1]",
                "template.applied_for[2]",
                "template.repository_policy",
                "template.lifecycle_policy",
                "template.encryption_configuration",
                "template.custom_role_arn",
            ]
        );
    }
}
