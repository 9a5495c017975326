//! Repositories as the store's records have them: what may be shown, and what a node writes when content is verified.
//! In which order that is written is said in [`entrepot_records::commit`].

mod aside;
mod damaged;
mod lists;
mod writer;

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::claim::Claimer;
use entrepot_domain::{Digest, Manifest, RepositoryName, Tag};
use entrepot_records::claim::Lookup;
use entrepot_records::commit::{self, FilledBlob, FilledManifest};
use entrepot_records::layout::Parsed;
use entrepot_records::tags::FilledTag;
use entrepot_records::{
    self as records, BlobLink, Claim, Claimed, Content, Kind, ManifestLink, Mendable, Origin, RepositoryRecord,
    SettingsRecord, TagRecord, claim, layout,
};
use entrepot_runtime::{Clock, chain};
use entrepot_store::{ByteStream, Error, Key, SMALL_BYTES, Store};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tracing::{error, warn};
use uuid::Uuid;

use crate::config::limits;
use crate::control::{FillFrom, LeftOut, Outbox};
use crate::error::PullError;
use crate::memory::{Forgetful, Holdable, ManifestBytes, Memory, Presence, Question, Record, Source};
use crate::peers::{Forget, Peers};
use crate::trail::{self, Note};

pub(crate) use aside::Aside;
pub(crate) use damaged::Damaged;

/// How often content that others change meanwhile is claimed and linked anew.
const TRIES: usize = 3;

/// Reads and writes the records of repositories.
#[derive(Clone)]
pub(crate) struct Repositories {
    /// Where is written, and where is read what is to be written.
    pub(crate) store: Store,
    /// What pulls read.
    pub(crate) memory: Memory,
    /// Who is told of what is replaced.
    pub(crate) peers: Peers,
    pub(crate) outbox: Outbox,
    pub(crate) clock: Clock,
    /// What this node has seen to be wrong.
    pub(crate) damaged: Damaged,
}

/// A repository that exists.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) name: RepositoryName,
    pub(crate) record: RepositoryRecord,
    /// Where the record was read, and what is in the repository is read.
    reads: Reads,
}

/// Where something is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// From memory, within the hold time.
    Memory,
    /// From the store.
    Store,
}

/// A manifest that was verified and read.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
    pub(crate) manifest: Manifest,
}

/// A blob that is in the store, ready to be served.
pub(crate) enum Ready {
    /// In hand, and right.
    Small(Bytes),
    /// To be read from there, and verified on its way.
    Large(Content),
}

impl Ready {
    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Small(bytes) => bytes.len() as u64,
            Self::Large(content) => content.size_bytes,
        }
    }
}

/// A blob that is in the store, linked where it could be.
pub(crate) struct Linked {
    pub(crate) content: Content,
    /// In how many repositories it could not be linked.
    pub(crate) failed: usize,
}

impl Repositories {
    /// Those of a store. What this node writes there is forgotten at once.
    pub(crate) fn new(
        store: Store,
        memory: Memory,
        peers: Peers,
        outbox: Outbox,
        clock: Clock,
        damaged: Damaged,
    ) -> Self {
        let store = Arc::new(Forgetful::new(store, memory.clone()));
        Self { store, memory, peers, outbox, clock, damaged }
    }

    /// The repository of this name, if it exists, as the store says now.
    pub(crate) async fn live(&self, name: &RepositoryName) -> Result<Option<Live>, Error> {
        self.find(name, Reads::Store).await
    }

    /// The repository of this name, if it exists, as a pull may have it.
    pub(crate) async fn live_held(&self, name: &RepositoryName) -> Result<Option<Live>, Error> {
        self.find(name, Reads::Memory).await
    }

    async fn find(&self, name: &RepositoryName, reads: Reads) -> Result<Option<Live>, Error> {
        let key = layout::repository(name);
        let record = self.ask(reads, &Record::<RepositoryRecord>::strict(key.clone())).await?;
        let Some(record) = record else { return Ok(None) };
        if let Some(why) = record.not_understood() {
            return Err(records::not_understood(&key, why));
        }
        Ok(record.is_live().then(|| Live { name: name.clone(), record, reads }))
    }

