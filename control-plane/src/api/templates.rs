//! Templates: what repositories are created with.

use entrepot_domain::{NamespacePrefix, ResourceId, Template as DomainTemplate};
use entrepot_proto::convert::template::Settings;
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::templates_server::Templates;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Api;
use super::caller::{Caller, Permission};
use super::mask::{self, Field};
use super::page::Page;
use super::request_id::{Earlier, RequestId};
use super::upstreams::{check_etag, etag};
use crate::db::templates::{self, Template};
use crate::db::{Tx, registry};
use crate::error::ApiError;
use crate::plane::Plane;
use crate::snapshot::Version;

const KIND: &str = "entrepot.v1.Template";

const FIELDS: &[Field<pb::Template>] = &[
    Field::immutable("name", |t| !t.name.is_empty(), |sent, stored| sent.name == stored.name),
    // A template for another prefix is another template, as with ECR.
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

/// A trailing slash makes no other prefix.
fn is_same_prefix(sent: &pb::Template, stored: &pb::Template) -> bool {
    sent.prefix.parse::<NamespacePrefix>() == stored.prefix.parse()
}

#[tonic::async_trait]
impl Templates for Api {
    async fn create_template(
        &self,
        request: Request<pb::CreateTemplateRequest>,
    ) -> Result<Response<pb::Template>, Status> {
        let caller = self.caller(&request, Permission::Administer).await?;
        let (template, version) = create(&self.0, &caller, request.get_ref()).await?;
        Ok(self.settled(template, version).await)
    }

    async fn get_template(&self, request: Request<pb::GetTemplateRequest>) -> Result<Response<pb::Template>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(get(&self.0, request.get_ref()).await?))
    }

    async fn list_templates(
        &self,
        request: Request<pb::ListTemplatesRequest>,
    ) -> Result<Response<pb::ListTemplatesResponse>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(list(&self.0, request.get_ref()).await?))
    }

    async fn update_template(
        &self,
        request: Request<pb::UpdateTemplateRequest>,
    ) -> Result<Response<pb::Template>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let (template, version) = update(&self.0, request.get_ref()).await?;
        Ok(self.settled(template, version).await)
    }

    async fn delete_template(
        &self,
        request: Request<pb::DeleteTemplateRequest>,
    ) -> Result<Response<pb::Template>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let (template, version) = delete(&self.0, request.get_ref()).await?;
        Ok(self.settled(template, version).await)
    }
}

async fn create(
    plane: &Plane,
    caller: &Caller,
    request: &pb::CreateTemplateRequest,
) -> Result<(pb::Template, Version), ApiError> {
    let mut violations = Violations::default();
    let request_id = violations.merge(RequestId::read("CreateTemplate", &request.request_id, request));
    let id = violations.take("template_id", request.template_id.parse::<ResourceId>());
    let sent = violations.take("template", request.template.as_ref().ok_or("must be set"));
    // Without an id, what else is wrong is still said: the prefix need not come from it.
    let stand_in = id.clone().unwrap_or_else(|| "id".parse().expect("a legal id"));
    let settings = sent.and_then(|sent| violations.merge(Settings::read(&stand_in, sent)));
    let complete = (|| Some((request_id?, id?, settings?)))();
    let (request_id, id, settings) = violations.finish(complete)?;

    let change = plane.prepare_change().await?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("create_template").await?;
    match request_id.claim(plane, &tx, caller).await? {
        Earlier::None => {}
        Earlier::Answered(answer) => return Ok((answer, registry::get(&tx).await?.version)),
        Earlier::NotKept => return Err(ApiError::SecretNotKept),
    }
    let registry = change.begin(&tx).await?;
    check_free(&tx, &id, &settings.prefix).await?;
    let now = plane.clock.now();
    let template = stored(Uuid::now_v7(), id, settings);
    let template = Template { create_time: now, update_time: now, revision: registry.version.revision, ..template };
    templates::put(&tx, &template).await?;
    let answer = to_wire(&template);
    request_id.answer(&tx, caller, &answer).await?;
    tx.commit().await?;
    Ok((answer, registry.version))
}

