//! Writes an object in parts, with bounded memory.

use std::mem::take;
use std::sync::Arc;

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

/// All parts except the last have exactly this size, since some services require equal parts. None requires larger ones.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// How many records of leftover uploads are read at a time.
const PAGE: usize = 100;

/// An object that is being written to a bucket. If it fits into one part, one plain write stores it, and no upload is
/// begun. At any time, at most one part is being sent and less than another one is gathered, not counting what the
/// caller has just passed in.
pub(super) struct BucketUpload {
    bucket: Arc<Bucket>,
    key: Key,
    path: Path,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    size_bytes: u64,
    begun: Option<Begun>,
    /// True while a part is being accepted, and for good if that fails or its caller gives up.
    broken: bool,
}

/// The record of an upload that was begun, or is about to be.
#[derive(Serialize, Deserialize)]
struct UploadRecord {
    /// The object that it will become.
    key: Key,
    /// The service's id for it; `None` before the service has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upload_id: Option<String>,
}

struct Begun {
    id: MultipartId,
    record: Key,
    /// Whether the service may have begun it more than once.
    may_be_others: bool,
    _running: Running,
    sent: Vec<PartId>,
    /// The part that is being sent. It ends with this upload.
    sending: JoinSet<Result<PartId, Failure>>,
}

/// Marks an upload as under way, so that it is not taken for a leftover.
struct Running {
    bucket: Arc<Bucket>,
    record: Key,
}

impl Running {
    fn new(bucket: Arc<Bucket>, record: Key) -> Self {
        bucket.running.lock().insert(record.clone());
        Self { bucket, record }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.bucket.running.lock().remove(&self.record);
    }
}

/// An earlier part was not sent.
#[derive(Debug, thiserror::Error)]
#[error("an earlier part of the upload failed or was given up")]
struct Interrupted;

/// The service does not know an upload when it is to be completed.
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
        // No upload is begun while the first part may be the last one.
        while self.gathered_bytes > PART_BYTES || (self.begun.is_some() && self.gathered_bytes == PART_BYTES) {
            let part = self.split_part();
            self.send(part).await?;
        }
        Ok(())
    }

    /// Takes the first gathered bytes, as many as a part has.
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

    /// Sends a part, once the previous one was sent.
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

    /// From here on there may be something to clean up. So it is recorded before it is begun, and its id as soon as
    /// that is known: not every service can list begun uploads.
    async fn begin_parts(&self) -> Result<Begun, Failure> {
        let (objects, record) = (self.bucket.client.objects(), keys::upload(&self.bucket.owner, Uuid::now_v7()));
        let running = Running::new(Arc::clone(&self.bucket), record.clone());
        self.note(&record, None, Condition::Absent).await?;
        let mut tries = Tries::small();
        let id = tries.idempotent(|| objects.create_multipart(&self.path)).await?;
        let (sent, sending, may_be_others) = (Vec::new(), JoinSet::new(), tries.done() > 1);
        let begun = Begun { id, record, may_be_others, _running: running, sent, sending };
        if let Err(failure) = self.note(&begun.record, Some(begun.id.clone()), Condition::Any).await {
            self.bucket
                .abort(&self.path, Some(&begun.id), &begun.record, Tries::single)
                .await
                .unwrap_or_else(log_leftover);
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
            // It may have succeeded although the answer was lost: then the upload is gone and the object is there.
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
        // A part that arrives after the end would be stored, and billed.
        begun.sending.shutdown().await;
        self.bucket.abort(&self.path, Some(&begun.id), &begun.record, tries).await
    }
}

impl Begun {
    /// Waits until no part is being sent.
    async fn sent(&mut self) -> Result<(), Failure> {
        while let Some(sent) = self.sending.join_next().await {
            self.sent.push(sent.map_err(|stopped| Failure::Other(Box::new(stopped)))??);
        }
        Ok(())
    }
}

impl Bucket {
    /// Aborts an upload and all others that were begun for the same object, and forgets it once that is certain. An
    /// upload that is already gone is a success.
    async fn abort(
        &self,
        path: &Path,
        id: Option<&MultipartId>,
        record: &Key,
        tries: fn() -> Tries,
    ) -> Result<(), Failure> {
        let objects = self.client.objects();
        let abort = async |id: &MultipartId| match tries().idempotent(|| objects.abort_multipart(path, id)).await {
            // If the service does not recognise an upload, it does not store it either.
            Ok(()) | Err(Failure::Absent | Failure::Refused(_)) => Ok(()),
            Err(failure) => Err(failure),
        };
        // If the id is known, no list is needed.
        if let Some(id) = id {
            abort(id).await?;
        }
        match tries().idempotent(|| self.client.uploads_of(path)).await {
            Ok(others) => {
                for other in others.iter().filter(|other| Some(*other) != id) {
                    abort(other).await?;
                }
            }
            // A service that cannot list uploads now never will.
            Err(failure @ (Failure::Denied(_) | Failure::Refused(_) | Failure::Garbled(_))) => {
                debug!("uploads cannot be listed, so only those with a known id are aborted: {failure}");
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
            self.tidy_up(Tries::single).await.unwrap_or_else(log_leftover);
            return Err(failure.into());
        }
        // If there may be others for the same object, it is left to the sweep.
        if let Some(begun) = self.begun.as_ref().filter(|begun| !begun.may_be_others) {
            self.bucket.forget(&begun.record, Tries::single).await.unwrap_or_else(log_leftover);
        }
        Ok(())
    }

    async fn abort(mut self: Box<Self>) -> Result<(), Error> {
        Ok(self.tidy_up(Tries::small).await?)
    }
}

/// Aborts the uploads recorded under `owner`, except those that are under way in this process.
pub(super) async fn abort_all(store: &BucketStore, owner: &ResourceId) -> Result<usize, Error> {
    let (prefix, mut after, mut aborted) = (keys::uploads_prefix(owner), None, 0);
    loop {
        let page = store.list(&prefix, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(aborted) };
        after = Some(last.key.clone());
        for Entry { key: record, .. } in &page {
            if store.0.running.lock().contains(record) {
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

fn log_leftover(failure: Failure) {
    debug!("an upload is left over until its owner's uploads are aborted: {failure}");
}