    /// What lets the repository show a manifest, as far as what fills it now may use it.
    pub(crate) async fn manifest_link(
        &self,
        live: &Live,
        digest: &Digest,
        fill: Option<&FillFrom>,
    ) -> Result<Option<ManifestLink>, Error> {
        let key = layout::manifest_link(&live.name, live.record.incarnation, digest);
        let Some(link) = self.read::<ManifestLink>(live, &key).await? else { return Ok(None) };
        if link.state.known().is_none() {
            return Err(records::not_understood(&key, format!("its state `{}` is of another release", link.state)));
        }
        let is_live = link.is_live();
        Ok(Some(link).filter(|link| is_live && carries_over(link.rule_uid, link.origin.as_ref(), fill)))
    }

    /// What lets the repository show a blob, as far as what fills it now may use it.
    pub(crate) async fn blob_link(
        &self,
        live: &Live,
        digest: &Digest,
        fill: Option<&FillFrom>,
    ) -> Result<Option<BlobLink>, Error> {
        let key = layout::blob_link(&live.name, live.record.incarnation, digest);
        let Some(link) = self.read::<BlobLink>(live, &key).await? else { return Ok(None) };
        if link.state.known().is_none() {
            return Err(records::not_understood(&key, format!("its state `{}` is of another release", link.state)));
        }
        let is_live = link.is_live();
        Ok(Some(link).filter(|link| is_live && carries_over(link.rule_uid, link.origin.as_ref(), fill)))
    }

    /// What a tag means, or that it is gone, as far as what fills the repository now may use it.
    pub(crate) async fn tag(
        &self,
        live: &Live,
        tag: &Tag,
        fill: Option<&FillFrom>,
    ) -> Result<Option<TagRecord>, Error> {
        let key = layout::tag(&live.name, live.record.incarnation, tag);
        let record = self.read::<TagRecord>(live, &key).await?;
        Ok(record.filter(|record| carries_over(record.rule_uid, record.origin.as_ref(), fill)))
    }

    /// A tag or a link. What is damaged is as good as absent where an upstream has it, too.
    async fn read<T: Holdable>(&self, live: &Live, key: &Key) -> Result<Option<T>, Error> {
        let is_cached = live.record.kind == Kind::Cached;
        let record = if is_cached { Record::mendable(key.clone()) } else { Record::strict(key.clone()) };
        self.ask(live.reads, &record).await
    }

    /// What memory or the store says. What is only known from before, since the store is away, is noted.
    async fn ask<Q: Question>(&self, reads: Reads, question: &Q) -> Result<Option<Q::Answer>, Error> {
        let found = match reads {
            Reads::Memory => self.memory.read(question).await?,
            Reads::Store => self.memory.read_anew(question).await?,
        };
        if found.source == Source::LastKnown {
            trail::note(Note::LastKnown);
        }
        Ok(found.answer)
    }

    /// At most `limit` tags that mean something, as far as what fills the repository now may use them, in byte order,
    /// those behind `last` only.
    pub(crate) async fn tags(
        &self,
        live: &Live,
        fill: Option<&FillFrom>,
        last: &str,
        limit: usize,
    ) -> Result<Vec<Tag>, Error> {
        let prefix = layout::tags_prefix(&live.name, live.record.incarnation);
        // What is no tag cannot be a key, and is compared with instead.
        let mut after = last.parse().ok().map(|last| layout::tag(&live.name, live.record.incarnation, &last));
        let mut tags = Vec::new();
        while tags.len() < limit {
            let entries = self.store.list(&prefix, after.as_ref(), limits::TAG_RECORDS).await?;
            let is_last = entries.len() < limits::TAG_RECORDS;
            after = entries.last().map(|entry| entry.key.clone());
            let parsed = entries.iter().filter_map(|entry| match layout::parse(&entry.key) {
                Some(Parsed::Tag { tag, .. }) if tag.as_str() > last => Some(tag),
                Some(_) | None => None,
            });
            let behind: Vec<Tag> = parsed.collect();
            let mut meant = stream::iter(behind)
                .map(|tag| async move {
                    let record = self.tag(live, &tag, fill).await?;
                    Ok::<_, Error>(record.and_then(|record| record.digest).map(|_| tag))
                })
                .buffered(limits::TAG_READS);
            while let Some(tag) = meant.try_next().await? {
                tags.extend(tag);
                if tags.len() == limit {
                    break;
                }
            }
            if is_last {
                break;
            }
        }
        Ok(tags)
    }

    /// The content of a digest, if the store has it and the upstream of `fill` has delivered it before.
    pub(crate) async fn find_delivered(&self, digest: &Digest, fill: &FillFrom) -> Result<Option<Content>, Error> {
        let host = fill.provenance().origin.host;
        let found = claim::find(&*self.store, digest, Some(&host)).await?;
        Ok(self.sound(digest, found))
    }

