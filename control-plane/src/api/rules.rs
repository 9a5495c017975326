//! Rules: which names are filled from where.

use entrepot_domain::freshness::Rest;
use entrepot_domain::{ResourceId, Rule as DomainRule};
use entrepot_proto::convert::rule::Settings;
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::rules_server::Rules;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::caller::{Caller, Permission};
use super::mask::{self, Field};
use super::page::Page;
use super::request_id::{Earlier, RequestId};
use super::upstreams::{self as upstreams_api, check_etag, etag};
use super::{Api, probe};
use crate::db::rules::{self, Rule};
use crate::db::upstreams::Upstream;
use crate::db::{Tx, registry, upstreams};
use crate::error::ApiError;
use crate::plane::Plane;
use crate::snapshot::Version;

const KIND: &str = "entrepot.v1.Rule";

const FIELDS: &[Field<pb::Rule>] = &[
    Field::immutable("name", |rule| !rule.name.is_empty(), |sent, stored| sent.name == stored.name),
    Field::mutable("prefix", |rule| !rule.prefix.is_empty(), |sent, stored| stored.prefix = sent.prefix.clone()),
    Field::mutable(
        "upstream",
        |rule| !rule.upstream.is_empty(),
        |sent, stored| stored.upstream = sent.upstream.clone(),
    ),
    Field::mutable(
        "upstream_prefix",
        |rule| !rule.upstream_prefix.is_empty(),
        |sent, stored| stored.upstream_prefix = sent.upstream_prefix.clone(),
    ),
    Field::mutable("window", |rule| rule.window.is_some(), |sent, stored| stored.window = sent.window),
    Field::mutable("mode", |rule| rule.mode != 0, |sent, stored| stored.mode = sent.mode),
    Field::mutable(
        "immutable_tags",
        |rule| !rule.immutable_tags.is_empty(),
        |sent, stored| stored.immutable_tags = sent.immutable_tags.clone(),
    ),
    Field::mutable("max_stale", |rule| rule.max_stale.is_some(), |sent, stored| stored.max_stale = sent.max_stale),
    Field::mutable(
        "when_deleted",
        |rule| rule.when_deleted != 0,
        |sent, stored| stored.when_deleted = sent.when_deleted,
    ),
    Field::mutable("when_denied", |rule| rule.when_denied != 0, |sent, stored| stored.when_denied = sent.when_denied),
    Field::mutable(
        "tag_windows",
        |rule| !rule.tag_windows.is_empty(),
        |sent, stored| stored.tag_windows = sent.tag_windows.clone(),
    ),
    Field::mutable(
        "tag_list_window",
        |rule| rule.tag_list_window.is_some(),
        |sent, stored| stored.tag_list_window = sent.tag_list_window,
    ),
    Field::mutable(
        "referrers_window",
        |rule| rule.referrers_window.is_some(),
        |sent, stored| stored.referrers_window = sent.referrers_window,
    ),
    Field::mutable(
        "automatic_sync",
        |rule| rule.automatic_sync != 0,
        |sent, stored| stored.automatic_sync = sent.automatic_sync,
    ),
    Field::output_only("uid"),
    Field::output_only("create_time"),
    Field::output_only("update_time"),
    Field::output_only("etag"),
];

#[tonic::async_trait]
impl Rules for Api {
    async fn create_rule(&self, request: Request<pb::CreateRuleRequest>) -> Result<Response<pb::Rule>, Status> {
        let caller = self.caller(&request, Permission::Administer).await?;
        let (rule, version) = create(&self.0, &caller, request.get_ref()).await?;
        Ok(self.settled(rule, version).await)
    }

