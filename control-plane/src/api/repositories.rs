//! Repositories: what the index has, and their end.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use entrepot_domain::{Reference, RepositoryName, Tag};
use entrepot_proto::convert::{Violations, freshness, names, template, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::repositories_server::Repositories;
use entrepot_records::layout;
use entrepot_records::{self as records, RepositoryRecord, tombstone};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Api;
use super::caller::{Caller, Permission};
use super::filter::{self, Value};
use super::mask::{self, Field};
use super::operations::{self, Plan};
use super::page::Page;
use super::request_id::RequestId;
use super::resource::check_etag;
use crate::db::operations::Kind;
use crate::db::repositories::{self, Filter, Repository};
use crate::db::{Tx, tags};
use crate::error::ApiError;
use crate::index::Verdict;
use crate::plane::Plane;

const KIND: &str = "entrepot.v1.Repository";
/// How many tags one operation takes.
const TAGS: usize = 10_000;

const FIELDS: &[Field<pb::Repository>] = &[
    Field::immutable("name", |sent| !sent.name.is_empty(), |sent, stored| sent.name == stored.name),
    Field::mutable(
        "automatic_sync",
        |sent| sent.automatic_sync != 0,
        |sent, stored| stored.automatic_sync = sent.automatic_sync,
    ),
    Field::output_only("cached"),
    Field::output_only("rule"),
    Field::output_only("rule_uid"),
    Field::output_only("create_time"),
    Field::output_only("uid"),
    Field::output_only("image_count"),
    Field::output_only("last_pull_time"),
    Field::output_only("etag"),
];

#[tonic::async_trait]
impl Repositories for Api {
    async fn get_repository(
        &self,
        request: Request<pb::GetRepositoryRequest>,
    ) -> Result<Response<pb::Repository>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(get(&self.0, request.get_ref()).await?))
    }

    async fn list_repositories(
        &self,
        request: Request<pb::ListRepositoriesRequest>,
    ) -> Result<Response<pb::ListRepositoriesResponse>, Status> {
        self.caller(&request, Permission::Read).await?;
        Ok(Response::new(list(&self.0, request.get_ref()).await?))
    }

    async fn update_repository(
        &self,
        request: Request<pb::UpdateRepositoryRequest>,
    ) -> Result<Response<pb::Repository>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(update(&self.0, request.get_ref()).await?))
    }

    async fn sync_repository(
        &self,
        request: Request<pb::SyncRepositoryRequest>,
    ) -> Result<Response<pb::Operation>, Status> {
        let caller = self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(sync(&self.0, &caller, request.get_ref()).await?))
    }

    async fn delete_repository(
        &self,
        request: Request<pb::DeleteRepositoryRequest>,
    ) -> Result<Response<pb::Repository>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(delete(&self.0, request.get_ref()).await?))
    }
}

async fn get(plane: &Plane, request: &pb::GetRepositoryRequest) -> Result<pb::Repository, ApiError> {
    let name = parse_name("name", &request.name)?;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("get_repository").await?;
    Ok(to_wire(&require(&tx, &name).await?))
}

async fn list(plane: &Plane, request: &pb::ListRepositoriesRequest) -> Result<pb::ListRepositoriesResponse, ApiError> {
    let mut violations = Violations::default();
    let page = violations.merge(Page::<String>::read(
        &plane.cluster_key,
        "ListRepositories",
        &[&request.filter],
        request.page_size,
        &request.page_token,
    ));
    let filter = violations.merge(read_filter(&request.filter));
    let complete = (|| Some((page?, filter?)))();
    let (page, filter) = violations.finish(complete)?;

    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("list_repositories").await?;
    let after = page.after.as_deref().unwrap_or_default();
    let mut rows = repositories::list(&tx, &filter, after, page.fetch()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut rows, |last| last.name.to_string());
    Ok(pb::ListRepositoriesResponse { repositories: rows.iter().map(to_wire).collect(), next_page_token })
}