    /// The bytes of a manifest that is linked. Where the link's object is missing or is something else, the pointer's is
    /// taken, and linked.
    pub(crate) async fn manifest_bytes(
        &self,
        live: &Live,
        digest: &Digest,
        link: &ManifestLink,
    ) -> Result<Option<Bytes>, Error> {
        let fits = |bytes: &Bytes| bytes.len() as u64 == link.size_bytes;
        let linked = ManifestBytes { object: link.object.clone(), digest: digest.clone() };
        let read = self.ask(live.reads, &linked).await;
        if let Some(bytes) = self.unless_damaged(read)?.filter(fits) {
            return Ok(Some(bytes));
        }
        let Some(content) = self.elsewhere(digest, &link.object, link.size_bytes).await? else { return Ok(None) };
        let bytes = self.small(digest, &content).await?.filter(fits);
        if bytes.is_some() {
            let key = layout::manifest_link(&live.name, live.record.incarnation, digest);
            commit::move_manifest_link(&*self.store, &key, &link.object, &content.object).await?;
        }
        Ok(bytes)
    }

    /// The blob that is linked, ready to be served. Where the link's object is missing or is something else, the pointer's
    /// is taken, and linked.
    pub(crate) async fn linked_blob(
        &self,
        live: &Live,
        digest: &Digest,
        link: &BlobLink,
    ) -> Result<Option<Ready>, Error> {
        let linked = Content { object: link.object.clone(), size_bytes: link.size_bytes };
        let is_small = link.size_bytes <= SMALL_BYTES;
        let held = if is_small { None } else { self.ask(live.reads, &Presence(link.object.clone())).await? };
        let is_there = is_small || held == Some(link.size_bytes);
        if is_there && let Some(ready) = self.ready(digest, linked).await? {
            return Ok(Some(ready));
        }
        let Some(content) = self.elsewhere(digest, &link.object, link.size_bytes).await? else {
            if held.is_some() {
                trail::note(Note::Damaged);
            }
            return Ok(None);
        };
        let ready = self.ready(digest, content.clone()).await?;
        if ready.is_some() {
            let key = layout::blob_link(&live.name, live.record.incarnation, digest);
            commit::move_blob_link(&*self.store, &key, &link.object, &content.object).await?;
        }
        Ok(ready)
    }

    /// Content that is there with its size, ready to be served, unless it is damaged: what is small is in hand, and
    /// right.
    pub(crate) async fn ready(&self, digest: &Digest, content: Content) -> Result<Option<Ready>, Error> {
        if self.damaged.is_known(&content.object) {
            trail::note(Note::Damaged);
            return Ok(None);
        }
        if content.size_bytes > SMALL_BYTES {
            return Ok(Some(Ready::Large(content)));
        }
        let fits = |bytes: &Bytes| bytes.len() as u64 == content.size_bytes;
        Ok(self.small(digest, &content).await?.filter(fits).map(Ready::Small))
    }

    /// The bytes of `range` of an object that is to have the content `digest`; `None` if it is missing, or known to be
    /// damaged. What those find who are further on, their streams say.
    pub(crate) async fn open(
        &self,
        object: &Key,
        range: Range<u64>,
        digest: &Digest,
    ) -> Result<Option<ByteStream>, Error> {
        let read = self.store.read(object, range, Some(digest)).await;
        self.unless_damaged(read)
    }

    /// Reads small content; `None` if it is missing or damaged.
    async fn small(&self, digest: &Digest, content: &Content) -> Result<Option<Bytes>, Error> {
        let read = self.store.get_content(&content.object, digest).await;
        self.unless_damaged(read)
    }

    /// What is damaged is as good as missing, and is noted.
    fn unless_damaged<T>(&self, read: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
        match read {
            Err(Error::Damaged { key, digest }) => {
                self.damaged.note(&key, &digest);
                trail::note(Note::Damaged);
                Ok(None)
            }
            read => read,
        }
    }

    /// The content of the pointer, if that is another object, of this size.
    async fn elsewhere(&self, digest: &Digest, object: &Key, size_bytes: u64) -> Result<Option<Content>, Error> {
        let found = claim::find(&*self.store, digest, None).await?;
        let found = self.sound(digest, found);
        Ok(found.filter(|content| content.object != *object && content.size_bytes == size_bytes))
    }