    async fn get_rule(&self, request: Request<pb::GetRuleRequest>) -> Result<Response<pb::Rule>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(get(&self.0, request.get_ref()).await?))
    }

    async fn list_rules(
        &self,
        request: Request<pb::ListRulesRequest>,
    ) -> Result<Response<pb::ListRulesResponse>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(list(&self.0, request.get_ref()).await?))
    }

    async fn update_rule(&self, request: Request<pb::UpdateRuleRequest>) -> Result<Response<pb::Rule>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let (rule, version) = update(&self.0, request.get_ref()).await?;
        Ok(self.settled(rule, version).await)
    }

    async fn delete_rule(&self, request: Request<pb::DeleteRuleRequest>) -> Result<Response<pb::Rule>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let (rule, version) = delete(&self.0, request.get_ref()).await?;
        Ok(self.settled(rule, version).await)
    }

    async fn validate_rule(
        &self,
        request: Request<pb::ValidateRuleRequest>,
    ) -> Result<Response<pb::ValidateRuleResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(probe::validate(&self.0, request.get_ref()).await?))
    }

    async fn explain_rule(
        &self,
        request: Request<pb::ExplainRuleRequest>,
    ) -> Result<Response<pb::ExplainRuleResponse>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(probe::explain(&self.0, request.get_ref()).await?))
    }
}

async fn create(
    plane: &Plane,
    caller: &Caller,
    request: &pb::CreateRuleRequest,
) -> Result<(pb::Rule, Version), ApiError> {
    let mut violations = Violations::default();
    let request_id = violations.merge(RequestId::read("CreateRule", &request.request_id, request));
    let id = violations.take("rule_id", request.rule_id.parse::<ResourceId>());
    let sent = violations.take("rule", request.rule.as_ref().ok_or("must be set"));
    // Without an id, what else is wrong is still said: the prefix need not come from it.
    let stand_in = id.clone().unwrap_or_else(|| "id".parse().expect("a legal id"));
    let settings = sent.and_then(|sent| violations.merge(Settings::read(&stand_in, sent)));
    let complete = (|| Some((request_id?, id?, settings?)))();
    let (request_id, id, settings) = violations.finish(complete)?;

    let change = plane.prepare_change().await?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("create_rule").await?;
    match request_id.claim(plane, &tx, caller).await? {
        Earlier::None => {}
        Earlier::Answered(answer) => return Ok((answer, registry::get(&tx).await?.version)),
        Earlier::NotKept => return Err(ApiError::SecretNotKept),
    }
    let registry = change.begin(&tx).await?;
    if rules::get(&tx, &id).await?.is_some() {
        let remedy = "; update it, or choose another `rule_id`".to_owned();
        return Err(ApiError::Exists { kind: KIND, name: names::rule(&id), remedy });
    }
    let now = plane.clock.now();
    let rule = place(&tx, Uuid::now_v7(), id, settings).await?;
    let rule = Rule { create_time: now, update_time: now, revision: registry.version.revision, ..rule };
    rules::put(&tx, &rule).await?;
    let answer = to_wire(&rule);
    request_id.answer(&tx, caller, &answer).await?;
    tx.commit().await?;
    Ok((answer, registry.version))
}

