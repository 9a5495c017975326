//! Writes an object in one request, if its condition is met.

use object_store::path::Path;
use object_store::{Attribute, Attributes, GetOptions, PutMode, PutOptions, PutPayload};
use uuid::Uuid;

use super::Bucket;
use super::failure::Failure;
use super::limits::Tries;
use crate::Version;

/// Objects carry the id of the write that created them.
const WRITE: Attribute = Attribute::Metadata(std::borrow::Cow::Borrowed("entrepotwrite"));
/// An object above this size gets as much time as a part of an upload.
const SMALL_BYTES: usize = 1024 * 1024;

/// The condition of a write.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Any,
    Absent,
    Is(Version),
}

impl Bucket {
    /// Writes an object.
    ///
    /// An attempt whose answer was lost may have happened, and then makes the condition of the next attempt fail. So
    /// each write has an id, by which its own result is recognised. If somebody replaced the object in between, the
    /// write is reported as a conflict, like one that came too late.
    pub(super) async fn write(
        &self,
        path: &Path,
        payload: PutPayload,
        condition: Condition,
    ) -> Result<Version, Failure> {
        let mut tries = if payload.content_length() > SMALL_BYTES { Tries::part() } else { Tries::small() };
        let id = Uuid::new_v4().simple().to_string();
        loop {
            let put = self.client.objects().put_opts(path, payload.clone(), self.options(&condition, &id));
            let failure = match tries.once(put).await {
                Ok(put) => return self.client.version_of_put(&put),
                Err(failure) => failure,
            };
            match (&failure, &condition) {
                // There is nothing to replace.
                (Failure::Absent, Condition::Is(_)) => return Err(Failure::Condition(Box::new(failure))),
                (Failure::Condition(_), _) => {
                    return match self.written(path).await? {
                        Some((by, version)) if tries.done() > 1 && by == id => Ok(version),
                        _ => Err(failure),
                    };
                }
                // Services answer like this if the object exists, or to the loser of a race, who may try again.
                (Failure::Raced(_), Condition::Absent) => match self.written(path).await? {
                    Some((by, version)) if by == id => return Ok(version),
                    Some(_) => return Err(Failure::Condition(Box::new(failure))),
                    None if tries.pause().await => {}
                    None => return Err(failure),
                },
                (Failure::Raced(_), Condition::Is(_)) if !tries.pause().await => {
                    return Err(Failure::Condition(Box::new(failure)));
                }
                (Failure::Raced(_), Condition::Is(_)) => {}
                _ if tries.again(&failure).await => {}
                _ => return Err(failure),
            }
        }
    }

    fn options(&self, condition: &Condition, id: &str) -> PutOptions {
        let mode = match condition {
            Condition::Any => PutMode::Overwrite,
            Condition::Absent => PutMode::Create,
            Condition::Is(version) => PutMode::Update(self.client.update_of(version)),
        };
        PutOptions { mode, attributes: Attributes::from_iter([(WRITE, id.to_owned())]), ..PutOptions::default() }
    }

    /// The id of the write that created the object, and the object's version.
    async fn written(&self, path: &Path) -> Result<Option<(String, Version)>, Failure> {
        let head = Tries::small()
            .idempotent(|| self.client.get(path, GetOptions { head: true, ..GetOptions::default() }))
            .await;
        let Some(head) = Failure::absent_is_none(head)? else { return Ok(None) };
        let by = head.attributes.get(&WRITE).map(|value| value.to_string()).unwrap_or_default();
        Ok(Some((by, self.client.version_of(&head.meta)?)))
    }
}
