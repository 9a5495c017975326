//! Rules.

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::{Policy, Rest};
use entrepot_domain::{NamespacePrefix, ResourceId, Rule as DomainRule};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, corrupt, id, named, page, parsed, readable};
use super::{Error, Tx};

/// A rule as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) rule: DomainRule,
    /// Fields that newer releases have stored in its policy.
    pub(crate) policy_rest: Rest,
    pub(crate) upstream_id: ResourceId,
    pub(crate) revision: i64,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
}

/// The names that a row covers which is not understood here. Nothing else may cover them instead.
pub(crate) struct Cover {
    pub(crate) uid: Uuid,
    pub(crate) id: String,
    pub(crate) prefix: String,
}

impl Cover {
    /// A row as it was read, or else the names that it covers.
    pub(super) fn or<T>(
        tx: &Tx<'_>,
        row: &Row,
        id: &'static str,
        read: Result<T, Error>,
    ) -> Result<Result<T, Self>, Error> {
        match read {
            Ok(value) => Ok(Ok(value)),
            Err(error @ Error::NotUnderstood { .. }) => {
                tx.left_out.note(&error);
                Ok(Err(Self { uid: column(row, "uid")?, id: column(row, id)?, prefix: column(row, "prefix")? }))
            }
            Err(error) => Err(error),
        }
    }
}

impl Rule {
    fn from_row(row: &Row) -> Result<Self, Error> {
        named(Self::read(row), || format!("rules/{}", id(row, "rule_id")))
    }

    fn read(row: &Row) -> Result<Self, Error> {
        readable(row)?;
        let Value::Object(stored) = column(row, "policy")? else { return Err(corrupt("policy", "not an object")) };
        let (freshness, policy_rest) = Policy::from_stored(stored);
        let rule = DomainRule {
            uid: column(row, "uid")?,
            id: parsed(row, "rule_id")?,
            prefix: parsed(row, "prefix")?,
            upstream_uid: column(row, "upstream_uid")?,
            upstream_prefix: parsed(row, "upstream_prefix")?,
            freshness,
        };
        Ok(Self {
            rule,
            policy_rest,
            upstream_id: parsed(row, "upstream_id")?,
            revision: column(row, "revision")?,
            create_time: column(row, "create_time")?,
            update_time: column(row, "update_time")?,
        })
    }
}

/// The statement with this name that selects rules.
macro_rules! select {
    ($name:literal, $which:literal) => {
        concat!(
            "-- rules.",
            $name,
            "
        SELECT r.uid, rule_id, prefix, upstream_uid, upstream_prefix, policy, r.revision, r.create_time,
               r.update_time, r.minimum_reader, upstream_id
          FROM rules r JOIN upstreams u ON u.uid = upstream_uid
         ",
            $which
        )
    };
}

/// Creates a rule, or updates all of its changeable columns.
///
/// # Errors
/// [`Error::Taken`] for the id or the prefix.
pub(crate) async fn put(tx: &Tx<'_>, rule: &Rule) -> Result<(), Error> {
    const SQL: &str = "-- rules.put
        INSERT INTO rules (uid, rule_id, prefix, upstream_uid, upstream_prefix, policy, revision, create_time,
                           update_time)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (uid) DO UPDATE
           SET prefix = excluded.prefix, upstream_uid = excluded.upstream_uid,
               upstream_prefix = excluded.upstream_prefix, policy = excluded.policy, revision = excluded.revision,
               update_time = excluded.update_time";
    tx.execute(
        SQL,
        &[
            &rule.rule.uid,
            &rule.rule.id.as_str(),
            &rule.rule.prefix.to_string(),
            &rule.rule.upstream_uid,
            &rule.rule.upstream_prefix.to_string(),
            &Value::Object(rule.rule.freshness.to_stored(&rule.policy_rest)),
            &rule.revision,
            &rule.create_time,
            &rule.update_time,
        ],
    )
    .await?;
    Ok(())
}

pub(crate) async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Rule>, Error> {
    const SQL: &str = select!("get", "WHERE rule_id = $1");
    tx.query_opt(SQL, &[&id.as_str()]).await?.as_ref().map(Rule::from_row).transpose()
}

/// The rule with exactly this prefix.
pub(crate) async fn for_prefix(tx: &Tx<'_>, prefix: &NamespacePrefix) -> Result<Option<Rule>, Error> {
    const SQL: &str = select!("for_prefix", "WHERE prefix = $1");
    tx.query_opt(SQL, &[&prefix.to_string()]).await?.as_ref().map(Rule::from_row).transpose()
}

/// The rule with the longest of these `prefixes`; `ROOT` counts as the shortest.
pub(crate) async fn for_longest(tx: &Tx<'_>, prefixes: &[String]) -> Result<Option<Rule>, Error> {
    const SQL: &str =
        select!("for_longest", "WHERE prefix = ANY($1) ORDER BY prefix <> 'ROOT' DESC, length(prefix) DESC LIMIT 1");
    tx.query_opt(SQL, &[&prefixes]).await?.as_ref().map(Rule::from_row).transpose()
}

/// At most `limit` rules by id, only those after `after`.
pub(crate) async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Rule>, Error> {
    const SQL: &str = select!("list", "WHERE rule_id > $1 ORDER BY rule_id LIMIT $2");
    page(tx, SQL, "rule_id", after, limit, Rule::from_row).await
}

/// All rules by id; for those that are not understood, the names that they cover.
pub(crate) async fn all(tx: &Tx<'_>) -> Result<Vec<Result<Rule, Cover>>, Error> {
    const SQL: &str = select!("all", "ORDER BY rule_id");
    let rows = tx.query(SQL, &[]).await?;
    rows.iter().map(|row| Cover::or(tx, row, "rule_id", Rule::from_row(row))).collect()
}

/// At most `limit` ids of rules that refer to an upstream.
pub(crate) async fn naming(tx: &Tx<'_>, upstream_uid: Uuid, limit: i64) -> Result<Vec<ResourceId>, Error> {
    const SQL: &str = "-- rules.naming
        SELECT rule_id FROM rules WHERE upstream_uid = $1 ORDER BY rule_id LIMIT $2";
    tx.query(SQL, &[&upstream_uid, &limit]).await?.iter().map(|row| parsed(row, "rule_id")).collect()
}

pub(crate) async fn delete(tx: &Tx<'_>, uid: Uuid) -> Result<(), Error> {
    const SQL: &str = "-- rules.delete
        DELETE FROM rules WHERE uid = $1";
    tx.execute(SQL, &[&uid]).await?;
    Ok(())
}
