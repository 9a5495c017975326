//! Rules.

mod freshness;

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::TagPattern;
use entrepot_domain::{NamespacePrefix, ResourceId, Rule as DomainRule};
use tokio_postgres::Row;
use uuid::Uuid;

use self::freshness::{TagWindowColumns, seconds};
use super::row::{column, parsed};
use super::{Error, Tx};

/// A rule as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) rule: DomainRule,
    pub(crate) upstream_id: ResourceId,
    pub(crate) revision: i64,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) update_time: DateTime<Utc>,
}

impl Rule {
    fn from_row(row: &Row) -> Result<Self, Error> {
        let rule = DomainRule {
            uid: column(row, "uid")?,
            id: parsed(row, "rule_id")?,
            prefix: parsed(row, "prefix")?,
            upstream_uid: column(row, "upstream_uid")?,
            upstream_prefix: parsed(row, "upstream_prefix")?,
            freshness: freshness::from_row(row)?,
        };
        Ok(Self {
            rule,
            upstream_id: parsed(row, "upstream_id")?,
            revision: column(row, "revision")?,
            create_time: column(row, "create_time")?,
            update_time: column(row, "update_time")?,
        })
    }
}

/// Creates a rule, or takes over all of its columns that may change.
///
/// # Errors
/// [`Error::Taken`] for the id or the prefix.
pub(crate) async fn put(tx: &Tx<'_>, rule: &Rule) -> Result<(), Error> {
    const SQL: &str = "-- rules.put
        INSERT INTO rules (uid, rule_id, prefix, upstream_uid, upstream_prefix, revision, create_time, update_time,
                           window_seconds, mode, immutable_tags, max_stale_seconds, when_deleted, when_denied,
                           tag_window_patterns, tag_window_seconds, tag_window_modes, tag_list_window_seconds,
                           referrers_window_seconds, automatic_sync)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
        ON CONFLICT (uid) DO UPDATE
           SET prefix = excluded.prefix, upstream_uid = excluded.upstream_uid,
               upstream_prefix = excluded.upstream_prefix, revision = excluded.revision,
               update_time = excluded.update_time, window_seconds = excluded.window_seconds, mode = excluded.mode,
               immutable_tags = excluded.immutable_tags, max_stale_seconds = excluded.max_stale_seconds,
               when_deleted = excluded.when_deleted, when_denied = excluded.when_denied,
               tag_window_patterns = excluded.tag_window_patterns, tag_window_seconds = excluded.tag_window_seconds,
               tag_window_modes = excluded.tag_window_modes,
               tag_list_window_seconds = excluded.tag_list_window_seconds,
               referrers_window_seconds = excluded.referrers_window_seconds,
               automatic_sync = excluded.automatic_sync";
    let policy = &rule.rule.freshness;
    let immutable_tags: Vec<&str> = policy.immutable_tags.iter().map(TagPattern::as_str).collect();
    let own = TagWindowColumns::of(policy);
    tx.execute(
        SQL,
        &[
            &rule.rule.uid,
            &rule.rule.id.as_str(),
            &rule.rule.prefix.to_string(),
            &rule.rule.upstream_uid,
            &rule.rule.upstream_prefix.to_string(),
            &rule.revision,
            &rule.create_time,
            &rule.update_time,
            &seconds(policy.window),
            &policy.mode.as_str(),
            &immutable_tags,
            &policy.max_stale.map(seconds),
            &policy.when_deleted.as_str(),
            &policy.when_denied.as_str(),
            &own.patterns,
            &own.seconds,
            &own.modes,
            &seconds(policy.tag_list_window),
            &seconds(policy.referrers_window),
            &policy.automatic_sync,
        ],
    )
    .await?;
    Ok(())
}

/// The rule with this id.
pub(crate) async fn get(tx: &Tx<'_>, id: &ResourceId) -> Result<Option<Rule>, Error> {
    const SQL: &str = "-- rules.get
        SELECT r.uid, rule_id, prefix, upstream_uid, upstream_prefix, r.revision, r.create_time, r.update_time,
               upstream_id, window_seconds, mode, immutable_tags, max_stale_seconds, when_deleted, when_denied,
               tag_window_patterns, tag_window_seconds, tag_window_modes, tag_list_window_seconds,
               referrers_window_seconds, r.automatic_sync
          FROM rules r JOIN upstreams u ON u.uid = upstream_uid
         WHERE rule_id = $1";
    tx.query_opt(SQL, &[&id.as_str()]).await?.as_ref().map(Rule::from_row).transpose()
}

/// The rule for exactly this prefix.
pub(crate) async fn for_prefix(tx: &Tx<'_>, prefix: &NamespacePrefix) -> Result<Option<Rule>, Error> {
    const SQL: &str = "-- rules.for_prefix
        SELECT r.uid, rule_id, prefix, upstream_uid, upstream_prefix, r.revision, r.create_time, r.update_time,
               upstream_id, window_seconds, mode, immutable_tags, max_stale_seconds, when_deleted, when_denied,
               tag_window_patterns, tag_window_seconds, tag_window_modes, tag_list_window_seconds,
               referrers_window_seconds, r.automatic_sync
          FROM rules r JOIN upstreams u ON u.uid = upstream_uid
         WHERE prefix = $1";
    tx.query_opt(SQL, &[&prefix.to_string()]).await?.as_ref().map(Rule::from_row).transpose()
}

/// The rules whose prefix is one of `prefixes`.
pub(crate) async fn for_prefixes(tx: &Tx<'_>, prefixes: &[String]) -> Result<Vec<Rule>, Error> {
    const SQL: &str = "-- rules.for_prefixes
        SELECT r.uid, rule_id, prefix, upstream_uid, upstream_prefix, r.revision, r.create_time, r.update_time,
               upstream_id, window_seconds, mode, immutable_tags, max_stale_seconds, when_deleted, when_denied,
               tag_window_patterns, tag_window_seconds, tag_window_modes, tag_list_window_seconds,
               referrers_window_seconds, r.automatic_sync
          FROM rules r JOIN upstreams u ON u.uid = upstream_uid
         WHERE prefix = ANY($1)";
    tx.query(SQL, &[&prefixes]).await?.iter().map(Rule::from_row).collect()
}

/// At most `limit` rules by id, those behind `after`.
pub(crate) async fn list(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<Rule>, Error> {
    const SQL: &str = "-- rules.list
        SELECT r.uid, rule_id, prefix, upstream_uid, upstream_prefix, r.revision, r.create_time, r.update_time,
               upstream_id, window_seconds, mode, immutable_tags, max_stale_seconds, when_deleted, when_denied,
               tag_window_patterns, tag_window_seconds, tag_window_modes, tag_list_window_seconds,
               referrers_window_seconds, r.automatic_sync
          FROM rules r JOIN upstreams u ON u.uid = upstream_uid
         WHERE rule_id > $1 ORDER BY rule_id LIMIT $2";
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
