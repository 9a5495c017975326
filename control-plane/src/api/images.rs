//! Images: what the index has of a repository's manifests and tags, and their end.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use entrepot_domain::sync::check_platform;
use entrepot_domain::{Digest, Reference, RepositoryName};
use entrepot_proto::convert::names::ImageSelector;
use entrepot_proto::convert::{Violations, names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::images_server::Images;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::caller::{Caller, Permission};
use super::filter::{self, Value};
use super::operations::{self, Plan};
use super::page::Page;
use super::request_id::RequestId;
use super::{Api, deletion, repositories as repositories_api};
use crate::db::Tx;
use crate::db::images::{self, Filter, Image};
use crate::db::operations::Kind;
use crate::db::tags::{self, Tagged};
use crate::error::ApiError;
use crate::plane::Plane;

const KIND: &str = "entrepot.v1.Image";
/// How many images one operation takes.
const WARMED: usize = 10_000;
/// How many platforms.
const PLATFORMS: usize = 20;

/// Where a page of images ends.
type Position = (DateTime<Utc>, String);

#[tonic::async_trait]
impl Images for Api {
    async fn get_image(&self, request: Request<pb::GetImageRequest>) -> Result<Response<pb::Image>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(get(&self.0, request.get_ref()).await?))
    }

    async fn list_images(
        &self,
        request: Request<pb::ListImagesRequest>,
    ) -> Result<Response<pb::ListImagesResponse>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(list(&self.0, request.get_ref()).await?))
    }

    async fn warm_images(&self, request: Request<pb::WarmImagesRequest>) -> Result<Response<pb::Operation>, Status> {
        let caller = self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(warm(&self.0, &caller, request.get_ref()).await?))
    }

    async fn delete_image(&self, request: Request<pb::DeleteImageRequest>) -> Result<Response<pb::Image>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(deletion::delete(&self.0, request.get_ref()).await?))
    }
}

async fn get(plane: &Plane, request: &pb::GetImageRequest) -> Result<pb::Image, ApiError> {
    let (name, selector) = parse_name(&request.name)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("get_image").await?;
    let repository = repositories_api::require(&tx, &name).await?;
    find(&tx, &name, repository.incarnation, &selector).await?.ok_or_else(|| absent(&request.name))
}

async fn list(plane: &Plane, request: &pb::ListImagesRequest) -> Result<pb::ListImagesResponse, ApiError> {
    let mut violations = Violations::default();
    let name = violations.take("parent", names::parse_repository(&request.parent));
    let page = violations.merge(Page::<Position>::read(
        &plane.cluster_key,
        "ListImages",
        &[&request.parent, &request.filter],
        request.page_size,
        &request.page_token,
    ));
    let filter = violations.merge(read_filter(&request.filter));
    let complete = (|| Some((name?, page?, filter?)))();
    let (name, page, filter) = violations.finish(complete)?;

    let mut connection = plane.db.connect().await?;
    // One state of the database, so that images and tags belong together.
    let tx = connection.begin_snapshot("list_images").await?;
    let incarnation = repositories_api::require(&tx, &name).await?.incarnation;
    let mut rows = images::list(&tx, incarnation, &filter, page.after.as_ref(), page.fetch()).await?;
    let position = |last: &Image| (last.cache_time, last.digest.to_string());
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, position);
    let images = with_tags(&tx, &name, incarnation, rows).await?;
    Ok(pb::ListImagesResponse { images, next_page_token })
}

async fn warm(plane: &Plane, caller: &Caller, request: &pb::WarmImagesRequest) -> Result<pb::Operation, ApiError> {
    let mut violations = Violations::default();
    let request_id = violations.merge(RequestId::read("WarmImages", &request.request_id, request));
    if !(1..=WARMED).contains(&request.images.len()) {
        violations.add("images", format!("must be 1 to {WARMED}"));
    }
    if request.platforms.len() > PLATFORMS {
        violations.add("platforms", format!("must be at most {PLATFORMS}"));
    }
    for (i, platform) in request.platforms.iter().take(PLATFORMS).enumerate() {
        violations.take(&format!("platforms[{i}]"), check_platform(platform));
    }
    let mut images = Vec::new();
    for (i, image) in request.images.iter().take(WARMED).enumerate() {
        if let Some((repository, selector)) = violations.take(&format!("images[{i}]"), names::parse_image(image)) {
            let reference = match selector {
                ImageSelector::Digest(digest) => Reference::Digest(digest),
                ImageSelector::Tag(tag) => Reference::Tag(tag),
            };
            images.push((repository, reference));
        }
    }
    let request_id = violations.finish(request_id)?;
    let platforms = request.platforms.clone();
    let plan = Plan { kind: Kind::WarmImages, repository: None, images, platforms };

    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("warm_images").await?;
    let operation = operations::begin(plane, &tx, caller, &request_id, &plan).await?;
    tx.commit().await?;
    Ok(operation)
}

