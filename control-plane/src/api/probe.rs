//! What a rule would do: a test of its upstream, and an explanation.

use std::time::Duration;

use entrepot_domain::freshness::{Mode, Policy, TagPolicy, exact};
use entrepot_domain::rule::Mapped;
use entrepot_domain::template::RepositorySettings;
use entrepot_domain::{ImageName, Reference, RepositoryName, Template as DomainTemplate};
use entrepot_proto::convert::freshness::mode_to_wire;
use entrepot_proto::convert::{duration, names, template as template_convert};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::validation_step::{Kind, State};
use entrepot_upstream::{ProbeKind, ProbeState, ProbeStep};
use tokio::time::timeout;

use super::resource::{self, Resource as _};
use super::upstreams as upstreams_api;
use crate::db::rules::Rule;
use crate::db::upstreams::Upstream;
use crate::db::{Tx, repositories, rules, templates, upstreams};
use crate::error::ApiError;
use crate::plane::Plane;

/// How long the test of an upstream may take.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// Tests a rule's upstream step by step.
pub(super) async fn validate(
    plane: &Plane,
    request: &pb::ValidateRuleRequest,
) -> Result<pb::ValidateRuleResponse, ApiError> {
    let id = resource::parse_name::<Rule>("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("validate_rule").await?;
    let rule = resource::require::<Rule>(&tx, &id).await?;
    let upstream = upstream_of(&tx, &rule).await?;
    drop(tx);
    drop(connection);

    let sample = sample(&rule, &upstream, &request.image)?;
    let (valid, steps) = steps(plane, &upstream, sample.as_ref()).await?;
    Ok(pb::ValidateRuleResponse { valid, steps })
}

/// Tests an upstream step by step. Also returns whether no step failed.
pub(super) async fn steps(
    plane: &Plane,
    upstream: &Upstream,
    sample: Option<&(RepositoryName, Reference)>,
) -> Result<(bool, Vec<pb::ValidationStep>), ApiError> {
    let client = upstreams_api::client(plane, upstream)?;
    let asked = sample.map(|(repository, reference)| (repository, reference));
    let steps: Vec<pb::ValidationStep> = match timeout(PROBE_LIMIT, client.probe(asked)).await {
        Ok(steps) => steps.into_iter().map(step_to_wire).collect(),
        Err(_) => vec![pb::ValidationStep {
            kind: Kind::Name.into(),
            state: State::Failed.into(),
            message: format!("the upstream has not answered within {} s", PROBE_LIMIT.as_secs()),
        }],
    };
    let valid = steps.iter().all(|step| step.state() != State::Failed);
    Ok((valid, steps))
}

/// Explains which rule covers a name, and what would be fetched from where.
pub(super) async fn explain(
    plane: &Plane,
    request: &pb::ExplainRuleRequest,
) -> Result<pb::ExplainRuleResponse, ApiError> {
    let image: ImageName = parse_image(&request.image)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("explain_rule").await?;
    let Some(rule) = &rules::for_longest(&tx, &prefixes(&image.repository)).await? else {
        let exists = repositories::get(&tx, &image.repository).await?.is_some();
        return Ok(uncovered(&image, exists));
    };
    let upstream = upstream_of(&tx, rule).await?;
    let mapped = map(rule, &upstream, &image.repository)?;
    let existing = repositories::get(&tx, &mapped.repository).await?;
    let creation = match existing {
        Some(_) => None,
        None => Some(creation(&tx, rule, &mapped.repository).await?),
    };
    let kept = existing
        .map(|repository| repository.settings)
        .or_else(|| creation.as_ref().and_then(|(template, _)| template.as_ref().map(DomainTemplate::settings)));
    Ok(covered(rule, &upstream, &image, &mapped, Outlook { creation, settings: kept.unwrap_or_default() }))
}

/// What a pull would find or create here.
struct Outlook {
    /// The template, and the repository that would be created; `None` if it exists.
    creation: Option<(Option<DomainTemplate>, pb::Repository)>,
    /// The settings of the existing or future repository.
    settings: RepositorySettings,
}

/// The repository as a first pull would create it.
async fn creation(
    tx: &Tx<'_>,
    rule: &Rule,
    name: &RepositoryName,
) -> Result<(Option<DomainTemplate>, pb::Repository), ApiError> {
    let template = templates::for_longest(tx, &prefixes(name)).await?.map(|found| found.template);
    let settings = template.as_ref().map(DomainTemplate::settings).unwrap_or_default();
    let mut repository = pb::Repository {
        name: names::repository(name),
        cached: true,
        rule: names::rule(&rule.rule.id),
        rule_uid: rule.rule.uid.to_string(),
        ..Default::default()
    };
    template_convert::write_repository(&settings, &mut repository);
    Ok((template, repository))
}

fn uncovered(image: &ImageName, repository_exists: bool) -> pb::ExplainRuleResponse {
    let explanation = if repository_exists {
        "no rule covers this name: what is cached is served, and nothing is fetched".to_owned()
    } else {
        format!(
            "no rule covers this name, so a pull gets 404: create a rule for a prefix of `{}`, or for `ROOT`",
            image.repository
        )
    };
    pb::ExplainRuleResponse {
        repository: names::repository(&image.repository),
        repository_exists,
        explanation,
        ..Default::default()
    }
}

fn covered(
    rule: &Rule,
    upstream: &Upstream,
    image: &ImageName,
    mapped: &Mapped,
    outlook: Outlook,
) -> pb::ExplainRuleResponse {
    let manifest_url = upstream.settings.endpoint.manifest_url(&mapped.upstream_repository, &image.reference);
    let Outlook { creation, settings } = outlook;
    let repository_exists = creation.is_none();
    let created = match &creation {
        None => "which exists".to_owned(),
        Some((None, _)) => "which the first pull creates".to_owned(),
        Some((Some(template), _)) => format!("which the first pull creates by the template `{}`", template.id),
    };
    let explanation = format!(
        "`{image}` is covered by the rule `{}` (prefix `{}`): it is kept in the repository `{}`, {created}, and filled from \
         the upstream `{}` as `{}`; {}",
        rule.rule.id,
        rule.rule.prefix,
        mapped.repository,
        upstream.id,
        mapped.upstream_repository,
        trust(&rule.rule.freshness, &image.reference, &settings),
    );
    let tag_policy = tag_policy(&rule.rule.freshness, &image.reference, &settings);
    let (window, mode, tag_pattern) = match tag_policy {
        Some(TagPolicy::Movable { window, mode, pattern }) => (Some(window), Some(mode), pattern),
        Some(TagPolicy::Immutable(pattern)) => (None, None, Some(pattern)),
        None => (None, None, None),
    };
    let (template, created) = creation.unzip();
    let template = template.flatten();
    pb::ExplainRuleResponse {
        covered: true,
        rule: Some(rule.to_wire()),
        repository: names::repository(&mapped.repository),
        repository_exists,
        upstream: names::upstream(&upstream.id),
        upstream_repository: mapped.upstream_repository.to_string(),
        manifest_url: manifest_url.to_string(),
        explanation,
        window: window.map(duration),
        mode: mode.map_or(pb::rule::Mode::Unspecified, mode_to_wire).into(),
        tag_pattern: tag_pattern.map(ToString::to_string).unwrap_or_default(),
        template: template.map(|template| names::template(&template.id)).unwrap_or_default(),
        created,
    }
}

/// The policy for a reference. Digests never change, and neither do tags that may not move in their repository.
fn tag_policy<'p>(policy: &'p Policy, reference: &Reference, settings: &RepositorySettings) -> Option<TagPolicy<'p>> {
    match reference {
        Reference::Tag(tag) if settings.tag_mutability.freezes(tag) => None,
        Reference::Tag(tag) => Some(policy.for_tag(tag)),
        Reference::Digest(_) => None,
    }
}

