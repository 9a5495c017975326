//! What is asked of another node: its bytes, its work, and what it knows of itself.

use entrepot_domain::{Digest, RepositoryName, ResourceId};
use http::HeaderMap;
use serde::de::DeserializeOwned;
use url::Url;
use uuid::Uuid;

use super::Peers;
use super::client::{Call, ProbeError};
use super::paths::{CONFIRMED, FILLS, LEASES};
use crate::lease::Holder;

/// Why another node could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// It has no record, or an old one.
    #[error("no node `{0}` is alive")]
    NotAlive(ResourceId),
    /// Its record has no address.
    #[error("other nodes do not reach the node `{0}`, since its peer.address is not set")]
    NoAddress(ResourceId),
    /// A lease that no other node of this cluster can have.
    #[error("the lease is no other node's")]
    NoSuchHolder,
    /// It does not answer as it should.
    #[error("the node `{id}` could not be asked on its port for other nodes")]
    Silent {
        /// Which node.
        id: ResourceId,
        /// Why not.
        source: ProbeError,
    },
}

impl Peers {
    /// What another node says at `path`, in at most `limit` bytes.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        id: &ResourceId,
        path: &str,
        limit: usize,
    ) -> Result<T, AskError> {
        let address = self.address_of(id).await?;
        let answer = self.inner.client.json(&address, path, limit).await;
        answer.map_err(|source| AskError::Silent { id: id.clone(), source })
    }

    /// A call that a fill of another node is heard on from the byte `at` on, and whether the upstream has told that one
    /// that `repository` has the content.
    pub(super) async fn call_fill(
        &self,
        id: &ResourceId,
        (origin, digest): (Uuid, &Digest),
        at: u64,
        repository: &RepositoryName,
    ) -> Result<(Call, bool), AskError> {
        let path = format!("{FILLS}/{origin}/{digest}?from={at}&repository={repository}");
        let (headers, call) = self.call(id, &path).await?;
        Ok((call, headers.contains_key(CONFIRMED)))
    }

    /// A call that says as long as another node works under a lease.
    pub(super) async fn call_lease(&self, holder: &Holder) -> Result<Call, AskError> {
        let id = holder.node().ok_or(AskError::NoSuchHolder)?;
        if id == self.inner.me.id {
            return Err(AskError::NoSuchHolder);
        }
        Ok(self.call(&id, &format!("{LEASES}{}", holder.token())).await?.1)
    }

    async fn call(&self, id: &ResourceId, path: &str) -> Result<(HeaderMap, Call), AskError> {
        let address = self.address_of(id).await?;
        let call = self.inner.client.call(&address, path).await;
        call.map_err(|source| AskError::Silent { id: id.clone(), source })
    }

    /// Where a live node is, as its signed record says.
    async fn address_of(&self, id: &ResourceId) -> Result<Url, AskError> {
        let now = self.inner.clock.now();
        let known = self.inner.known.load();
        let record = known.iter().find(|record| record.node_id == *id && record.is_live(now)).cloned();
        let record = match record {
            Some(record) => Some(record),
            // One that has started since the records were last read.
            None => self.read(id).await.filter(|record| record.is_live(now)),
        };
        let record = record.ok_or_else(|| AskError::NotAlive(id.clone()))?;
        let address = record.peer_address.and_then(|address| address.parse().ok());
        address.ok_or_else(|| AskError::NoAddress(id.clone()))
    }
}
