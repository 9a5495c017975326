//! Claims: how a writer makes sure that a pointer names content that stays. [`entrepot_domain::claim`] decides, and
//! this module carries out its decisions.
//!
//! A claimer reads the pointer and corrects it ([`Claim::take`]), makes its events durable, and writes its links. Then
//! it reads the pointer again ([`Claim::holds`]), since a collector may have condemned or erased the content in
//! between. It answers nobody before the second read has shown that the claim holds.

use chrono::{DateTime, Utc};
use entrepot_domain::Digest;
use entrepot_domain::claim::{Change, Claimer, Look, Named, Own, PUSH_TIME, Second, look, look_again, may_drop, mend};
use entrepot_store::{BlobStore, Error, Key};
use tracing::{debug, warn};

use crate::commit::Writer;
use crate::pointer::{self, Content, Found, PointerRecord, PointerState};
use crate::{layout, not_understood, replace};

/// How often a write may fail because somebody else was faster, who has then succeeded.
pub(crate) const TRIES: usize = 16;

/// A claim on the content of one digest.
pub struct Claim<'a> {
    store: &'a dyn BlobStore,
    writer: &'a dyn Writer,
    digest: &'a Digest,
    claimer: Claimer,
    /// The host of the upstream that has just delivered the content.
    delivered_by: Option<&'a str>,
    /// The object that the claimer has stored, until a pointer names it.
    own: Option<OwnContent>,
}

struct OwnContent {
    content: Content,
    begin_time: DateTime<Utc>,
    named: Named,
}

/// The result of [`Claim::take`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// This is the content.
    Content(Content),
    /// There is no content: a claimer that has the bytes must store them.
    Missing,
}

impl<'a> Claim<'a> {
    /// A claim whose pointer has not been read yet.
    pub fn new(store: &'a dyn BlobStore, writer: &'a dyn Writer, digest: &'a Digest, claimer: Claimer) -> Self {
        Self { store, writer, digest, claimer, delivered_by: None, own: None }
    }

    /// A claim of a caller to whom an upstream has just delivered the content.
    #[must_use]
    pub fn delivered_by(mut self, host: &'a str) -> Self {
        self.delivered_by = Some(host);
        self
    }

    /// A claim of a caller that has stored the verified content in an object of its own, which it began to write at
    /// that time.
    #[must_use]
    pub fn with_own(mut self, content: Content, begin_time: DateTime<Utc>) -> Self {
        self.own = Some(OwnContent { content, begin_time, named: Named::No });
        self
    }

    /// Reads the pointer, and corrects it.
    ///
    /// # Errors
    /// If the store is away, or the pointer says something that only another release understands.
    pub async fn take(&mut self) -> Result<Claimed, Error> {
        for _ in 0..TRIES {
            let found = self.read().await?;
            // After the pointer was read: a writer that slept is stopped by the age of what it has stored.
            let now = self.writer.now();
            let own = self.own.as_ref().map(|own| own.seen(now));
            match look(&found.seen(now), self.claimer, own, PUSH_TIME) {
                Look::Use(object) => {
                    let object = object.clone();
                    if self.stands(&found, &object).await? {
                        let record = found.record();
                        let is_new = |host| record.is_some_and(|record| !record.was_delivered_by(host));
                        if !self.delivered_by.is_some_and(is_new) || self.set(&found, &object, now).await? {
                            return Ok(self.claimed(&found, object));
                        }
                    }
                }
                Look::Write(Change::Live(object)) => {
                    let object = object.clone();
                    if self.stands(&found, &object).await? && self.set(&found, &object, now).await? {
                        return Ok(self.claimed(&found, object));
                    }
                }
                Look::Write(Change::Condemned(_) | Change::Erased(_) | Change::Rewritten)
                | Look::Store
                | Look::Missing => return Ok(Claimed::Missing),
                Look::Refuse => return Err(not_understood(&layout::pointer(self.digest), "it is damaged")),
            }
        }
        Err(Error::Conflict)
    }

    /// Reads the pointer again, after the links were written. Returns whether the claim on `object` holds; if not, the
    /// caller begins again with [`Claim::take`].
    ///
    /// # Errors
    /// As [`Claim::take`].
    pub async fn holds(&mut self, object: &Key) -> Result<bool, Error> {
        for _ in 0..TRIES {
            let found = self.read().await?;
            let now = self.writer.now();
            match look_again(&found.seen(now), object, self.claimer, PUSH_TIME) {
                Second::Done => return Ok(true),
                Second::Write(_) => {
                    if self.set(&found, object, now).await? {
                        return Ok(true);
                    }
                }
                Second::Again => return Ok(false),
            }
        }
        Err(Error::Conflict)
    }

    /// Deletes the object that this claimer has stored, if certainly nobody uses it: all writes of the pointer had
    /// definite answers, and the pointer names another object. Otherwise the sweep will delete it.
    pub async fn drop_own(self) {
        let Some(own) = &self.own else { return };
        let Ok(found) = self.read().await else { return };
        let (object, now) = (&own.content.object, self.writer.now());
        if may_drop(&own.seen(now), &found.seen(now))
            && let Err(error) = self.store.delete(object).await
        {
            debug!("`{object}`, which another writer was faster than, is left to the sweep: {error}");
        }
    }

    async fn read(&self) -> Result<Found, Error> {
        let found = pointer::read(self.store, self.digest).await?;
        understood(self.digest, &found)?;
        Ok(found)
    }

