//! Rules: which names are filled from which upstream.

use entrepot_domain::{ResourceId, Rule as DomainRule};
use entrepot_proto::convert::rule::Settings;
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::rules_server::Rules;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::caller::Permission;
use super::mask::Field;
use super::resource::{self, Draft, New, Resource, etag};
use super::{Api, probe};
use crate::db::rules::{self, Rule};
use crate::db::upstreams::Upstream;
use crate::db::{self, Tx, upstreams};
use crate::error::ApiError;
use crate::plane::Plane;

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
        let sent = request.get_ref();
        let new = New { request_id: &sent.request_id, id: &sent.rule_id, resource: sent.rule.as_ref() };
        self.create::<Rule, _>(&request, new).await
    }

    async fn get_rule(&self, request: Request<pb::GetRuleRequest>) -> Result<Response<pb::Rule>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(resource::get::<Rule>(&self.0, &request.get_ref().name).await?.to_wire()))
    }

    async fn list_rules(
        &self,
        request: Request<pb::ListRulesRequest>,
    ) -> Result<Response<pb::ListRulesResponse>, Status> {
        self.caller(&request, Permission::Read).await?;
        let pb::ListRulesRequest { page_size, page_token, .. } = request.get_ref();
        let (rules, next_page_token) = resource::list::<Rule>(&self.0, *page_size, page_token).await?;
        Ok(Response::new(pb::ListRulesResponse { rules: rules.iter().map(Rule::to_wire).collect(), next_page_token }))
    }

    async fn update_rule(&self, request: Request<pb::UpdateRuleRequest>) -> Result<Response<pb::Rule>, Status> {
        let sent = request.get_ref();
        self.update::<Rule, _>(&request, sent.rule.as_ref(), sent.update_mask.as_ref()).await
    }

    async fn delete_rule(&self, request: Request<pb::DeleteRuleRequest>) -> Result<Response<pb::Rule>, Status> {
        let sent = request.get_ref();
        self.delete::<Rule, _>(&request, &sent.name, &sent.etag).await
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

impl Resource for Rule {
    type Wire = pb::Rule;
    type Settings = Settings;

    const KIND: &'static str = "entrepot.v1.Rule";
    const FIELD: &'static str = "rule";
    const FIELDS: &'static [Field<pb::Rule>] = FIELDS;

    fn parse_name(name: &str) -> Result<ResourceId, names::Error> {
        names::parse_rule(name)
    }

    fn name_and_etag(wire: &pb::Rule) -> (&str, &str) {
        (&wire.name, &wire.etag)
    }

    fn name(id: &ResourceId) -> String {
        names::rule(id)
    }

    fn id(&self) -> &ResourceId {
        &self.rule.id
    }

    fn read(id: &ResourceId, wire: &pb::Rule, _: bool) -> Result<Settings, Violations> {
        Settings::read(id, wire)
    }

    fn to_wire(&self) -> pb::Rule {
        let mut wire = pb::Rule {
            name: names::rule(&self.rule.id),
            uid: self.rule.uid.to_string(),
            create_time: Some(timestamp(self.create_time)),
            update_time: Some(timestamp(self.update_time)),
            etag: etag(self.revision),
            ..Default::default()
        };
        let settings = Settings {
            prefix: self.rule.prefix.clone(),
            upstream_id: self.upstream_id.clone(),
            upstream_prefix: self.rule.upstream_prefix.clone(),
            freshness: self.rule.freshness.clone(),
        };
        settings.write(&mut wire);
        wire
    }

    async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Self>, db::Error> {
        rules::get(tx, id).await
    }

    async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Self>, db::Error> {
        rules::list(tx, after, limit).await
    }

    /// Makes the rule, if its upstream exists and its prefix is free.
    async fn make(_: &Plane, tx: &Tx<'_>, draft: Draft<Self>) -> Result<Self, ApiError> {
        let Draft { id, settings, before, revision, now } = draft;
        let upstream_uid = upstream_of(tx, &settings.upstream_id).await?;
        let uid = before.as_ref().map_or_else(Uuid::now_v7, |before| before.rule.uid);
        if let Some(other) = rules::for_prefix(tx, &settings.prefix).await?.filter(|other| other.rule.uid != uid) {
            let remedy = format!(
                " for the prefix `{}`: a prefix has one rule; update that one, or choose another `rule.prefix`",
                settings.prefix
            );
            return Err(ApiError::Exists { kind: Self::KIND, name: names::rule(&other.rule.id), remedy });
        }
        let rule = DomainRule {
            uid,
            id,
            prefix: settings.prefix,
            upstream_uid,
            upstream_prefix: settings.upstream_prefix,
            freshness: settings.freshness,
        };
        let create_time = before.as_ref().map_or(now, |before| before.create_time);
        let policy_rest = before.map(|before| before.policy_rest).unwrap_or_default();
        Ok(Self { rule, policy_rest, upstream_id: settings.upstream_id, revision, create_time, update_time: now })
    }

    async fn put(&self, tx: &Tx<'_>) -> Result<(), db::Error> {
        rules::put(tx, self).await
    }

    async fn delete(&self, tx: &Tx<'_>) -> Result<(), ApiError> {
        Ok(rules::delete(tx, self.rule.uid).await?)
    }
}

async fn upstream_of(tx: &Tx<'_>, id: &ResourceId) -> Result<Uuid, ApiError> {
    upstreams::uid(tx, id).await?.ok_or_else(|| ApiError::NotFound {
        kind: Upstream::KIND,
        name: names::upstream(id),
        field: Some("rule.upstream"),
        remedy: " (`rule.upstream`): create it first, as with `entrepot upstream create`",
    })
}