    /// Content of which nothing bad is known. The pointer to what is damaged stays: whoever has the right bytes replaces
    /// it, and without any it takes more than one node's word.
    fn sound(&self, digest: &Digest, found: Lookup) -> Option<Content> {
        match found {
            Lookup::Content(content) => Some(content).filter(|content| !self.damaged.is_known(&content.object)),
            Lookup::Lost(content) => {
                self.damaged.note(&content.object, digest);
                trail::note(Note::Damaged);
                None
            }
            Lookup::Nothing => None,
        }
    }

    /// Lets content that is in hand take the place of what this node has seen to be damaged.
    pub(crate) async fn make_way(&self, digest: &Digest) -> Result<(), Error> {
        match self.damaged.of_digest(digest) {
            Some(object) => claim::disown(&*self.store, digest, &object, self.clock.now()).await,
            None => Ok(()),
        }
    }

    /// Stores a verified manifest and makes it visible, under a tag where there is one, unless the tag has been validated
    /// since the upstream was asked at that time. Creates the repository if need be. Returns the incarnation that it is in; `None`
    /// if it is not to be visible: its repository is not to be created here, since its template is not understood, or what
    /// it would bring back was deleted since.
    pub(crate) async fn commit_manifest(
        &self,
        name: &RepositoryName,
        fill: &FillFrom,
        verified: &Verified,
        (tag, asked): (Option<&Tag>, DateTime<Utc>),
    ) -> Result<Option<Uuid>, Error> {
        let settings = fill.settings();
        let filled = FilledManifest {
            name,
            from: &fill.provenance(),
            settings: settings.as_ref().ok().map(SettingsRecord::from),
            digest: &verified.digest,
            bytes: &verified.bytes,
            manifest: &verified.manifest,
            tag,
            asked,
        };
        self.make_way(&verified.digest).await?;
        let committed = commit::commit_manifest(&*self.store, self, &filled).await?;
        if let (None, Err(LeftOut { item, reason })) = (committed, settings) {
            warn!(repository.name = %name, "`{name}` is not created here, since `{item}` is left out: {reason}");
        }
        Ok(committed)
    }