/// The same policy as text for people.
fn trust(policy: &Policy, reference: &Reference, settings: &RepositorySettings) -> String {
    let (window, mode, pattern) = match tag_policy(policy, reference, settings) {
        None if matches!(reference, Reference::Tag(_)) => {
            return format!(
                "once the tag is known, the upstream is never asked about it again, since the repository's tags are {}",
                settings.tag_mutability.as_str()
            );
        }
        None => return "a digest never changes, so the upstream is not asked about it again".to_owned(),
        Some(TagPolicy::Immutable(pattern)) => {
            return format!(
                "once the tag is known, the upstream is never asked about it again, since it matches `{pattern}`"
            );
        }
        Some(TagPolicy::Movable { window, mode, pattern }) => (window, mode, pattern),
    };
    let whose = pattern.map_or(String::new(), |pattern| format!(" (by `{pattern}` of its tag windows)"));
    let age = exact(window);
    match mode {
        Mode::Blocking if window.is_zero() => format!("the tag is asked for before each pull{whose}"),
        Mode::Blocking => format!("once {age} old, the tag is asked for before it is served{whose}"),
        Mode::Background if window.is_zero() => format!("the tag is asked for behind each pull{whose}"),
        Mode::Background => {
            format!("once {age} old, the tag is asked for behind the pull that it is served to{whose}")
        }
        Mode::Off => format!(
            "once the tag is known, it is served as it is, and the upstream is never asked about it automatically{whose}"
        ),
    }
}

