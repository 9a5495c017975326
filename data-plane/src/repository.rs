//! Repositories as the store's records have them: what may be shown, and what a node writes when content is verified.
//! In which order that is written is said in [`entrepot_records::commit`].

mod aside;
mod content;
mod damaged;
mod lists;
mod tags;
mod writer;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use entrepot_domain::claim::Claimer;
use entrepot_domain::{Digest, Manifest, RepositoryName, Tag};
use entrepot_records::commit::{self, FilledBlob, FilledManifest};
use entrepot_records::{
    self as records, BlobLink, Claim, Claimed, Content, Kind, ManifestLink, Origin, RepositoryRecord, SettingsRecord,
    layout,
};
use entrepot_runtime::{Clock, chain};
use entrepot_store::{Error, Key, Store};
use tracing::{error, warn};
use uuid::Uuid;

use crate::config::limits;
use crate::control::{FillFrom, LeftOut, Outbox};
use crate::error::PullError;
use crate::memory::{Forgetful, Holdable, Memory, Question, Record, Source};
use crate::peers::Peers;
use crate::trail::{self, Note};

pub(crate) use aside::Aside;
pub(crate) use content::Ready;
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
