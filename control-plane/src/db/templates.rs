//! Templates.

use chrono::{DateTime, Utc};
use entrepot_domain::template::{ResourceTags, TagMutability};
use entrepot_domain::{NamespacePrefix, Template as DomainTemplate};
use entrepot_domain::{ResourceId, freshness::TagPattern};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, corrupt, id, named, page, parsed, parsed_all, readable};
use super::rules::Cover;
use super::{Error, Tx};

/// A template as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub(crate) template: DomainTemplate,
    pub(crate) description: String,
    pub(crate) revision: i64,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
}

impl Template {
    fn from_row(row: &Row) -> Result<Self, Error> {
        named(Self::read(row), || format!("templates/{}", id(row, "template_id")))
    }

    fn read(row: &Row) -> Result<Self, Error> {
        readable(row)?;
        let exclusions: Vec<TagPattern> = parsed_all(row, "exclusions")?;
        let tag_mutability = TagMutability::new(column(row, "tag_mutability")?, exclusions);
        let template = DomainTemplate {
            uid: column(row, "uid")?,
            id: parsed(row, "template_id")?,
            prefix: parsed(row, "prefix")?,
            tag_mutability: tag_mutability.map_err(|error| corrupt("tag_mutability", error))?,
            resource_tags: resource_tags(&column::<Value>(row, "resource_tags")?)?,
        };
        Ok(Self {
            template,
            description: column(row, "description")?,
            revision: column(row, "revision")?,
            create_time: column(row, "create_time")?,
            update_time: column(row, "update_time")?,
        })
    }
}

fn resource_tags(value: &Value) -> Result<ResourceTags, Error> {
    let mut tags = ResourceTags::default();
    let object = value.as_object().ok_or_else(|| corrupt("resource_tags", "is no object"))?;
    for (key, value) in object {
        let added = tags.add(key, value.as_str().unwrap_or_default());
        added.map_err(|error| corrupt("resource_tags", error))?;
    }
    Ok(tags)
}

/// Creates a template, or updates all of its changeable columns.
///
/// # Errors
/// [`Error::Taken`] for the id or the prefix.
pub(crate) async fn put(tx: &Tx<'_>, template: &Template) -> Result<(), Error> {
    const SQL: &str = "-- templates.put
        INSERT INTO templates (uid, template_id, prefix, description, tag_mutability, exclusions, resource_tags,
                               revision, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        ON CONFLICT (uid) DO UPDATE
           SET description = excluded.description, tag_mutability = excluded.tag_mutability,
               exclusions = excluded.exclusions, resource_tags = excluded.resource_tags,
               revision = excluded.revision, update_time = excluded.update_time";
    let mutability = &template.template.tag_mutability;
    let exclusions: Vec<&str> = mutability.exclusions().iter().map(TagPattern::as_str).collect();
    let tags = template.template.resource_tags.iter().map(|(key, value)| (key.to_owned(), Value::from(value)));
    let tags = Value::Object(tags.collect());
    tx.execute(
        SQL,
        &[
            &template.template.uid,
            &template.template.id.as_str(),
            &template.template.prefix.to_string(),
            &template.description,
            &mutability.as_str(),
            &exclusions,
            &tags,
            &template.revision,
            &template.create_time,
            &template.update_time,
        ],
    )
    .await?;
    Ok(())
}

/// The statement with this name that selects templates.
macro_rules! select {
    ($name:literal, $which:literal) => {
        concat!(
            "-- templates.",
            $name,
            "
        SELECT uid, template_id, prefix, description, tag_mutability, exclusions, resource_tags, revision, create_time,
               update_time, minimum_reader
          FROM templates ",
            $which
        )
    };
}

pub(crate) async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Template>, Error> {
    const SQL: &str = select!("get", "WHERE template_id = $1");
    tx.query_opt(SQL, &[&id.as_str()]).await?.as_ref().map(Template::from_row).transpose()
}

/// The template with exactly this prefix.
pub(crate) async fn for_prefix(tx: &Tx<'_>, prefix: &NamespacePrefix) -> Result<Option<Template>, Error> {
    const SQL: &str = select!("for_prefix", "WHERE prefix = $1");
    tx.query_opt(SQL, &[&prefix.to_string()]).await?.as_ref().map(Template::from_row).transpose()
}

/// The template with the longest of these `prefixes`; `ROOT` counts as the shortest.
pub(crate) async fn for_longest(tx: &Tx<'_>, prefixes: &[String]) -> Result<Option<Template>, Error> {
    const SQL: &str =
        select!("for_longest", "WHERE prefix = ANY($1) ORDER BY prefix <> 'ROOT' DESC, length(prefix) DESC LIMIT 1");
    tx.query_opt(SQL, &[&prefixes]).await?.as_ref().map(Template::from_row).transpose()
}

/// At most `limit` templates by id, only those after `after`.
pub(crate) async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Template>, Error> {
    const SQL: &str = select!("list", "WHERE template_id > $1 ORDER BY template_id LIMIT $2");
    page(tx, SQL, "template_id", after, limit, Template::from_row).await
}

/// All templates by id; for those that are not understood, the names that they cover.
pub(crate) async fn all(tx: &Tx<'_>) -> Result<Vec<Result<Template, Cover>>, Error> {
    const SQL: &str = select!("all", "ORDER BY template_id");
    let rows = tx.query(SQL, &[]).await?;
    rows.iter().map(|row| Cover::or(tx, row, "template_id", Template::from_row(row))).collect()
}

pub(crate) async fn delete(tx: &Tx<'_>, uid: Uuid) -> Result<(), Error> {
    const SQL: &str = "-- templates.delete
        DELETE FROM templates WHERE uid = $1";
    tx.execute(SQL, &[&uid]).await?;
    Ok(())
}