/// The image to request from the upstream: the caller's, or one that its kind is known to have.
fn sample(rule: &Rule, upstream: &Upstream, image: &str) -> Result<Option<(RepositoryName, Reference)>, ApiError> {
    if image.is_empty() {
        let known = upstream.settings.kind.profile().sample;
        // The kind's sample is at the upstream's root, not below a prefix.
        let known = known.filter(|_| rule.rule.upstream_prefix.is_root());
        return Ok(known.and_then(|(repository, tag)| Some((repository.parse().ok()?, tag.parse().ok()?))));
    }
    let image = parse_image(image)?;
    if rule.rule.prefix.strip(&image.repository).is_none() {
        let why = format!("must be below the rule's prefix, such as `{}/some/image:latest`", rule.rule.prefix);
        return Err(ApiError::field("image", why));
    }
    Ok(Some((map(rule, upstream, &image.repository)?.upstream_repository, image.reference)))
}

fn map(rule: &Rule, upstream: &Upstream, name: &RepositoryName) -> Result<Mapped, ApiError> {
    let mapped = rule.rule.map(name, upstream.settings.kind);
    mapped.map_err(|error| ApiError::field("image", format!("has a name at the upstream that {error}")))
}

async fn upstream_of(tx: &Tx<'_>, rule: &Rule) -> Result<Upstream, ApiError> {
    let upstream = upstreams::get(tx, &rule.upstream_id).await?;
    upstream.ok_or_else(|| ApiError::not_found(Upstream::KIND, names::upstream(&rule.upstream_id)))
}

fn parse_image(text: &str) -> Result<ImageName, ApiError> {
    text.parse().map_err(|error| {
        ApiError::field("image", format!("must be such as `hub/nginx:1.27`, without the registry's host: {error}"))
    })
}

/// Every prefix that could cover `name`, in the spelling of rules.
fn prefixes(name: &RepositoryName) -> Vec<String> {
    let name = name.as_str();
    let prefixes = name.match_indices('/').map(|(end, _)| name[..end].to_owned());
    prefixes.chain([entrepot_domain::NamespacePrefix::ROOT.to_owned()]).collect()
}

fn step_to_wire(step: ProbeStep) -> pb::ValidationStep {
    let kind = match step.kind {
        ProbeKind::Name => Kind::Name,
        ProbeKind::Tcp => Kind::Tcp,
        ProbeKind::Tls => Kind::Tls,
        ProbeKind::Token => Kind::Token,
        ProbeKind::Manifest => Kind::Manifest,
    };
    let state = match step.state {
        ProbeState::Passed => State::Passed,
        ProbeState::Failed => State::Failed,
        ProbeState::Skipped => State::Skipped,
    };
    pb::ValidationStep { kind: kind.into(), state: state.into(), message: step.message }
}
