//! Templates: the settings for new repositories.

use entrepot_domain::{NamespacePrefix, ResourceId, Template as DomainTemplate};
use entrepot_proto::convert::template::Settings;
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::templates_server::Templates;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Api;
use super::caller::Permission;
use super::mask::Field;
use super::resource::{self, Draft, New, Resource, etag};
use crate::db::templates::{self, Template};
use crate::db::{self, Tx};
use crate::error::ApiError;
use crate::plane::Plane;

const FIELDS: &[Field<pb::Template>] = &[
    Field::immutable("name", |t| !t.name.is_empty(), |sent, stored| sent.name == stored.name),
    // A template for another prefix is a different template, as with ECR.
    Field::immutable("prefix", |t| !t.prefix.is_empty(), is_same_prefix),
    Field::mutable(
        "applied_for",
        |t| !t.applied_for.is_empty(),
        |sent, stored| stored.applied_for.clone_from(&sent.applied_for),
    ),
    Field::mutable(
        "description",
        |t| !t.description.is_empty(),
        |sent, stored| stored.description.clone_from(&sent.description),
    ),
    Field::mutable(
        "image_tag_mutability",
        |t| t.image_tag_mutability != 0,
        |sent, stored| stored.image_tag_mutability = sent.image_tag_mutability,
    ),
    Field::mutable(
        "image_tag_mutability_exclusion_filters",
        |t| !t.image_tag_mutability_exclusion_filters.is_empty(),
        |sent, stored| {
            let filters = &sent.image_tag_mutability_exclusion_filters;
            stored.image_tag_mutability_exclusion_filters.clone_from(filters);
        },
    ),
    Field::mutable(
        "resource_tags",
        |t| !t.resource_tags.is_empty(),
        |sent, stored| stored.resource_tags.clone_from(&sent.resource_tags),
    ),
    Field::mutable(
        "repository_policy",
        |t| !t.repository_policy.is_empty(),
        |sent, stored| stored.repository_policy.clone_from(&sent.repository_policy),
    ),
    Field::mutable(
        "lifecycle_policy",
        |t| !t.lifecycle_policy.is_empty(),
        |sent, stored| stored.lifecycle_policy.clone_from(&sent.lifecycle_policy),
    ),
    Field::mutable(
        "encryption_configuration",
        |t| t.encryption_configuration.is_some(),
        |sent, stored| stored.encryption_configuration.clone_from(&sent.encryption_configuration),
    ),
    Field::mutable(
        "custom_role_arn",
        |t| !t.custom_role_arn.is_empty(),
        |sent, stored| stored.custom_role_arn.clone_from(&sent.custom_role_arn),
    ),
    Field::output_only("uid"),
    Field::output_only("create_time"),
    Field::output_only("update_time"),
    Field::output_only("etag"),
];

/// A trailing slash makes no difference.
fn is_same_prefix(sent: &pb::Template, stored: &pb::Template) -> bool {
    sent.prefix.parse::<NamespacePrefix>() == stored.prefix.parse()
}

#[tonic::async_trait]
impl Templates for Api {
    async fn create_template(
        &self,
        request: Request<pb::CreateTemplateRequest>,
    ) -> Result<Response<pb::Template>, Status> {
        let sent = request.get_ref();
        let new = New { request_id: &sent.request_id, id: &sent.template_id, resource: sent.template.as_ref() };
        self.create::<Template, _>(&request, new).await
    }

    async fn get_template(&self, request: Request<pb::GetTemplateRequest>) -> Result<Response<pb::Template>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(resource::get::<Template>(&self.0, &request.get_ref().name).await?.to_wire()))
    }

    async fn list_templates(
        &self,
        request: Request<pb::ListTemplatesRequest>,
    ) -> Result<Response<pb::ListTemplatesResponse>, Status> {
        self.caller(&request, Permission::Read).await?;
        let pb::ListTemplatesRequest { page_size, page_token, .. } = request.get_ref();
        let (rows, next_page_token) = resource::list::<Template>(&self.0, *page_size, page_token).await?;
        let templates = rows.iter().map(Template::to_wire).collect();
        Ok(Response::new(pb::ListTemplatesResponse { templates, next_page_token }))
    }

    async fn update_template(
        &self,
        request: Request<pb::UpdateTemplateRequest>,
    ) -> Result<Response<pb::Template>, Status> {
        let sent = request.get_ref();
        self.update::<Template, _>(&request, sent.template.as_ref(), sent.update_mask.as_ref()).await
    }

    async fn delete_template(
        &self,
        request: Request<pb::DeleteTemplateRequest>,
    ) -> Result<Response<pb::Template>, Status> {
        let sent = request.get_ref();
        self.delete::<Template, _>(&request, &sent.name, &sent.etag).await
    }
}

impl Resource for Template {
    type Wire = pb::Template;
    type Settings = Settings;

    const KIND: &'static str = "entrepot.v1.Template";
    const FIELD: &'static str = "template";
    const FIELDS: &'static [Field<pb::Template>] = FIELDS;

    fn parse_name(name: &str) -> Result<ResourceId, names::Error> {
        names::parse_template(name)
    }

    fn name_and_etag(wire: &pb::Template) -> (&str, &str) {
        (&wire.name, &wire.etag)
    }

    fn name(id: &ResourceId) -> String {
        names::template(id)
    }

    fn id(&self) -> &ResourceId {
        &self.template.id
    }

    fn read(id: &ResourceId, wire: &pb::Template, _: bool) -> Result<Settings, Violations> {
        Settings::read(id, wire)
    }

    fn to_wire(&self) -> pb::Template {
        let mut wire = pb::Template {
            name: names::template(&self.template.id),
            uid: self.template.uid.to_string(),
            create_time: Some(timestamp(self.create_time)),
            update_time: Some(timestamp(self.update_time)),
            etag: etag(self.revision),
            ..Default::default()
        };
        let settings = Settings {
            prefix: self.template.prefix.clone(),
            description: self.description.clone(),
            tag_mutability: self.template.tag_mutability.clone(),
            resource_tags: self.template.resource_tags.clone(),
        };
        settings.write(&mut wire);
        wire
    }

    async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Self>, db::Error> {
        templates::get(tx, id).await
    }

    async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Self>, db::Error> {
        templates::list(tx, after, limit).await
    }

    /// Makes the template, if no other one has the prefix.
    async fn make(_: &Plane, tx: &Tx<'_>, draft: Draft<Self>) -> Result<Self, ApiError> {
        let Draft { id, settings, before, revision, now } = draft;
        let Settings { prefix, description, tag_mutability, resource_tags } = settings;
        let uid = before.as_ref().map_or_else(Uuid::now_v7, |before| before.template.uid);
        if let Some(other) = templates::for_prefix(tx, &prefix).await?.filter(|other| other.template.uid != uid) {
            let remedy = format!(
                " for the prefix `{prefix}`: a prefix has one template; update that one, or choose another \
                 `template.prefix`"
            );
            return Err(ApiError::Exists { kind: Self::KIND, name: names::template(&other.template.id), remedy });
        }
        let template = DomainTemplate { uid, id, prefix, tag_mutability, resource_tags };
        let create_time = before.map_or(now, |before| before.create_time);
        Ok(Self { template, description, revision, create_time, update_time: now })
    }

    async fn put(&self, tx: &Tx<'_>) -> Result<(), db::Error> {
        templates::put(tx, self).await
    }

    async fn delete(&self, tx: &Tx<'_>) -> Result<(), ApiError> {
        Ok(templates::delete(tx, self.template.uid).await?)
    }
}