/// The store decides: its record is changed first, then the index, in a transaction that waits for no store. Of two calls
/// at once, the index may keep the earlier one's value until the reconciling pass.
async fn update(plane: &Plane, request: &pb::UpdateRepositoryRequest) -> Result<pb::Repository, ApiError> {
    let sent = request.repository.as_ref().ok_or_else(|| ApiError::field("repository", "must be set"))?;
    let name = parse_name("repository.name", &sent.name)?;
    let stored = find(plane, &name).await?.ok_or_else(|| absent(&name))?;
    let mut wire = to_wire(&stored);
    check_etag(&wire.name, &sent.etag, &wire.etag)?;
    mask::apply("repository", FIELDS, request.update_mask.as_ref(), sent, &mut wire)?;
    let automatic_sync = freshness::automatic_sync("repository.automatic_sync", wire.automatic_sync)?;

    let (of, now) = ((&name, stored.incarnation), plane.clock.now());
    let record = tombstone::set_automatic_sync(&*plane.store, of, automatic_sync, now).await?;
    record.ok_or_else(|| absent(&name))?;
    let lagging = plane.tell_keys(&[layout::repository(&name)]).await;
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("update_repository").await?;
    repositories::set_automatic_sync(&tx, stored.incarnation, automatic_sync).await?;
    tx.commit().await?;
    let wire = to_wire(&Repository { automatic_sync, ..stored });
    Ok(pb::Repository { lagging_node_count: lagging, ..wire })
}

async fn sync(plane: &Plane, caller: &Caller, request: &pb::SyncRepositoryRequest) -> Result<pb::Operation, ApiError> {
    let mut violations = Violations::default();
    let request_id = violations.merge(RequestId::read("SyncRepository", &request.request_id, request));
    let name = violations.take("name", names::parse_repository(&request.name));
    if request.tags.len() > TAGS {
        violations.add("tags", format!("must be at most {TAGS}: sync them in several operations"));
    }
    let asked: BTreeSet<Tag> = request.tags.iter().take(TAGS).enumerate().fold(BTreeSet::new(), |mut all, (i, tag)| {
        all.extend(violations.take(&format!("tags[{i}]"), tag.parse::<Tag>()));
        all
    });
    let (request_id, name) = violations.finish(request_id.zip(name))?;

    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("sync_repository").await?;
    let repository = require(&tx, &name).await?;
    let tags: Vec<Tag> = if asked.is_empty() {
        tags::page(&tx, repository.incarnation, "", i64::try_from(TAGS + 1).unwrap_or(i64::MAX)).await?
    } else {
        asked.into_iter().collect()
    };
    let refused = |description: String| {
        let subject = names::repository(&name);
        Err(ApiError::Precondition { kind: "TAGS_UNSUITABLE", subject, description })
    };
    match tags.len() {
        0 => return refused(format!("`{name}` has no cached tags: name those that are to be fetched")),
        count if count > TAGS => {
            return refused(format!("`{name}` has more than {TAGS} cached tags: name those that are to be synced"));
        }
        _ => {}
    }
    let images = tags.into_iter().map(|tag| (name.clone(), Reference::Tag(tag))).collect();
    let plan = Plan { kind: Kind::SyncRepository, repository: Some(name.clone()), images, platforms: Vec::new() };
    let operation = operations::begin(plane, &tx, caller, &request_id, &plan).await?;
    tx.commit().await?;
    Ok(operation)
}

/// The store decides: what its record shows is deleted there first, then in the index.
async fn delete(plane: &Plane, request: &pb::DeleteRepositoryRequest) -> Result<pb::Repository, ApiError> {
    let name = parse_name("name", &request.name)?;
    let now = plane.clock.now();
    let indexed = find(plane, &name).await?;
    if !request.etag.is_empty() {
        let current = indexed.as_ref().map(etag).ok_or_else(|| absent(&name))?;
        check_etag(&request.name, &request.etag, &current)?;
    }

    let buried = tombstone::bury_repository(&*plane.store, &name, now).await?;
    // Also where an earlier call had buried it, and could not tell.
    let lagging = plane.tell_keys(&[layout::repository(&name)]).await;
    let current = match &buried {
        Some(_) => None,
        None => records::read::<RepositoryRecord>(&*plane.store, &layout::repository(&name)).await?,
    };
    let current = current.map(|(record, _)| record);
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("delete_repository").await?;
    repositories::lock_name(&tx, &name).await?;
    if let Some(record) = &buried {
        repositories::bury(&tx, &[record.incarnation], now).await?;
    }
    let indexed = match indexed {
        Some(row) if forget(&tx, now, buried.as_ref(), current.as_ref(), row.incarnation).await? => Some(row),
        Some(_) | None => None,
    };
    tx.commit().await?;
    match (indexed, buried) {
        (Some(row), _) => Ok(pb::Repository { lagging_node_count: lagging, ..to_wire(&row) }),
        // Its creation has not come here yet.
        (None, Some(record)) => {
            let mut wire = pb::Repository {
                name: names::repository(&name),
                cached: record.rule_uid.is_some(),
                rule_uid: record.rule_uid.map(|uid| uid.to_string()).unwrap_or_default(),
                create_time: Some(timestamp(record.create_time)),
                uid: record.incarnation.to_string(),
                lagging_node_count: lagging,
                ..Default::default()
            };
            template::write_repository(&record.settings.settings(), &mut wire);
            Ok(wire)
        }
        (None, None) => Err(absent(&name)),
    }
}

