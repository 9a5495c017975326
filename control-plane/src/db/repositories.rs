//! The index of repositories, and the dead incarnations.

use chrono::{DateTime, Utc};
use entrepot_domain::template::RepositorySettings;
use entrepot_domain::{RepositoryName, ResourceId};
use entrepot_records::SettingsRecord;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::row::{column, parsed, parsed_opt};
use super::{Error, Tx};

/// A repository in the index.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    pub(crate) incarnation: Uuid,
    pub(crate) name: RepositoryName,
    pub(crate) rule_uid: Option<Uuid>,
    /// The rule with that uid, if it still exists.
    pub(crate) rule_id: Option<ResourceId>,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) last_pull_time: Option<DateTime<Utc>>,
    pub(crate) image_count: i64,
    /// The settings that it was created with.
    pub(crate) settings: RepositorySettings,
    /// Whether its tags are synced automatically; `None` leaves this to its rule.
    pub(crate) automatic_sync: Option<bool>,
}

impl Repository {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            incarnation: column(row, "incarnation")?,
            name: parsed(row, "name")?,
            rule_uid: column(row, "rule_uid")?,
            rule_id: parsed_opt(row, "rule_id")?,
            create_time: column(row, "create_time")?,
            last_pull_time: column(row, "last_pull_time")?,
            image_count: column(row, "image_count")?,
            settings: settings(row)?,
            automatic_sync: column(row, "automatic_sync")?,
        })
    }
}

/// Selects repositories to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Only those whose name begins like this.
    pub(crate) prefix: Option<String>,
    /// Only those that this rule fills.
    pub(crate) rule: Option<ResourceId>,
    /// Only those that are filled from an upstream, or only those that are not.
    pub(crate) cached: Option<bool>,
}

/// The facts about a repository that the index needs.
#[derive(Clone, Debug)]
pub(crate) struct Created<'a> {
    pub(crate) incarnation: Uuid,
    pub(crate) name: &'a RepositoryName,
    pub(crate) rule_uid: Option<Uuid>,
    pub(crate) create_time: DateTime<Utc>,
    pub(crate) automatic_sync: Option<bool>,
    pub(crate) settings: SettingsRecord,
}

pub(super) fn settings(row: &Row) -> Result<RepositorySettings, Error> {
    let value = column::<Option<serde_json::Value>>(row, "settings")?.unwrap_or_default();
    // As in the record itself: with an unknown mutability no tag may move.
    let unknown = || SettingsRecord { tag_mutability: "UNKNOWN".to_owned(), ..SettingsRecord::default() };
    let record = if value.is_null() { Ok(SettingsRecord::default()) } else { serde_json::from_value(value) };
    let record = record.unwrap_or_else(|_| unknown());
    Ok(record.settings())
}

pub(crate) async fn get(tx: &Tx<'_>, name: &RepositoryName) -> Result<Option<Repository>, Error> {
    const SQL: &str = "-- repositories.get
        SELECT r.incarnation, name, rule_uid, rule_id, r.create_time, r.last_pull_time, r.settings, r.automatic_sync,
               r.image_count
          FROM repositories r LEFT JOIN rules ON rules.uid = rule_uid
         WHERE name = $1";
    tx.query_opt(SQL, &[&name.as_str()]).await?.as_ref().map(Repository::from_row).transpose()
}

/// At most `limit` repositories by name that match the filter, only those after `after`.
pub(crate) async fn list(tx: &Tx<'_>, filter: &Filter, after: &str, limit: i64) -> Result<Vec<Repository>, Error> {
    // A statement for each filter, since each has its index.
    macro_rules! list {
        ($filter:literal) => {
            concat!(
                "-- repositories.list
        SELECT r.incarnation, name, rule_uid, rule_id, r.create_time, r.last_pull_time, r.settings, r.automatic_sync,
               r.image_count
          FROM repositories r LEFT JOIN rules ON rules.uid = rule_uid
         WHERE name > $1 AND name >= $2 AND name < $3 AND ",
                $filter,
                " ORDER BY name LIMIT $4"
            )
        };
    }
    const ALL: &str = list!("true");
    const CACHED: &str = list!("rule_uid IS NOT NULL");
    const HOSTED: &str = list!("rule_uid IS NULL");
    const OF_RULE: &str = list!("rule_uid = (SELECT uid FROM rules WHERE rule_id = $5)");
    let prefix = filter.prefix.as_deref().unwrap_or_default();
    let end = behind(prefix);
    let given: [&(dyn ToSql + Sync); 4] = [&after, &prefix, &end, &limit];
    let rows = match (&filter.rule, filter.cached) {
        (None, None) => tx.query(ALL, &given).await?,
        (None, Some(true)) => tx.query(CACHED, &given).await?,
        (None, Some(false)) => tx.query(HOSTED, &given).await?,
        (Some(_), Some(false)) => return Ok(Vec::new()),
        (Some(rule), None | Some(true)) => tx.query(OF_RULE, &[&after, &prefix, &end, &limit, &rule.as_str()]).await?,
    };
    rows.iter().map(Repository::from_row).collect()
}

