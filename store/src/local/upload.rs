//! Writes an object in parts.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use entrepot_domain::Digest;

use super::blocking;
use super::files::{Files, Temporary};
use crate::verify::Verifications;
use crate::{Error, Key, Upload};

/// Appends the parts to a temporary file.
pub(super) struct LocalUpload {
    files: Arc<Files>,
    verifications: Arc<Verifications>,
    key: Key,
    /// `None` while a part is being written, and for good if that fails or its caller gives up.
    temporary: Option<Temporary>,
}

/// An earlier part was not written.
#[derive(Debug, thiserror::Error)]
#[error("an earlier part of the upload failed or was given up")]
struct Interrupted;

impl LocalUpload {
    pub(super) fn begin(files: &Arc<Files>, verifications: Arc<Verifications>, key: Key) -> Result<Self, Error> {
        Ok(Self { temporary: Some(files.begin()?), files: Arc::clone(files), verifications, key })
    }

    fn take(&mut self) -> Result<Temporary, Error> {
        self.temporary.take().ok_or_else(|| Error::Away(Box::new(Interrupted)))
    }
}

#[async_trait]
impl Upload for LocalUpload {
    async fn part(&mut self, bytes: Bytes) -> Result<(), Error> {
        let mut temporary = self.take()?;
        let written = blocking(move || temporary.append(&bytes).map(|()| temporary)).await?;
        self.temporary = Some(written);
        Ok(())
    }

    async fn complete(mut self: Box<Self>, digest: Option<&Digest>) -> Result<(), Error> {
        let (temporary, digest) = (self.take()?, digest.cloned());
        blocking(move || {
            self.files.complete(temporary, &self.key)?;
            digest.map_or(Ok(()), |digest| self.files.note_content(&self.verifications, &self.key, &digest))
        })
        .await
    }

    async fn abort(mut self: Box<Self>) -> Result<(), Error> {
        blocking(move || {
            drop(self.temporary.take());
            Ok(())
        })
        .await
    }
}
