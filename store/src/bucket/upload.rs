//! Writing an object in parts, with bounded memory.

use std::mem::take;
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use bytes::{Buf as _, Bytes};
use entrepot_domain::{Digest, ResourceId};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{MultipartId, PutPayload};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tracing::{debug, warn};
use uuid::Uuid;

use super::failure::Failure;
use super::limits::Tries;
use super::write::Condition;
use super::{Bucket, BucketStore, keys};
use crate::{BlobStore as _, Entry, Error, Key, Upload};

/// All parts but the last have exactly this size, since some services want them equal. None wants them larger.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// How many records of left uploads are looked at together.
const PAGE: usize = 100;

/// An object on its way into a bucket. What fits into one part goes there by one plain write; before that nothing is
/// begun. At most one part is being sent and less than another one is gathered, besides what the caller just handed in.
pub(super) struct BucketUpload {
    bucket: Arc<Bucket>,
    key: Key,
    path: Path,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    size_bytes: u64,
    begun: Option<Begun>,
    /// While a part is taken in, and for good if that fails or nobody waits for it.
    broken: bool,
}

/// An upload that was begun, or is about to be.
#[derive(Serialize, Deserialize)]
struct UploadRecord {
    /// The object that it is to become.
    key: Key,
    /// What the bucket calls it; `None` before it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upload_id: Option<String>,
}

struct Begun {
    id: MultipartId,
    record: Key,
    /// Whether it was begun more than once, as far as the service knows.
    may_be_others: bool,
    _running: Running,
    sent: Vec<PartId>,
    /// The part that is being sent. It ends with this upload.
    sending: JoinSet<Result<PartId, Failure>>,
}

/// Says that an upload is under way, so that it is not taken for one that was left.
struct Running {
    bucket: Arc<Bucket>,
    record: Key,
}

impl Running {
    fn new(bucket: Arc<Bucket>, record: Key) -> Self {
        bucket.running.lock().unwrap_or_else(PoisonError::into_inner).insert(record.clone());
        Self { bucket, record }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.bucket.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.record);
    }
}

/// An earlier part was not sent.
#[derive(Debug, thiserror::Error)]
#[error("an earlier part of the upload failed or was given up")]
struct Interrupted;

/// A service took an upload's end for none.
#[derive(Debug, thiserror::Error)]
#[error("the upload is not there any more, and neither is its object")]
struct Lost;

impl BucketUpload {
    pub(super) fn begin(bucket: Arc<Bucket>, key: Key) -> Self {
        let path = bucket.path(&key);
        let (gathered, gathered_bytes, size_bytes) = (Vec::new(), 0, 0);
        Self { bucket, key, path, gathered, gathered_bytes, size_bytes, begun: None, broken: false }
    }

    async fn take_in(&mut self, bytes: Bytes) -> Result<(), Failure> {
        self.size_bytes += bytes.len() as u64;
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        // As long as the first part may be the last, nothing is begun.
        while self.gathered_bytes > PART_BYTES || (self.begun.is_some() && self.gathered_bytes == PART_BYTES) {
            let part = self.split_part();
            self.send(part).await?;
        }
        Ok(())
    }

    /// The first of what was gathered, a part's worth.
    fn split_part(&mut self) -> PutPayload {
        let mut wanted = PART_BYTES;
        let mut part = Vec::new();
        let mut rest = Vec::new();
        for mut piece in take(&mut self.gathered) {
            let head = piece.split_to(piece.len().min(wanted));
            wanted -= head.len();
            part.push(head);
            if piece.has_remaining() {
                rest.push(piece);
            }
        }
        self.gathered = rest;
        self.gathered_bytes -= PART_BYTES;
        part.into_iter().collect()
    }

    /// Begins to send a part, once the one before it was sent.
    async fn send(&mut self, part: PutPayload) -> Result<(), Failure> {
        if self.begun.is_none() {
            self.begun = Some(self.begin_parts().await?);
        }
        let Some(begun) = &mut self.begun else { unreachable!("it was begun") };
        begun.sent().await?;
        let (bucket, path, id, index) =
            (Arc::clone(&self.bucket), self.path.clone(), begun.id.clone(), begun.sent.len());
        begun.sending.spawn(async move {
            let objects = bucket.client.objects();
            Tries::part().idempotent(|| objects.put_part(&path, &id, index, part.clone())).await
        });
        Ok(())
    }

    /// From here on there may be something to be tidied up, so it is written down before it is there, and its id as soon
    /// as that is known: not every service lists what has been begun.
    async fn begin_parts(&self) -> Result<Begun, Failure> {
        let (objects, record) = (self.bucket.client.objects(), keys::upload(&self.bucket.owner, Uuid::now_v7()));
        let running = Running::new(Arc::clone(&self.bucket), record.clone());
        self.note(&record, None, Condition::Absent).await?;
        let mut tries = Tries::small();
        let id = tries.idempotent(|| objects.create_multipart(&self.path)).await?;
        let (sent, sending, may_be_others) = (Vec::new(), JoinSet::new(), tries.done() > 1);
        let begun = Begun { id, record, may_be_others, _running: running, sent, sending };
        if let Err(failure) = self.note(&begun.record, Some(begun.id.clone()), Condition::Any).await {
            self.bucket.abort(&self.path, Some(&begun.id), &begun.record, Tries::single).await.unwrap_or_else(left);
            return Err(failure);
        }
        Ok(begun)
    }