    /// Notes that a tag means what it meant: the upstream has said so, which was asked at `asked` or later. Somebody else's
    /// change in between wins.
    pub(crate) async fn confirm_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        (digest, asked): (&Digest, DateTime<Utc>),
    ) -> Result<(), Error> {
        let from = fill.provenance();
        filled_tag(live, &from, tag).confirm(&*self.store, self, digest, asked).await
    }

    /// Notes what an upstream that was asked at `validated` said that a tag means, unless it was asked since. The manifest is
    /// linked already. Somebody else's change in between wins.
    pub(crate) async fn note_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        digest: &Digest,
        validated: DateTime<Utc>,
    ) -> Result<(), Error> {
        let from = fill.provenance();
        filled_tag(live, &from, tag).note(&*self.store, self, digest, validated).await
    }

    /// Waits until no node believes any more what a tag meant before it was moved. Returns how many did not say that they
    /// know.
    pub(crate) async fn settle_tag(&self, name: &RepositoryName, tag: &Tag) -> Result<u32, PullError> {
        let Some(live) = within_limit(self.live(name)).await? else { return Ok(0) };
        let key = layout::tag(name, live.record.incarnation, tag);
        let lagging = self.peers.tell(&Forget::key(&key)).wait().await;
        Ok(u32::try_from(lagging).unwrap_or(u32::MAX))
    }

    /// The revision of a tag's record, whatever that says; `None` if there is none, or no such repository.
    pub(crate) async fn tag_revision(&self, name: &RepositoryName, tag: &Tag) -> Result<Option<i64>, Error> {
        let Some(live) = self.live(name).await? else { return Ok(None) };
        let key = layout::tag(name, live.record.incarnation, tag);
        let record: Mendable<TagRecord> = records::read_mendable(&*self.store, &key).await?;
        Ok(record.record().map(|record| record.revision))
    }

    /// Lets a tag mean `digest`, as an upstream said that was asked at `said`, if its record is still at revision `base`. Says whether
    /// it was.
    pub(crate) async fn move_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        base: Option<i64>,
        said: (&Digest, DateTime<Utc>),
    ) -> Result<bool, Error> {
        let from = fill.provenance();
        filled_tag(live, &from, tag).set_if(&*self.store, self, base, said).await
    }

    /// Notes that a tag that meant `digest` is gone: the upstream has said so, which was asked at `asked` or later.
    /// Somebody else's change in between wins.
    pub(crate) async fn drop_tag(
        &self,
        live: &Live,
        fill: &FillFrom,
        tag: &Tag,
        (digest, asked): (&Digest, DateTime<Utc>),
    ) -> Result<(), Error> {
        let from = fill.provenance();
        filled_tag(live, &from, tag).forget(&*self.store, self, digest, asked).await
    }

    /// Lets the repository show a blob that the store has, as its upstream has just said that it may. Returns where the
    /// blob is; `None` if its content has gone meanwhile.
    pub(crate) async fn link_known(
        &self,
        fill: &FillFrom,
        digest: &Digest,
        platform: Option<String>,
    ) -> Result<Option<Content>, Error> {
        let claim = Claim::new(&*self.store, self, digest, Claimer::Fill);
        let linked = self.claim_and_link(claim, digest, platform, || vec![fill.clone()]).await?;
        Ok(linked.map(|linked| linked.content))
    }

    /// Claims a blob, and lets repositories show it. `more` says which are to be linked by now besides those before.
    /// Returns what came of it; `None` if there is no content to claim.
    pub(crate) async fn claim_and_link(
        &self,
        mut claim: Claim<'_>,
        digest: &Digest,
        platform: Option<String>,
        mut more: impl FnMut() -> Vec<FillFrom> + Send,
    ) -> Result<Option<Linked>, Error> {
        let mut fills: Vec<FillFrom> = Vec::new();
        for _ in 0..TRIES {
            let Claimed::Content(content) = claim.take().await? else { return Ok(None) };
            for fill in more() {
                if !fills.iter().any(|known| known.name == fill.name) {
                    fills.push(fill);
                }
            }
            let (mut incarnations, mut failed) = (Vec::new(), 0);
            for fill in &fills {
                let name = &fill.name;
                let from = fill.provenance();
                let filled = FilledBlob { from: &from, digest, content: &content, platform: platform.clone() };
                match commit::link_blob(&*self.store, self, name, &filled).await {
                    Ok(incarnation) => incarnations.extend(incarnation.map(|incarnation| (name, incarnation))),
                    Err(error) => {
                        failed += 1;
                        warn!(error = %chain(&error), "blob `{digest}` is not linked in `{name}`");
                    }
                }
            }
            if claim.holds(&content.object).await? && self.are_live(&incarnations).await? {
                claim.drop_own().await;
                return Ok(Some(Linked { content, failed }));
            }
        }
        Err(Error::Conflict)
    }

    async fn are_live(&self, incarnations: &[(&RepositoryName, Uuid)]) -> Result<bool, Error> {
        for (name, incarnation) in incarnations {
            if !commit::is_still_live(&*self.store, name, *incarnation).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn filled_tag<'a>(live: &'a Live, from: &'a records::Provenance, tag: &'a Tag) -> FilledTag<'a> {
    FilledTag { name: &live.name, incarnation: live.record.incarnation, from, tag }
}

/// Whether a record that came from there means anything to a repository that is filled so. Without a rule there is nothing
/// to compare with: what was cached goes on being served.
fn carries_over(rule_uid: Option<Uuid>, origin: Option<&Origin>, fill: Option<&FillFrom>) -> bool {
    fill.is_none_or(|fill| fill.provenance().covers(rule_uid, origin))
}

/// Waits for the store, for as long as it may take, and turns its failures into the reader's.
pub(crate) async fn within_limit<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, PullError> {
    match tokio::time::timeout(limits::STORE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(problem @ Error::BadRecord { .. })) => {
            error!(error = %chain(&problem), "a record cannot be used");
            trail::note(Note::BadRecord(chain(&problem).to_string()));
            let Error::BadRecord { key, .. } = problem else { return Err(PullError::Internal) };
            Err(PullError::BadRecord { record: key.to_string() })
        }
        Ok(Err(error @ Error::Damaged { .. })) => {
            warn!(error = %chain(&error), "content cannot be used");
            trail::note(Note::Damaged);
            Err(PullError::GaveUp)
        }
        Ok(Err(error)) => {
            warn!(error = %chain(&error), "the store did not answer");
            trail::note(Note::StoreAway);
            Err(PullError::StoreAway)
        }
        Err(_) => {
            trail::note(Note::StoreSlow);
            warn!("the store did not answer within {:?}", limits::STORE);
            Err(PullError::StoreAway)
        }
    }
}
