//! Writing an object in parts.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use entrepot_domain::Digest;

use super::blocking;
use super::files::{Files, Temporary};
use crate::{Error, Key, Upload};

/// Parts go to a temporary file, one after the other.
pub(super) struct LocalUpload {
    files: Arc<Files>,
    key: Key,
    /// Gone while a part is written, and for good if that fails or nobody waits for it.
    temporary: Option<Temporary>,
}

/// An earlier part was not written.
#[derive(Debug, thiserror::Error)]
#[error("an earlier part of the upload failed or was given up")]
struct Interrupted;

impl LocalUpload {
    pub(super) fn begin(files: &Arc<Files>, key: Key) -> Result<Self, Error> {
        Ok(Self { temporary: Some(files.begin()?), files: Arc::clone(files), key })
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

    async fn complete(mut self: Box<Self>, _digest: Option<&Digest>) -> Result<(), Error> {
        let temporary = self.take()?;
        blocking(move || self.files.complete(temporary, &self.key)).await
    }

    async fn abort(mut self: Box<Self>) -> Result<(), Error> {
        blocking(move || {
            drop(self.temporary.take());
            Ok(())
        })
        .await
    }
}