/// A text that sorts after every name with this prefix: all characters of names sort before `~`.
fn behind(prefix: &str) -> String {
    format!("{prefix}~")
}

/// Notes a repository, whose name the caller has locked. Any other repository with this name in the index is gone.
pub(crate) async fn put(tx: &Tx<'_>, created: &Created<'_>) -> Result<(), Error> {
    const REPLACE: &str = "-- repositories.put: replace
        WITH gone AS (
            DELETE FROM repositories WHERE name = $1 AND incarnation <> $2 RETURNING incarnation, name)
        INSERT INTO changes (kind, incarnation, repository)
        SELECT 'REPOSITORY_DELETED', incarnation, name FROM gone";
    const INSERT: &str = "-- repositories.put: insert
        INSERT INTO repositories (incarnation, name, rule_uid, create_time, settings, automatic_sync)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (incarnation) DO UPDATE
           SET rule_uid = excluded.rule_uid, create_time = excluded.create_time, settings = excluded.settings,
               record_version = NULL";
    tx.execute(REPLACE, &[&created.name.as_str(), &created.incarnation]).await?;
    let Created { incarnation, name, rule_uid, create_time, settings, automatic_sync } = created;
    let settings = serde_json::to_value(settings).ok().filter(|_| *settings != SettingsRecord::default());
    tx.execute(INSERT, &[incarnation, &name.as_str(), rule_uid, create_time, &settings, automatic_sync]).await?;
    Ok(())
}

/// Keeps other transactions from deciding about this name until this transaction ends.
pub(crate) async fn lock_name(tx: &Tx<'_>, name: &RepositoryName) -> Result<(), Error> {
    const SQL: &str = "-- repositories.lock_name
        SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    tx.execute(SQL, &[&name.as_str()]).await?;
    Ok(())
}

/// Locks those of `incarnations` that the index has, always in the same order, and returns them.
pub(crate) async fn lock(tx: &Tx<'_>, incarnations: &[Uuid]) -> Result<Vec<Uuid>, Error> {
    const SQL: &str = "-- repositories.lock
        SELECT incarnation FROM repositories WHERE incarnation = ANY($1) ORDER BY incarnation FOR UPDATE";
    tx.query(SQL, &[&incarnations]).await?.iter().map(|row| column(row, "incarnation")).collect()
}

/// Those of `incarnations` that the index has, alive or dead, each with whether it is alive.
pub(crate) async fn known(tx: &Tx<'_>, incarnations: &[Uuid]) -> Result<Vec<(Uuid, bool)>, Error> {
    const SQL: &str = "-- repositories.known
        SELECT incarnation, true AS alive FROM repositories WHERE incarnation = ANY($1)
        UNION ALL
        SELECT incarnation, false FROM dead_incarnations WHERE incarnation = ANY($1)";
    let rows = tx.query(SQL, &[&incarnations]).await?;
    rows.iter().map(|row| Ok((column(row, "incarnation")?, column(row, "alive")?))).collect()
}

/// Notes incarnations as dead, and deletes everything that the index has of them. Returns how many it had.
pub(crate) async fn bury(tx: &Tx<'_>, incarnations: &[Uuid], now: DateTime<Utc>) -> Result<u64, Error> {
    const REMEMBER: &str = "-- repositories.bury: remember
        INSERT INTO dead_incarnations (incarnation, death_time) SELECT unnest($1::uuid[]), $2 ON CONFLICT DO NOTHING";
    const FORGET: &str = "-- repositories.bury: forget
        WITH gone AS (
            DELETE FROM repositories WHERE incarnation = ANY($1) RETURNING incarnation, name)
        INSERT INTO changes (kind, incarnation, repository)
        SELECT 'REPOSITORY_DELETED', incarnation, name FROM gone";
    tx.execute(REMEMBER, &[&incarnations, &now]).await?;
    tx.execute(FORGET, &[&incarnations]).await
}

/// Deletes everything that the index has of an incarnation without a record, if it was noted long enough ago. Returns
/// how many incarnations that were.
pub(crate) async fn forget(tx: &Tx<'_>, incarnation: Uuid) -> Result<u64, Error> {
    const SQL: &str = "-- repositories.forget
        WITH gone AS (
            DELETE FROM repositories WHERE incarnation = $1 AND index_time < now() - interval '1 minute' RETURNING incarnation, name)
        INSERT INTO changes (kind, incarnation, repository)
        SELECT 'REPOSITORY_DELETED', incarnation, name FROM gone";
    tx.execute(SQL, &[&incarnation]).await
}