    async fn note(&self, record: &Key, upload_id: Option<MultipartId>, condition: Condition) -> Result<(), Failure> {
        let record_of = UploadRecord { key: self.key.clone(), upload_id };
        let bytes = Bytes::from(serde_json::to_vec(&record_of).expect("keys and ids are text"));
        self.bucket.write(&self.bucket.path(record), bytes.into(), condition).await.map(drop)
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        let rest: PutPayload = take(&mut self.gathered).into_iter().collect();
        if self.begun.is_none() {
            self.bucket.write(&self.path, rest, Condition::Any).await?;
            return Ok(());
        }
        if rest.content_length() > 0 {
            self.send(rest).await?;
        }
        let Some(begun) = &mut self.begun else { return Ok(()) };
        begun.sent().await?;
        let objects = self.bucket.client.objects();
        let mut tries = Tries::complete();
        loop {
            let done = objects.complete_multipart(&self.path, &begun.id, begun.sent.clone());
            let failure = match tries.once(done).await {
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            };
            // It may have succeeded without our hearing of it: then the upload is gone and the object is there.
            let gone = matches!(failure, Failure::Absent);
            if (gone || failure.may_pass()) && self.bucket.size(&self.path).await? == Some(self.size_bytes) {
                return Ok(());
            }
            if gone {
                return Err(Failure::Refused(Box::new(Lost)));
            }
            if !tries.again(&failure).await {
                return Err(failure);
            }
        }
    }

    async fn tidy_up(&mut self, tries: fn() -> Tries) -> Result<(), Failure> {
        let Some(mut begun) = self.begun.take() else { return Ok(()) };
        // A part that arrives after the end would be kept, and paid for.
        begun.sending.shutdown().await;
        self.bucket.abort(&self.path, Some(&begun.id), &begun.record, tries).await
    }
}

impl Begun {
    /// Waits until nothing is being sent.
    async fn sent(&mut self) -> Result<(), Failure> {
        while let Some(sent) = self.sending.join_next().await {
            self.sent.push(sent.map_err(|stopped| Failure::Other(Box::new(stopped)))??);
        }
        Ok(())
    }
}

impl Bucket {
    /// Gives an upload up, with all that were begun for the same object, and forgets it once that is certain. One that is
    /// gone is success.
    async fn abort(
        &self,
        path: &Path,
        id: Option<&MultipartId>,
        record: &Key,
        tries: fn() -> Tries,
    ) -> Result<(), Failure> {
        let objects = self.client.objects();
        let abort = async |id: &MultipartId| match tries().idempotent(|| objects.abort_multipart(path, id)).await {
            // What the service does not take for an upload, it does not keep either.
            Ok(()) | Err(Failure::Absent | Failure::Refused(_)) => Ok(()),
            Err(failure) => Err(failure),
        };
        // What is known needs no list.
        if let Some(id) = id {
            abort(id).await?;
        }
        match tries().idempotent(|| self.client.uploads_of(path)).await {
            Ok(others) => {
                for other in others.iter().filter(|other| Some(*other) != id) {
                    abort(other).await?;
                }
            }
            // Who does not list them now never will.
            Err(failure @ (Failure::Denied(_) | Failure::Refused(_) | Failure::Garbled(_))) => {
                debug!("uploads cannot be listed, so that only those are aborted whose id is known: {failure}");
            }
            Err(failure) => return Err(failure),
        }
        self.forget(record, tries).await
    }

    async fn forget(&self, record: &Key, tries: fn() -> Tries) -> Result<(), Failure> {
        let path = self.path(record);
        Failure::absent_is_none(tries().idempotent(|| self.delete(&path)).await).map(|_| ())
    }
}

#[async_trait]
impl Upload for BucketUpload {
    async fn part(&mut self, bytes: Bytes) -> Result<(), Error> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(Error::Away(Box::new(Interrupted)));
        }
        self.take_in(bytes).await?;
        self.broken = false;
        Ok(())
    }

    async fn complete(mut self: Box<Self>, _digest: Option<&Digest>) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Away(Box::new(Interrupted)));
        }
        if let Err(failure) = self.finish().await {
            self.tidy_up(Tries::single).await.unwrap_or_else(left);
            return Err(failure.into());
        }
        // With others of the same object, it is left to who sweeps.
        if let Some(begun) = self.begun.as_ref().filter(|begun| !begun.may_be_others) {
            self.bucket.forget(&begun.record, Tries::single).await.unwrap_or_else(left);
        }
        Ok(())
    }

    async fn abort(mut self: Box<Self>) -> Result<(), Error> {
        Ok(self.tidy_up(Tries::small).await?)
    }
}

/// Aborts what is recorded under `owner`, but for what is under way in this process.
pub(super) async fn abort_all(store: &BucketStore, owner: &ResourceId) -> Result<usize, Error> {
    let (prefix, mut after, mut aborted) = (keys::uploads_prefix(owner), None, 0);
    loop {
        let page = store.list(&prefix, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(aborted) };
        after = Some(last.key.clone());
        for Entry { key: record, .. } in &page {
            if store.0.running.lock().unwrap_or_else(PoisonError::into_inner).contains(record) {
                continue;
            }
            let Some(object) = store.get(record).await? else { continue };
            match serde_json::from_slice(&object.bytes) {
                Ok(UploadRecord { key, upload_id }) => {
                    store.0.abort(&store.0.path(&key), upload_id.as_ref(), record, Tries::small).await?;
                    aborted += 1;
                }
                Err(error) => {
                    warn!("the record `{record}` of an upload cannot be read, and is removed: {error}");
                    store.delete(record).await?;
                }
            }
        }
    }
}

fn left(failure: Failure) {
    debug!("what is left of an upload stays until its owner's uploads are aborted: {failure}");
}
