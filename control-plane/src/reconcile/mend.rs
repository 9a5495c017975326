//! Rewrites unreadable records of repositories from their rows. Without these records nothing of the repositories can
//! be served, and nothing else in the store tells what they contained.

use entrepot_records::{self as records, Kind, RepositoryRecord, SettingsRecord, layout};
use tracing::{error, info};

use super::{Books, Read};
use crate::db::repositories::{self, Filter, Repository};
use crate::error::ApiError;

/// How many rows are checked in one step.
const ROWS: i64 = 500;

impl Books<'_> {
    /// Rewrites them, if they have rows.
    pub(crate) async fn mend_repositories(&self) -> Result<(), ApiError> {
        let mut after = String::new();
        loop {
            let rows = {
                let mut connection = self.db.connect().await?;
                let tx = connection.begin("mend_repositories").await?;
                repositories::list(&tx, &Filter::default(), &after, ROWS).await?
            };
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.name.to_string();
            for row in &rows {
                self.mend(row).await?;
            }
        }
    }

    async fn mend(&self, row: &Repository) -> Result<(), ApiError> {
        let (name, key) = (&row.name, layout::repository(&row.name));
        let Read::Unreadable = self.read::<RepositoryRecord>(&key).await? else { return Ok(()) };
        let object = self.store.get(&key).await;
        let replaced = match object {
            Ok(None) => return Ok(()),
            Ok(Some(object)) => records::replace(self.store, &key, Some(&object.version), &self.record(row)).await,
            Err(error) => Err(error),
        };
        match replaced {
            Ok(_) => info!(repository.name = %name, "wrote the record `{key}` again, from its row"),
            Err(error) if error.retry() => return Err(error.into()),
            Err(error) => error!(repository.name = %name, "the record `{key}` cannot be written again: {error}"),
        }
        Ok(())
    }

    /// The record of a repository according to the index. The place from which its rule fills it is added by its next
    /// fill.
    fn record(&self, row: &Repository) -> RepositoryRecord {
        let kind = if row.rule_uid.is_some() { Kind::Cached } else { Kind::Hosted };
        RepositoryRecord {
            kind: kind.into(),
            rule_uid: row.rule_uid,
            create_time: row.create_time,
            settings: SettingsRecord::from(&row.settings),
            automatic_sync: row.automatic_sync,
            ..RepositoryRecord::new(row.incarnation, self.clock.now())
        }
    }
}
