//! Compares the records of images and tags with their rows.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;

use entrepot_domain::{Digest, RepositoryName, Tag};
use entrepot_records::{BlobLink, ManifestLink, TagRecord, layout};
use uuid::Uuid;

use super::listing::{Listed, Listing};
use super::{Books, Read, Reads, Reindexed, Repaired};
use crate::db::comparison::{Compared, Part, Table};
use crate::db::tags::Moved;
use crate::db::{Tx, images, repositories, tags};
use crate::error::ApiError;
use crate::{at_once, index};

/// How many rows without a record are looked up at a time.
const ROWS: usize = 500;

/// One kind of rows, and the records that they follow.
pub(super) trait Rows: 'static {
    /// The name of its transactions.
    const WORK: &'static str;
    /// The queries for its table.
    const TABLE: Table<Self::Id>;
    /// The id of a row within its repository.
    type Id: ToString + Send + Sync + 'static;
    /// What is read for a row.
    type Record: Send;

    /// The records on a page of the store's list.
    fn listed(listing: &Listing) -> &[Listed<Self::Id>];
    /// The range of an incarnation's rows that the page covers.
    fn part(listing: &Listing, name: &RepositoryName, incarnation: Uuid) -> Option<Part>;
    /// The counters for this kind.
    fn counts(counts: &mut Reindexed) -> &mut Repaired;
    /// Reads the record that a row follows.
    fn read(
        books: &Books<'_>,
        name: &RepositoryName,
        incarnation: Uuid,
        id: &Self::Id,
    ) -> impl Future<Output = Result<Self::Record, ApiError>> + Send;
    /// Makes a row follow its record, and remember the record's version.
    fn follow(
        tx: &Tx<'_>,
        row: (Uuid, &Self::Id),
        record: &Self::Record,
        showed: bool,
        version: Option<&str>,
        counts: &mut Repaired,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// Rows of images, which follow the links of manifests.
pub(super) enum Images {}

/// Rows of tags.
pub(super) enum Tags {}

/// A manifest's link, and the platform in its configuration.
type Link = (Read<ManifestLink>, Option<String>);

impl Rows for Images {
    const WORK: &'static str = "reconcile_images";
    const TABLE: Table<Digest> = images::COMPARISON;
    type Id = Digest;
    type Record = Link;

    fn listed(listing: &Listing) -> &[Listed<Digest>] {
        &listing.images
    }

    fn part(listing: &Listing, name: &RepositoryName, incarnation: Uuid) -> Option<Part> {
        listing.images_of(name, incarnation)
    }

    fn counts(counts: &mut Reindexed) -> &mut Repaired {
        &mut counts.images
    }

    async fn read(
        books: &Books<'_>,
        name: &RepositoryName,
        incarnation: Uuid,
        digest: &Digest,
    ) -> Result<Link, ApiError> {
        let link = books.read::<ManifestLink>(&layout::manifest_link(name, incarnation, digest)).await?;
        let config = match &link {
            Read::Record(link) if link.is_live() => link.config.as_ref().map(|config| &config.digest),
            Read::Record(_) | Read::Absent | Read::Unreadable => None,
        };
        let config = match config {
            Some(config) => books.read::<BlobLink>(&layout::blob_link(name, incarnation, config)).await?.record(),
            None => None,
        };
        Ok((link, config.and_then(|config| config.platform)))
    }

    async fn follow(
        tx: &Tx<'_>,
        (incarnation, digest): (Uuid, &Digest),
        (link, platform): &Link,
        showed: bool,
        version: Option<&str>,
        counts: &mut Repaired,
    ) -> Result<(), ApiError> {
        let link = match link {
            Read::Record(link) => link,
            Read::Unreadable => return Ok(()),
            Read::Absent => {
                counts.note(false, showed, images::forget(tx, incarnation, digest).await?);
                return Ok(());
            }
        };
        // What another release means by its state is left alone.
        let Some(state) = link.state.known() else { return Ok(()) };
        let image = index::image(digest, link);
        let is_live = state == entrepot_records::State::Live;
        let changed = match is_live {
            true => images::follow(tx, incarnation, &image).await?,
            false => images::bury(tx, incarnation, &image).await?,
        };
        counts.note(is_live, showed, changed);
        if let (Some(config), Some(platform)) = (&image.config, platform) {
            images::put_config(tx, incarnation, config, platform).await?;
        }
        if let Some(version) = version {
            images::note_version(tx, incarnation, &image, is_live, version).await?;
        }
        Ok(())
    }
}

impl Rows for Tags {
    const WORK: &'static str = "reconcile_tags";
    const TABLE: Table<Tag> = tags::COMPARISON;
    type Id = Tag;
    type Record = Read<TagRecord>;

    fn listed(listing: &Listing) -> &[Listed<Tag>] {
        &listing.tags
    }

    fn part(listing: &Listing, name: &RepositoryName, incarnation: Uuid) -> Option<Part> {
        listing.tags_of(name, incarnation)
    }

    fn counts(counts: &mut Reindexed) -> &mut Repaired {
        &mut counts.tags
    }

    async fn read(
        books: &Books<'_>,
        name: &RepositoryName,
        incarnation: Uuid,
        tag: &Tag,
    ) -> Result<Read<TagRecord>, ApiError> {
        books.read(&layout::tag(name, incarnation, tag)).await
    }

    async fn follow(
        tx: &Tx<'_>,
        (incarnation, tag): (Uuid, &Tag),
        record: &Read<TagRecord>,
        showed: bool,
        version: Option<&str>,
        counts: &mut Repaired,
    ) -> Result<(), ApiError> {
        let record = match record {
            Read::Record(record) => record,
            Read::Unreadable => return Ok(()),
            Read::Absent => {
                counts.note(false, showed, tags::forget(tx, incarnation, tag).await?);
                return Ok(());
            }
        };
        let TagRecord { revision, validate_time, .. } = *record;
        let moved = Moved { tag, digest: record.digest.as_ref(), revision, validate_time };
        counts.note(record.digest.is_some(), showed, tags::follow(tx, incarnation, moved).await?);
        if let Some(version) = version {
            tags::note_version(tx, incarnation, moved, version).await?;
        }
        Ok(())
    }
}

impl Books<'_> {
    /// Compares the rows that a page of the store's list covers with their records.
    pub(super) async fn check_rows<R: Rows>(
        &self,
        listing: &Listing,
        live: &HashMap<RepositoryName, Uuid>,
        counts: &mut Reindexed,
    ) -> Result<(), ApiError> {
        let counts = R::counts(counts);
        let listed: Vec<(Uuid, String)> = R::listed(listing).iter().map(Listed::row).collect();
        let rows = {
            let mut connection = self.db.connect().await?;
            R::TABLE.compared(&connection.begin(R::WORK).await?, &listed).await?
        };
        let changed = self.changed(R::listed(listing), &rows, counts).into_iter();
        let read = changed.map(|(listed, showed)| async move {
            let record = R::read(self, &listed.name, listed.incarnation, &listed.id).await?;
            Ok::<_, ApiError>((listed, showed, record))
        });
        let read: Vec<_> = at_once::all(read).await?;
        {
            let mut connection = self.db.connect().await?;
            let tx = connection.begin(R::WORK).await?;
            let there = incarnations(read.iter().map(|(listed, ..)| listed.incarnation));
            let there = repositories::lock(&tx, &there).await?;
            for (listed, showed, record) in read {
                if there.contains(&listed.incarnation) {
                    let row = (listed.incarnation, &listed.id);
                    R::follow(&tx, row, &record, showed, Some(&listed.version), counts).await?;
                }
            }
            tx.commit().await?;
        }

        let parts: Vec<Part> =
            live.iter().filter_map(|(name, incarnation)| R::part(listing, name, *incarnation)).collect();
        let names: HashMap<Uuid, &RepositoryName> =
            live.iter().map(|(name, incarnation)| (*incarnation, name)).collect();
        let mut after = (Uuid::nil(), String::new());
        loop {
            let rows = {
                let mut connection = self.db.connect().await?;
                let tx = connection.begin(R::WORK).await?;
                R::TABLE.unlisted(&tx, &parts, &listed, &after, ROWS as i64).await?
            };
            let Some((incarnation, last)) = rows.last() else { return Ok(()) };
            after = (*incarnation, last.to_string());
            let read = rows.iter().filter_map(|row| Some((row, *names.get(&row.0)?)));
            let read = read.map(|((incarnation, id), name)| async move {
                let record = R::read(self, name, *incarnation, id).await?;
                Ok::<_, ApiError>(((*incarnation, id), record))
            });
            let read: Vec<_> = at_once::all(read).await?;
            let mut connection = self.db.connect().await?;
            let tx = connection.begin(R::WORK).await?;
            let there = repositories::lock(&tx, &incarnations(read.iter().map(|(row, _)| row.0))).await?;
            for (row, record) in read.into_iter().filter(|(row, _)| there.contains(&row.0)) {
                R::follow(&tx, row, &record, true, None, counts).await?;
            }
            tx.commit().await?;
        }
    }

    /// The listed records to read, each with whether its row shows something. All others agree with their rows.
    fn changed<'l, T>(
        &self,
        listed: &'l [Listed<T>],
        rows: &HashMap<usize, Compared>,
        counts: &mut Repaired,
    ) -> Vec<(&'l Listed<T>, bool)> {
        let mut changed = Vec::new();
        for (n, listed) in listed.iter().enumerate() {
            match rows.get(&n) {
                Some(row) if self.reads == Reads::Changed && row.version.as_ref() == Some(&listed.version) => {
                    counts.found += u64::from(row.is_live);
                }
                row => changed.push((listed, row.is_some_and(|row| row.is_live))),
            }
        }
        changed
    }
}

fn incarnations(all: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
    let all: BTreeSet<Uuid> = all.collect();
    all.into_iter().collect()
}