/// The image that is selected, if the index has it.
pub(super) async fn find(
    tx: &Tx<'_>,
    name: &RepositoryName,
    incarnation: Uuid,
    selector: &ImageSelector,
) -> Result<Option<pb::Image>, ApiError> {
    let digest = match selector {
        ImageSelector::Digest(digest) => digest.clone(),
        ImageSelector::Tag(tag) => match tags::get(tx, incarnation, tag).await? {
            Some(tagged) => tagged.digest,
            None => return Ok(None),
        },
    };
    let Some(image) = images::get(tx, incarnation, &digest).await? else { return Ok(None) };
    Ok(with_tags(tx, name, incarnation, vec![image]).await?.pop())
}

async fn with_tags(
    tx: &Tx<'_>,
    name: &RepositoryName,
    incarnation: Uuid,
    images: Vec<Image>,
) -> Result<Vec<pb::Image>, ApiError> {
    let digests: Vec<Digest> = images.iter().map(|image| image.digest.clone()).collect();
    let mut tags: HashMap<Digest, Vec<Tagged>> = HashMap::new();
    for tagged in tags::naming(tx, incarnation, &digests).await? {
        tags.entry(tagged.digest.clone()).or_default().push(tagged);
    }
    let image = |image: Image| {
        let tags = tags.remove(&image.digest).unwrap_or_default();
        to_wire(name, image, &tags)
    };
    Ok(images.into_iter().map(image).collect())
}

pub(super) fn absent(name: &str) -> ApiError {
    ApiError::not_found(KIND, name)
}

pub(super) fn parse_name(name: &str) -> Result<(RepositoryName, ImageSelector), ApiError> {
    names::parse_image(name).map_err(|error| ApiError::field("name", error))
}

fn read_filter(text: &str) -> Result<Filter, Violations> {
    let mut filter = Filter::default();
    for term in filter::parse(text)? {
        let twice = match (term.field.as_str(), &term.value) {
            ("tag", Value::Text(tag)) => {
                let tag = tag.parse().map_err(|error| term.wrong(format!("`tag` {error}")))?;
                filter.tag.replace(tag).is_some()
            }
            ("tagged", Value::Flag(tagged)) => filter.tagged.replace(*tagged).is_some(),
            _ => return Err(term.wrong("a term is `tag = \"v1\"` or `tagged = true`")),
        };
        if twice {
            return Err(term.wrong(format!("`{}` is given twice", term.field)));
        }
    }
    Ok(filter)
}

fn to_wire(repository: &RepositoryName, image: Image, tags: &[Tagged]) -> pb::Image {
    let tag =
        |tagged: &Tagged| pb::Tag { tag: tagged.tag.to_string(), validate_time: tagged.validate_time.map(timestamp) };
    pb::Image {
        name: names::image(repository, &image.digest),
        digest: image.digest.to_string(),
        tags: tags.iter().map(tag).collect(),
        media_type: image.media_type,
        platforms: image.platforms,
        manifest_size_bytes: image.manifest_size_bytes,
        content_size_bytes: image.content_size_bytes,
        cache_time: Some(timestamp(image.cache_time)),
        last_validate_time: tags.iter().filter_map(|tagged| tagged.validate_time).max().map(timestamp),
        last_pull_time: image.last_pull_time.map(timestamp),
        lagging_node_count: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_say_which_images() {
        let filter = read_filter(r#"tag = "v1" AND tagged = true"#).unwrap();
        assert_eq!(filter, Filter { tag: Some("v1".parse().unwrap()), tagged: Some(true) });
        assert!(read_filter(r#"tag = "-""#).unwrap_err().to_string().contains("`tag` must be 1 to 128"));
        assert!(read_filter("tag = true").is_err());
    }
}