async fn get(plane: &Plane, request: &pb::GetTemplateRequest) -> Result<pb::Template, ApiError> {
    let id = parse_name("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("get_template").await?;
    templates::get(&tx, &id).await?.as_ref().map(to_wire).ok_or_else(|| absent(&id))
}

async fn list(plane: &Plane, request: &pb::ListTemplatesRequest) -> Result<pb::ListTemplatesResponse, ApiError> {
    let page: Page<String> =
        Page::read(&plane.cluster_key, "ListTemplates", &[], request.page_size, &request.page_token)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("list_templates").await?;
    let mut rows = templates::list(&tx, page.after.as_deref().unwrap_or_default(), page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| last.template.id.to_string());
    Ok(pb::ListTemplatesResponse { templates: rows.iter().map(to_wire).collect(), next_page_token })
}

async fn update(plane: &Plane, request: &pb::UpdateTemplateRequest) -> Result<(pb::Template, Version), ApiError> {
    let sent = request.template.as_ref().ok_or_else(|| ApiError::field("template", "must be set"))?;
    let id = parse_name("template.name", &sent.name)?;

    let mut connection = plane.db.connect().await?;
    let (tx, registry) = plane.begin_change(&mut connection, "update_template").await?;
    let before = templates::get(&tx, &id).await?.ok_or_else(|| absent(&id))?;
    let mut wire = to_wire(&before);
    check_etag(&wire.name, &sent.etag, &wire.etag)?;
    mask::apply("template", FIELDS, request.update_mask.as_ref(), sent, &mut wire)?;
    let template = Template {
        create_time: before.create_time,
        update_time: plane.clock.now(),
        revision: registry.version.revision,
        ..stored(before.template.uid, id.clone(), Settings::read(&id, &wire)?)
    };
    templates::put(&tx, &template).await?;
    tx.commit().await?;
    Ok((to_wire(&template), registry.version))
}

async fn delete(plane: &Plane, request: &pb::DeleteTemplateRequest) -> Result<(pb::Template, Version), ApiError> {
    let id = parse_name("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let (tx, registry) = plane.begin_change(&mut connection, "delete_template").await?;
    let template = templates::get(&tx, &id).await?.ok_or_else(|| absent(&id))?;
    let wire = to_wire(&template);
    check_etag(&wire.name, &request.etag, &wire.etag)?;
    templates::delete(&tx, template.template.uid).await?;
    tx.commit().await?;
    Ok((wire, registry.version))
}

/// Makes sure that no other template has the id or the prefix.
async fn check_free(tx: &Tx<'_>, id: &ResourceId, prefix: &NamespacePrefix) -> Result<(), ApiError> {
    if templates::get(tx, id).await?.is_some() {
        let remedy = "; update it, or choose another `template_id`".to_owned();
        return Err(ApiError::Exists { kind: KIND, name: names::template(id), remedy });
    }
    let Some(other) = templates::for_prefix(tx, prefix).await? else { return Ok(()) };
    let remedy = format!(
        " for the prefix `{prefix}`: a prefix has one template; update that one, or choose another `template.prefix`"
    );
    Err(ApiError::Exists { kind: KIND, name: names::template(&other.template.id), remedy })
}

fn stored(uid: Uuid, id: ResourceId, settings: Settings) -> Template {
    let Settings { prefix, description, tag_mutability, resource_tags } = settings;
    let template = DomainTemplate { uid, id, prefix, tag_mutability, resource_tags };
    let never = chrono::DateTime::UNIX_EPOCH;
    Template { template, description, revision: 0, create_time: never, update_time: never }
}

pub(super) fn to_wire(template: &Template) -> pb::Template {
    let mut wire = pb::Template {
        name: names::template(&template.template.id),
        uid: template.template.uid.to_string(),
        create_time: Some(timestamp(template.create_time)),
        update_time: Some(timestamp(template.update_time)),
        etag: etag(template.revision),
        ..Default::default()
    };
    let settings = Settings {
        prefix: template.template.prefix.clone(),
        description: template.description.clone(),
        tag_mutability: template.template.tag_mutability.clone(),
        resource_tags: template.template.resource_tags.clone(),
    };
    settings.write(&mut wire);
    wire
}

fn parse_name(field: &str, name: &str) -> Result<ResourceId, ApiError> {
    names::parse_template(name).map_err(|error| ApiError::field(field, error))
}

fn absent(id: &ResourceId) -> ApiError {
    ApiError::not_found(KIND, names::template(id))
}