/// Notes which rule fills a repository now. Returns how many repositories had another rule.
pub(crate) async fn adopt(tx: &Tx<'_>, incarnation: Uuid, rule_uid: Option<Uuid>) -> Result<u64, Error> {
    const SQL: &str = "-- repositories.adopt
        UPDATE repositories SET rule_uid = $2, record_version = NULL
         WHERE incarnation = $1 AND rule_uid IS DISTINCT FROM $2";
    tx.execute(SQL, &[&incarnation, &rule_uid]).await
}

/// Notes the setting for automatic syncs in a record. Returns how many repositories had another setting.
pub(crate) async fn set_automatic_sync(tx: &Tx<'_>, incarnation: Uuid, is_on: Option<bool>) -> Result<u64, Error> {
    const SQL: &str = "-- repositories.set_automatic_sync
        UPDATE repositories SET automatic_sync = $2, record_version = NULL
         WHERE incarnation = $1 AND automatic_sync IS DISTINCT FROM $2";
    tx.execute(SQL, &[&incarnation, &is_on]).await
}

/// Notes when something in repositories was last pulled.
pub(crate) async fn pulled(tx: &Tx<'_>, pulls: &[(Uuid, DateTime<Utc>)]) -> Result<(), Error> {
    const SQL: &str = "-- repositories.pulled
        UPDATE repositories r SET last_pull_time = given.time
          FROM unnest($1::uuid[], $2::timestamptz[]) AS given (incarnation, time)
         WHERE r.incarnation = given.incarnation AND (last_pull_time IS NULL OR last_pull_time < given.time)";
    let incarnations: Vec<Uuid> = pulls.iter().map(|(incarnation, _)| *incarnation).collect();
    let times: Vec<DateTime<Utc>> = pulls.iter().map(|(_, time)| *time).collect();
    tx.execute(SQL, &[&incarnations, &times]).await?;
    Ok(())
}

/// At most `limit` names with their incarnations, only those after `after`.
pub(crate) async fn page(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<(RepositoryName, Uuid)>, Error> {
    const SQL: &str = "-- repositories.page
        SELECT name, incarnation FROM repositories WHERE name > $1 ORDER BY name LIMIT $2";
    let rows = tx.query(SQL, &[&after, &limit]).await?;
    rows.iter().map(|row| Ok((parsed(row, "name")?, column(row, "incarnation")?))).collect()
}

/// A repository whose name the store lists.
#[derive(Clone, Debug)]
pub(crate) struct Compared {
    pub(crate) name: RepositoryName,
    /// The incarnation in the index.
    pub(crate) incarnation: Option<Uuid>,
    /// The version of the record that agrees with the row, or of the tombstone that was read.
    pub(crate) version: Option<String>,
}

/// The rows for these names.
pub(crate) async fn compared(tx: &Tx<'_>, names: &[&str]) -> Result<Vec<Compared>, Error> {
    const SQL: &str = "-- repositories.compared
        SELECT name, incarnation, record_version FROM repositories WHERE name = ANY($1)
        UNION ALL
        SELECT name, NULL, record_version FROM dead_incarnations d WHERE name = ANY($1)
           AND NOT EXISTS (SELECT FROM repositories r WHERE r.name = d.name)";
    let from_row = |row: &Row| {
        let (incarnation, version) = (column(row, "incarnation")?, column(row, "record_version")?);
        Ok(Compared { name: parsed(row, "name")?, incarnation, version })
    };
    tx.query(SQL, &[&names]).await?.iter().map(from_row).collect()
}

/// Notes that a repository's row agrees with its record at `version`.
pub(crate) async fn note_version(tx: &Tx<'_>, incarnation: Uuid, version: &str) -> Result<(), Error> {
    const SQL: &str = "-- repositories.note_version
        UPDATE repositories SET record_version = $2 WHERE incarnation = $1";
    tx.execute(SQL, &[&incarnation, &version]).await?;
    Ok(())
}

/// Notes that the tombstone at this name, for a dead incarnation, was read at `version`.
pub(crate) async fn note_tombstone(
    tx: &Tx<'_>,
    (name, incarnation): (&RepositoryName, Uuid),
    version: &str,
) -> Result<(), Error> {
    const OTHERS: &str = "-- repositories.note_tombstone: others
        UPDATE dead_incarnations SET name = NULL, record_version = NULL WHERE name = $1 AND incarnation <> $2";
    const SQL: &str = "-- repositories.note_tombstone
        UPDATE dead_incarnations SET name = $1, record_version = $3 WHERE incarnation = $2";
    tx.execute(OTHERS, &[&name.as_str(), &incarnation]).await?;
    tx.execute(SQL, &[&name.as_str(), &incarnation, &version]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_name_with_a_prefix_is_before_what_is_behind_it() {
        assert!("hub/zz_z-z.z" < super::behind("hub/").as_str());
        assert!("hub/zzzzzz" < super::behind("hub/z").as_str());
        assert!("huc" > super::behind("hub").as_str());
    }
}
