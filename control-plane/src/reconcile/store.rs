//! Goes through the store: changed records are read, and rows without a record are looked up.

use std::collections::{BTreeSet, HashMap, HashSet};

use entrepot_domain::RepositoryName;
use entrepot_records::{RepositoryRecord, State, layout};
use entrepot_store::Key;
use tracing::info;
use uuid::Uuid;

use super::listing::Listing;
use super::records::{Images, Tags};
use super::{Books, Read, Reads, Reindexed};
use crate::db::repositories;
use crate::db::repositories::Compared;
use crate::error::ApiError;
use crate::{at_once, index};

/// How many keys of the store are checked in one step.
const KEYS: usize = 1000;

impl Books<'_> {
    /// Compares some of the store's records with their rows. Returns the last key; `None` if there are no more.
    pub(super) async fn check_store(
        &self,
        after: Option<&Key>,
        listed: &mut HashSet<Uuid>,
        counts: &mut Reindexed,
    ) -> Result<Option<Key>, ApiError> {
        let entries = self.store.list(&layout::repositories_prefix(), after, KEYS).await?;
        let mut listing = Listing::of(entries, after, KEYS);
        let live = self.check_repositories(&listing, listed, counts).await?;
        listing.images.retain(|listed| live.get(&listed.name) == Some(&listed.incarnation));
        listing.tags.retain(|listed| live.get(&listed.name) == Some(&listed.incarnation));
        self.check_rows::<Images>(&listing, &live, counts).await?;
        self.check_rows::<Tags>(&listing, &live, counts).await?;
        Ok(listing.last)
    }

    /// Compares repositories. Returns the incarnation of each.
    async fn check_repositories(
        &self,
        listing: &Listing,
        listed: &mut HashSet<Uuid>,
        counts: &mut Reindexed,
    ) -> Result<HashMap<RepositoryName, Uuid>, ApiError> {
        let names: Vec<&str> = listing.names.iter().map(RepositoryName::as_str).collect();
        let incarnations = listing.incarnations();
        let all: Vec<Uuid> = incarnations.iter().map(|(_, incarnation)| *incarnation).collect();
        let (rows, known) = {
            let mut connection = self.db.connect().await?;
            let tx = connection.begin("reconcile_repositories").await?;
            (repositories::compared(&tx, &names).await?, repositories::known(&tx, &all).await?)
        };
        let known: HashMap<Uuid, bool> = known.into_iter().collect();
        let rows: HashMap<&RepositoryName, &Compared> = rows.iter().map(|row| (&row.name, row)).collect();
        let mut live: HashMap<RepositoryName, Uuid> = HashMap::new();
        for (name, row) in &rows {
            live.extend(row.incarnation.map(|incarnation| ((*name).clone(), incarnation)));
        }

        let unknown = incarnations.iter().filter(|(_, incarnation)| !known.contains_key(incarnation));
        let changed = listing.repositories.iter().filter(|(name, version)| {
            let compared = rows.get(name).and_then(|row| row.version.as_ref());
            self.reads == Reads::All || compared != Some(version)
        });
        let read: BTreeSet<&RepositoryName> =
            unknown.clone().map(|(name, _)| name).chain(changed.map(|(name, _)| name)).collect();
        let read = read.into_iter().map(|name| async move {
            Ok::<_, ApiError>((name, self.read::<RepositoryRecord>(&layout::repository(name)).await?))
        });
        for (name, record) in at_once::all(read).await? {
            let version = listing.repositories.get(name).map(String::as_str);
            let strangers = unknown.clone().filter(|(of, _)| of == name).map(|(_, incarnation)| *incarnation);
            let incarnations: BTreeSet<Uuid> = live.remove(name).into_iter().chain(strangers).collect();
            for incarnation in incarnations {
                self.check_repository((name, incarnation), &record, version, counts).await?;
            }
            if let Read::Record(record) = &record {
                self.take_in(name, record, version, counts).await?;
                live.extend(record.is_live().then(|| (name.clone(), record.incarnation)));
            }
        }
        let shown = listing.repositories.keys();
        let before = shown.clone().filter_map(|name| rows.get(name)?.incarnation);
        listed.extend(before.chain(shown.clone().filter_map(|name| live.get(name).copied())));
        counts.repositories.found += shown.filter(|name| live.contains_key(*name)).count() as u64;
        Ok(live)
    }

    /// Makes sure that the index has a live repository, or knows that it is dead, and that it remembers the record's
    /// version.
    async fn take_in(
        &self,
        name: &RepositoryName,
        record: &RepositoryRecord,
        version: Option<&str>,
        counts: &mut Reindexed,
    ) -> Result<(), ApiError> {
        let incarnation = record.incarnation;
        let mut connection = self.db.connect().await?;
        let tx = connection.begin("reconcile_repository").await?;
        let is_new = record.is_live() && index::ensure(&tx, name, record).await?;
        let is_dead = record.state == State::Deleted;
        if is_dead {
            repositories::bury(&tx, &[incarnation], self.clock.now()).await?;
        }
        match version {
            Some(version) if is_dead => repositories::note_tombstone(&tx, (name, incarnation), version).await?,
            Some(version) if is_new => repositories::note_version(&tx, incarnation, version).await?,
            Some(_) | None => {}
        }
        tx.commit().await?;
        if is_new {
            counts.repositories.added += 1;
            info!(repository.name = %name, "added `{name}` to the index: the store has it");
        }
        Ok(())
    }
}