async fn get(plane: &Plane, request: &pb::GetRuleRequest) -> Result<pb::Rule, ApiError> {
    let id = parse_name("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("get_rule").await?;
    rules::get(&tx, &id).await?.as_ref().map(to_wire).ok_or_else(|| absent(&id))
}

async fn list(plane: &Plane, request: &pb::ListRulesRequest) -> Result<pb::ListRulesResponse, ApiError> {
    let page: Page<String> = Page::read(&plane.cluster_key, "ListRules", &[], request.page_size, &request.page_token)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("list_rules").await?;
    let mut rows = rules::list(&tx, page.after.as_deref().unwrap_or_default(), page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| last.rule.id.to_string());
    Ok(pb::ListRulesResponse { rules: rows.iter().map(to_wire).collect(), next_page_token })
}

async fn update(plane: &Plane, request: &pb::UpdateRuleRequest) -> Result<(pb::Rule, Version), ApiError> {
    let sent = request.rule.as_ref().ok_or_else(|| ApiError::field("rule", "must be set"))?;
    let id = parse_name("rule.name", &sent.name)?;

    let mut connection = plane.db.connect().await?;
    let (tx, registry) = plane.begin_change(&mut connection, "update_rule").await?;
    let stored = rules::get(&tx, &id).await?.ok_or_else(|| absent(&id))?;
    let mut wire = to_wire(&stored);
    check_etag(&wire.name, &sent.etag, &wire.etag)?;
    mask::apply("rule", FIELDS, request.update_mask.as_ref(), sent, &mut wire)?;
    let settings = Settings::read(&id, &wire)?;
    let rule = place(&tx, stored.rule.uid, id, settings).await?;
    let rule = Rule {
        policy_rest: stored.policy_rest,
        create_time: stored.create_time,
        update_time: plane.clock.now(),
        revision: registry.version.revision,
        ..rule
    };
    rules::put(&tx, &rule).await?;
    tx.commit().await?;
    Ok((to_wire(&rule), registry.version))
}

async fn delete(plane: &Plane, request: &pb::DeleteRuleRequest) -> Result<(pb::Rule, Version), ApiError> {
    let id = parse_name("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let (tx, registry) = plane.begin_change(&mut connection, "delete_rule").await?;
    let rule = rules::get(&tx, &id).await?.ok_or_else(|| absent(&id))?;
    let wire = to_wire(&rule);
    check_etag(&wire.name, &request.etag, &wire.etag)?;
    rules::delete(&tx, rule.rule.uid).await?;
    tx.commit().await?;
    Ok((wire, registry.version))
}

/// The rule that `settings` make among the others, if its upstream exists and its prefix is free.
async fn place(tx: &Tx<'_>, uid: Uuid, id: ResourceId, settings: Settings) -> Result<Rule, ApiError> {
    let upstream = upstream_of(tx, &settings.upstream_id).await?;
    if let Some(other) = rules::for_prefix(tx, &settings.prefix).await?.filter(|other| other.rule.uid != uid) {
        let remedy = format!(
            " for the prefix `{}`: a prefix has one rule; update that one, or choose another `rule.prefix`",
            settings.prefix
        );
        return Err(ApiError::Exists { kind: KIND, name: names::rule(&other.rule.id), remedy });
    }
    let rule = DomainRule {
        uid,
        id,
        prefix: settings.prefix,
        upstream_uid: upstream.uid,
        upstream_prefix: settings.upstream_prefix,
        freshness: settings.freshness,
    };
    let (create_time, update_time) = (upstream.create_time, upstream.update_time);
    Ok(Rule { rule, policy_rest: Rest::default(), upstream_id: upstream.id, revision: 0, create_time, update_time })
}

async fn upstream_of(tx: &Tx<'_>, id: &ResourceId) -> Result<Upstream, ApiError> {
    upstreams::get(tx, id).await?.ok_or_else(|| ApiError::NotFound {
        kind: upstreams_api::KIND,
        name: names::upstream(id),
        field: Some("rule.upstream"),
        remedy: " (`rule.upstream`): create it first, as with `entrepot upstream create`",
    })
}

pub(super) fn to_wire(rule: &Rule) -> pb::Rule {
    let mut wire = pb::Rule {
        name: names::rule(&rule.rule.id),
        uid: rule.rule.uid.to_string(),
        create_time: Some(timestamp(rule.create_time)),
        update_time: Some(timestamp(rule.update_time)),
        etag: etag(rule.revision),
        ..Default::default()
    };
    let settings = Settings {
        prefix: rule.rule.prefix.clone(),
        upstream_id: rule.upstream_id.clone(),
        upstream_prefix: rule.rule.upstream_prefix.clone(),
        freshness: rule.rule.freshness.clone(),
    };
    settings.write(&mut wire);
    wire
}

pub(super) fn parse_name(field: &str, name: &str) -> Result<ResourceId, ApiError> {
    names::parse_rule(name).map_err(|error| ApiError::field(field, error))
}

pub(super) fn absent(id: &ResourceId) -> ApiError {
    ApiError::not_found(KIND, names::rule(id))
}