/// What the index has under a name.
async fn find(plane: &Plane, name: &RepositoryName) -> Result<Option<Repository>, ApiError> {
    let mut connection = plane.db.connect().await?;
    let tx = connection.begin("find_repository").await?;
    Ok(repositories::get(&tx, name).await?)
}

/// Removes what the index has under a name whose live record was `buried`, or whose record is `current`. Says whether that
/// was deleted, now or before: a repository whose record is not written yet is none that could be.
async fn forget(
    tx: &Tx<'_>,
    now: DateTime<Utc>,
    buried: Option<&RepositoryRecord>,
    current: Option<&RepositoryRecord>,
    incarnation: Uuid,
) -> Result<bool, ApiError> {
    match Verdict::of(buried.or(current), incarnation) {
        Verdict::Dead => {
            repositories::bury(tx, &[incarnation], now).await?;
            Ok(true)
        }
        // Of the record that was buried, the row is gone by now; of a new one, it is not what was to be deleted.
        Verdict::Live => Ok(buried.is_some()),
        Verdict::Undecided => Ok(repositories::forget(tx, incarnation).await? > 0),
    }
}

pub(super) async fn require(tx: &Tx<'_>, name: &RepositoryName) -> Result<Repository, ApiError> {
    repositories::get(tx, name).await?.ok_or_else(|| absent(name))
}

pub(super) fn absent(name: &RepositoryName) -> ApiError {
    ApiError::not_found(KIND, names::repository(name))
}

pub(super) fn parse_name(field: &str, name: &str) -> Result<RepositoryName, ApiError> {
    names::parse_repository(name).map_err(|error| ApiError::field(field, error))
}

fn read_filter(text: &str) -> Result<Filter, Violations> {
    let mut filter = Filter::default();
    for term in filter::parse(text)? {
        let twice = match (term.field.as_str(), &term.value) {
            ("prefix", Value::Text(prefix)) => filter.prefix.replace(prefix.clone()).is_some(),
            ("rule", Value::Text(rule)) => {
                let id = names::parse_rule(rule).map_err(|error| term.wrong(format!("`rule` {error}")))?;
                filter.rule.replace(id).is_some()
            }
            ("cached", Value::Flag(cached)) => filter.cached.replace(*cached).is_some(),
            _ => {
                return Err(term.wrong("a term is `prefix = \"hub/\"`, `rule = \"rules/hub\"` or `cached = true`"));
            }
        };
        if twice {
            return Err(term.wrong(format!("`{}` is given twice", term.field)));
        }
    }
    Ok(filter)
}

/// The etag of what an operator can change of a repository.
fn etag(repository: &Repository) -> String {
    let automatic_sync = freshness::automatic_sync_to_wire(repository.automatic_sync);
    format!("\"{}-{}\"", repository.incarnation.simple(), i32::from(automatic_sync))
}

fn to_wire(repository: &Repository) -> pb::Repository {
    let mut wire = pb::Repository {
        name: names::repository(&repository.name),
        cached: repository.rule_uid.is_some(),
        rule: repository.rule_id.as_ref().map(names::rule).unwrap_or_default(),
        rule_uid: repository.rule_uid.map(|uid| uid.to_string()).unwrap_or_default(),
        create_time: Some(timestamp(repository.create_time)),
        uid: repository.incarnation.to_string(),
        image_count: repository.image_count,
        automatic_sync: freshness::automatic_sync_to_wire(repository.automatic_sync).into(),
        etag: etag(repository),
        last_pull_time: repository.last_pull_time.map(timestamp),
        ..Default::default()
    };
    template::write_repository(&repository.settings, &mut wire);
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_say_which_repositories() {
        let filter = read_filter(r#"prefix = "hub/" AND rule = "rules/hub" AND cached = true"#).unwrap();
        let expected = Filter { prefix: Some("hub/".into()), rule: Some("hub".parse().unwrap()), cached: Some(true) };
        assert_eq!(filter, expected);
        for (text, said) in [
            ("cached = true AND cached = false", "at character 19: `cached` is given twice"),
            (r#"rule = "hub""#, "`rule` must be `rules/<id>`"),
            (r#"cached = "x""#, "a term is"),
            (r#"name = "x""#, "a term is"),
        ] {
            let error = read_filter(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
