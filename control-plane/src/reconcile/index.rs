//! Goes through the repositories of the index: those that the store does not have are removed, and the others follow
//! their records.

use std::collections::HashSet;

use entrepot_domain::RepositoryName;
use entrepot_records::RepositoryRecord;
use entrepot_records::layout;
use tracing::info;
use uuid::Uuid;

use super::{Books, Read, Reindexed};
use crate::at_once;
use crate::db::repositories;
use crate::error::ApiError;
use crate::index::Verdict;

/// How many repositories are checked in one step.
const REPOSITORIES: i64 = 500;

impl Books<'_> {
    /// Looks up the records of some repositories in the index that the store did not list. Returns the last of them;
    /// `None` if there are no more.
    pub(super) async fn check_index(
        &self,
        after: Option<&RepositoryName>,
        listed: &HashSet<Uuid>,
        counts: &mut Reindexed,
    ) -> Result<Option<RepositoryName>, ApiError> {
        let rows = {
            let mut connection = self.db.connect().await?;
            let tx = connection.begin("reconcile_repositories").await?;
            repositories::page(&tx, after.map_or("", RepositoryName::as_str), REPOSITORIES).await?
        };
        let unlisted = rows.iter().filter(|(_, incarnation)| !listed.contains(incarnation));
        let read = unlisted.map(|(name, incarnation)| async move {
            Ok::<_, ApiError>((name, *incarnation, self.read(&layout::repository(name)).await?))
        });
        for (name, incarnation, record) in at_once::all(read).await? {
            self.check_repository((name, incarnation), &record, None, counts).await?;
        }
        Ok(rows.into_iter().next_back().map(|(last, _)| last))
    }

    /// Makes the row of an incarnation follow the record at its name, or removes it. The row remembers the record's
    /// version, if that is known.
    pub(super) async fn check_repository(
        &self,
        (name, incarnation): (&RepositoryName, Uuid),
        record: &Read<RepositoryRecord>,
        version: Option<&str>,
        counts: &mut Reindexed,
    ) -> Result<(), ApiError> {
        let record = match record {
            // A record that only another release understands is not treated as absent.
            Read::Record(record) if record.not_understood().is_some() => return Ok(()),
            Read::Unreadable => return Ok(()),
            Read::Record(record) => Some(record),
            Read::Absent => None,
        };
        let verdict = Verdict::of(record, incarnation);
        let mut connection = self.db.connect().await?;
        if let (Verdict::Live, Some(record)) = (verdict, record) {
            let tx = connection.begin("reconcile_rule").await?;
            let adopted = repositories::adopt(&tx, incarnation, record.rule_uid).await?;
            let switched = repositories::set_automatic_sync(&tx, incarnation, record.automatic_sync).await?;
            counts.repositories.corrected += adopted.max(switched);
            if let Some(version) = version {
                repositories::note_version(&tx, incarnation, version).await?;
            }
            return Ok(tx.commit().await?);
        }
        let tx = connection.begin("reconcile_gone").await?;
        repositories::lock_name(&tx, name).await?;
        let removed = match verdict {
            Verdict::Dead => repositories::bury(&tx, &[incarnation], self.clock.now()).await?,
            Verdict::Live | Verdict::Undecided => repositories::forget(&tx, incarnation).await?,
        };
        tx.commit().await?;
        if removed > 0 {
            counts.repositories.removed += removed;
            info!(repository.name = %name, "removed `{name}` from the index: the store does not have it");
        }
        Ok(())
    }
}
