//! Repositories according to the store's records: what they may show, and what a node writes when it has verified
//! content. The order of the writes is documented in [`entrepot_records::commit`].

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

/// How often content is claimed and linked again because others have changed it meanwhile.
const TRIES: usize = 3;

/// Reads and writes the records of repositories.
#[derive(Clone)]
pub(crate) struct Repositories {
    /// For writes, and for reads on which writes depend.
    pub(crate) store: Store,
    /// For the reads of pulls.
    pub(crate) memory: Memory,
    /// The nodes that are told which records were replaced.
    pub(crate) peers: Peers,
    pub(crate) outbox: Outbox,
    pub(crate) clock: Clock,
    /// The damaged content that this node has found.
    pub(crate) damaged: Damaged,
}

/// A repository that exists.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) name: RepositoryName,
    pub(crate) record: RepositoryRecord,
    /// Where its record was read, and where its other records are to be read.
    reads: Reads,
}

/// Where records are read.
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

/// A stored blob, after it was linked in some repositories.
pub(crate) struct Linked {
    pub(crate) content: Content,
    /// The number of repositories in which it could not be linked.
    pub(crate) failed: usize,
}

impl Repositories {
    /// The repositories of a store. `memory` forgets every record that is written through them.
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

    /// The repository of this name, if it exists, read from the store.
    pub(crate) async fn live(&self, name: &RepositoryName) -> Result<Option<Live>, Error> {
        self.find(name, Reads::Store).await
    }

    /// The repository of this name, if it exists, read for a pull: perhaps from memory.
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

    /// The link that lets the repository show a manifest, if whatever fills the repository now may use it.
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

    /// The link that lets the repository show a blob, if whatever fills the repository now may use it.
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

    /// Reads a tag or a link. In cached repositories a damaged record counts as absent, since the upstream has the
    /// content.
    async fn read<T: Holdable>(&self, live: &Live, key: &Key) -> Result<Option<T>, Error> {
        let is_cached = live.record.kind == Kind::Cached;
        let record = if is_cached { Record::mendable(key.clone()) } else { Record::strict(key.clone()) };
        self.ask(live.reads, &record).await
    }

    /// Asks memory or the store. Notes if the answer is an old one because the store is away.
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

    /// Stores a verified manifest and makes it visible; also under a tag, if one is given and was not validated after
    /// `asked`, when the upstream was asked. Creates the repository if necessary. Returns the repository's incarnation;
    /// `None` if the manifest must not be visible, because the repository's template is not understood here, or because
    /// it was deleted after `asked`.
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

    /// Links a stored blob in the repository, after the repository's upstream has confirmed that it has the blob.
    /// Returns where the blob is; `None` if it was removed meanwhile.
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

    /// Claims a blob and links it in repositories. Each attempt asks `more` for further repositories. Returns the
    /// linked blob; `None` if there is no content to claim.
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

/// Whether a repository that `fill` fills may use a record with this rule and origin. Without a rule it may: cached
/// content is still served then.
fn carries_over(rule_uid: Option<Uuid>, origin: Option<&Origin>, fill: Option<&FillFrom>) -> bool {
    fill.is_none_or(|fill| fill.provenance().covers(rule_uid, origin))
}

/// Waits for the store within its time limit, and turns its errors into those of a pull.
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
