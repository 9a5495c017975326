//! Rules.

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::{Policy, Rest};
use entrepot_domain::{NamespacePrefix, ResourceId, Rule as DomainRule};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, corrupt, parsed};
use super::{Error, Tx};

/// A rule as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) rule: DomainRule,
    /// What newer releases have stored with its policy.
    pub(crate) policy_rest: Rest,
    pub(crate) upstream_id: ResourceId,
    pub(crate) revision: i64,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
}

impl Rule {
    fn from_row(row: &Row) -> Result<Self, Error> {
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

/// The statement of this name that selects rules.
macro_rules! select {
    ($name:literal, $which:literal) => {
        concat!(
            "-- rules.",
            $name,
            "
        SELECT r.uid, rule_id, prefix, upstream_uid, upstream_prefix, policy, r.revision, r.create_time,
               r.update_time, upstream_id
          FROM rules r JOIN upstreams u ON u.uid = upstream_uid
         ",
            $which
        )
    };
}

/// Creates a rule, or takes over all of its columns that may change.
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

/// The rule with this id.
pub(crate) async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Rule>, Error> {
    const SQL: &str = select!("get", "WHERE rule_id = $1");
    tx.query_opt(SQL, &[&id.as_str()]).await?.as_ref().map(Rule::from_row).transpose()
}

/// The rule for exactly this prefix.
pub(crate) async fn for_prefix(tx: &Tx<'_>, prefix: &NamespacePrefix) -> Result<Option<Rule>, Error> {
    const SQL: &str = select!("for_prefix", "WHERE prefix = $1");
    tx.query_opt(SQL, &[&prefix.to_string()]).await?.as_ref().map(Rule::from_row).transpose()
}

/// The rules whose prefix is one of `prefixes`.
pub(crate) async fn for_prefixes(tx: &Tx<'_>, prefixes: &[String]) -> Result<Vec<Rule>, Error> {
    const SQL: &str = select!("for_prefixes", "WHERE prefix = ANY($1)");
    tx.query(SQL, &[&prefixes]).await?.iter().map(Rule::from_row).collect()
}

/// At most `limit` rules by id, those behind `after`.
pub(crate) async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Rule>, Error> {
    const SQL: &str = select!("list", "WHERE rule_id > $1 ORDER BY rule_id LIMIT $2");
    tx.query(SQL, &[&after, &limit]).await?.iter().map(Rule::from_row).collect()
}

/// At most `limit` ids of rules that name an upstream.
pub(crate) async fn naming(tx: &Tx<'_>, upstream_uid: Uuid, limit: i64) -> Result<Vec<ResourceId>, Error> {
    const SQL: &str = "-- rules.naming
        SELECT rule_id FROM rules WHERE upstream_uid = $1 ORDER BY rule_id LIMIT $2";
    tx.query(SQL, &[&upstream_uid, &limit]).await?.iter().map(|row| parsed(row, "rule_id")).collect()
}

/// Deletes a rule.
pub(crate) async fn delete(tx: &Tx<'_>, uid: Uuid) -> Result<(), Error> {
    const SQL: &str = "-- rules.delete
        DELETE FROM rules WHERE uid = $1";
    tx.execute(SQL, &[&uid]).await?;
    Ok(())
}
