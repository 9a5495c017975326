//! Goes through the index: rows whose records are gone go, rows that are behind come up to them.

use entrepot_domain::RepositoryName;
use entrepot_records::layout;
use entrepot_records::{ManifestLink, RepositoryRecord, State, TagRecord};
use tracing::info;
use uuid::Uuid;

use super::{Books, Position, Read, Reindexed, moved};
use crate::at_once;
use crate::db::{Connection, images, repositories, tags};
use crate::error::ApiError;
use crate::index::Verdict;

/// How many repositories are looked at in one step.
const REPOSITORIES: i64 = 50;
/// How many rows of one repository are looked up at a time.
const ROWS: i64 = 500;

impl Books<'_> {
    /// Looks up the records of some repositories that the index has.
    pub(super) async fn check_index(
        &self,
        after: Option<&RepositoryName>,
        counts: &mut Reindexed,
    ) -> Result<Position, ApiError> {
        let mut connection = self.db.connect().await?;
        let tx = connection.begin("reconcile_repositories").await?;
        let rows = repositories::page(&tx, after.map_or("", RepositoryName::as_str), REPOSITORIES).await?;
        drop(tx);
        let read = rows.iter().map(|(name, incarnation)| async move {
            Ok::<_, ApiError>((name, *incarnation, self.read(&layout::repository(name)).await?))
        });
        for (name, incarnation, record) in at_once::all(read).await? {
            self.check_repository(&mut connection, name, incarnation, record, counts).await?;
        }
        Ok(rows.into_iter().next_back().map_or(Position::Store(None), |(last, _)| Position::Index(last)))
    }

    async fn check_repository(
        &self,
        connection: &mut Connection,
        name: &RepositoryName,
        incarnation: Uuid,
        record: Read<RepositoryRecord>,
        counts: &mut Reindexed,
    ) -> Result<(), ApiError> {
        let record = match record {
            // What only another release understands is not taken for absent.
            Read::Record(record) if record.not_understood().is_some() => return Ok(()),
            Read::Unreadable => return Ok(()),
            Read::Record(record) => Some(record),
            Read::Absent => None,
        };
        let verdict = Verdict::of(record.as_ref(), incarnation);
        if let (Verdict::Live, Some(record)) = (verdict, &record) {
            let tx = connection.begin("reconcile_rule").await?;
            let adopted = repositories::adopt(&tx, incarnation, record.rule_uid).await?;
            let switched = repositories::set_automatic_sync(&tx, incarnation, record.automatic_sync).await?;
            counts.repositories.corrected += adopted.max(switched);
            tx.commit().await?;
            self.check_images(connection, name, incarnation, counts).await?;
            return self.check_tags(connection, name, incarnation, counts).await;
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

    /// Removes images from the index whose links are gone.
    async fn check_images(
        &self,
        connection: &mut Connection,
        name: &RepositoryName,
        incarnation: Uuid,
        counts: &mut Reindexed,
    ) -> Result<(), ApiError> {
        let mut after = String::new();
        loop {
            let tx = connection.begin("reconcile_images").await?;
            let rows = images::page(&tx, incarnation, &after, ROWS).await?;
            drop(tx);
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.to_string();
            let links = rows.into_iter().map(|digest| async move {
                let link = self.read::<ManifestLink>(&layout::manifest_link(name, incarnation, &digest)).await?;
                Ok::<_, ApiError>((digest, link))
            });
            let links: Vec<_> = at_once::all(links).await?;
            let tx = connection.begin("reconcile_images").await?;
            for (digest, link) in links {
                counts.images.removed += match link {
                    Read::Record(link) if link.state == State::Deleted => {
                        images::delete(&tx, incarnation, &digest, link.cache_time).await?
                    }
                    Read::Record(_) | Read::Unreadable => 0,
                    Read::Absent => images::forget(&tx, incarnation, &digest).await?,
                };
            }
            tx.commit().await?;
        }
    }

    /// Brings tags of the index up to their records.
    async fn check_tags(
        &self,
        connection: &mut Connection,
        name: &RepositoryName,
        incarnation: Uuid,
        counts: &mut Reindexed,
    ) -> Result<(), ApiError> {
        let mut after = String::new();
        loop {
            let tx = connection.begin("reconcile_tags").await?;
            let rows = tags::page(&tx, incarnation, &after, ROWS).await?;
            drop(tx);
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.to_string();
            let read = rows.into_iter().map(|tag| async move {
                let record = self.read::<TagRecord>(&layout::tag(name, incarnation, &tag)).await?;
                Ok::<_, ApiError>((tag, record))
            });
            let read: Vec<_> = at_once::all(read).await?;
            let tx = connection.begin("reconcile_tags").await?;
            for (tag, record) in read {
                match record {
                    Read::Record(record) => {
                        let moved = moved(&tag, &record);
                        // What is ahead of the index is taken at once, what is behind it only once it has settled.
                        let changed =
                            tags::put(&tx, incarnation, moved).await? + tags::correct(&tx, incarnation, moved).await?;
                        let count =
                            if record.digest.is_none() { &mut counts.tags.removed } else { &mut counts.tags.corrected };
                        *count += changed.min(1);
                    }
                    Read::Unreadable => {}
                    Read::Absent => counts.tags.removed += tags::forget(&tx, incarnation, &tag).await?,
                }
            }
            tx.commit().await?;
        }
    }
}