    /// Whether `object`, which the pointer names, exists. If not, the pointer is erased.
    async fn stands(&self, found: &Found, object: &Key) -> Result<bool, Error> {
        match content_of(found).filter(|content| content.object == *object) {
            Some(content) if !is_there(self.store, &content).await? => {
                erase(self.store, self.digest, found, object, self.writer.now()).await?;
                Ok(false)
            }
            Some(_) | None => Ok(true),
        }
    }

    /// Makes the pointer live, with `object`, claimed now. Returns whether it succeeded; if not, somebody else was
    /// faster.
    async fn set(&mut self, found: &Found, object: &Key, now: DateTime<Utc>) -> Result<bool, Error> {
        let size_bytes = match (content_of(found), &self.own) {
            (Some(content), _) if content.object == *object => content.size_bytes,
            (_, Some(own)) => own.content.size_bytes,
            (Some(content), None) => content.size_bytes,
            (None, None) => return Ok(false),
        };
        let fresh = PointerRecord::new(object.clone(), size_bytes, now);
        let mut record = match found.record().cloned() {
            Some(old) if old.object.as_ref() == Some(object) => {
                let (state, claim_time) = (PointerState::Live.into(), now);
                PointerRecord { state, claim_time, condemn_time: None, ..old }
            }
            Some(old) => PointerRecord { delivered_by: old.delivered_by, rest: old.rest, ..fresh },
            None => fresh,
        };
        if let Some(host) = self.delivered_by.filter(|host| !record.was_delivered_by(host)) {
            record.delivered_by.push(host.to_owned());
        }
        match replace(self.store, &layout::pointer(self.digest), found.version(), &record).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => {
                // It may still happen, and what was named once is never named by another write.
                if let Some(own) = self.own.as_mut().filter(|own| own.content.object == *object) {
                    own.named = Named::Perhaps;
                }
                Err(error)
            }
        }
    }

    fn claimed(&mut self, found: &Found, object: Key) -> Claimed {
        // What a pointer names is not this claimer's any more.
        let own = self.own.take_if(|own| own.content.object == object).map(|own| own.content);
        let known = own.into_iter().chain(content_of(found)).find(|content| content.object == object);
        known.map_or(Claimed::Missing, Claimed::Content)
    }
}

impl OwnContent {
    fn seen(&self, now: DateTime<Utc>) -> Own<&Key> {
        let begun_ago = (now - self.begin_time).to_std().unwrap_or_default();
        Own { object: &self.content.object, begun_ago, named: self.named }
    }
}

/// The content that the pointer of a digest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The content.
    Content(Content),
    /// An object that is missing, or has another size. The pointer stays as it is until somebody has the bytes.
    Lost(Content),
    /// There is no live pointer.
    Nothing,
}

/// The content that the pointer of a digest names. With a host, only if that upstream has delivered it.
///
/// # Errors
/// As [`Claim::take`].
pub async fn find(store: &dyn BlobStore, digest: &Digest, delivered_by: Option<&str>) -> Result<Lookup, Error> {
    let found = pointer::read(store, digest).await?;
    understood(digest, &found)?;
    let Some(record) = found.record() else { return Ok(Lookup::Nothing) };
    let Some(content) = record.content() else { return Ok(Lookup::Nothing) };
    if delivered_by.is_some_and(|host| !record.was_delivered_by(host)) {
        return Ok(Lookup::Nothing);
    }
    Ok(if is_there(store, &content).await? { Lookup::Content(content) } else { Lookup::Lost(content) })
}

/// Erases the pointer of `digest` if it names this damaged object, so that whoever has the content stores it again.
///
/// # Errors
/// As [`Claim::take`].
pub async fn disown(store: &dyn BlobStore, digest: &Digest, bad: &Key, now: DateTime<Utc>) -> Result<(), Error> {
    let found = pointer::read(store, digest).await?;
    understood(digest, &found)?;
    erase(store, digest, &found, bad, now).await
}

/// The error for a pointer of another release, on which nobody may act.
fn understood(digest: &Digest, found: &Found) -> Result<(), Error> {
    match found.record().filter(|record| record.state.known().is_none()) {
        Some(record) => {
            let why = format!("its state `{}` is of another release", record.state);
            Err(not_understood(&layout::pointer(digest), why))
        }
        None => Ok(()),
    }
}

/// Whether an object exists and has its size. If it seems to be missing, the store is asked again, because much follows
/// from it.
async fn is_there(store: &dyn BlobStore, content: &Content) -> Result<bool, Error> {
    for _ in 0..2 {
        if store.head(&content.object).await? == Some(content.size_bytes) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Replaces the pointer to an object that is missing or damaged. A concurrent change by somebody else is as good.
async fn erase(
    store: &dyn BlobStore,
    digest: &Digest,
    found: &Found,
    bad: &Key,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let (Found::Record(read), Some(_)) = (found, mend(&found.seen(now), bad)) else { return Ok(()) };
    warn!(content.digest = %digest, "the object `{bad}` of `{digest}` is missing or is something else: its pointer is erased");
    let record = PointerRecord { state: PointerState::Erased.into(), condemn_time: None, ..read.record.clone() };
    match replace(store, &layout::pointer(digest), Some(&read.version), &record).await {
        Err(error) if !error.is_conflict() => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn content_of(found: &Found) -> Option<Content> {
    found.record().and_then(PointerRecord::content)
}
