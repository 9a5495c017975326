//! Requests to other nodes: for their bytes, for their work, and for what they know.

use std::pin::pin;

use entrepot_domain::{Digest, RepositoryName, ResourceId};
use futures_util::{StreamExt as _, stream};
use http::HeaderMap;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use url::Url;
use uuid::Uuid;

use super::Peers;
use super::client::{Call, ProbeError};
use super::paths::{CONFIRMED, FILLS, LEASES, SIZES, SizeAnswer};
use crate::config::limits;
use crate::lease::Holder;

/// Why another node could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("there is no node `{0}`")]
    NoRecord(ResourceId),
    /// Its record has no address.
    #[error("other nodes do not reach the node `{0}`, since its peer.address is not set")]
    NoAddress(ResourceId),
    /// No other node of this cluster can have this lease.
    #[error("the lease is no other node's")]
    NoSuchHolder,
    /// It does not answer properly.
    #[error("the node `{id}` could not be asked on its port for other nodes")]
    Silent { id: ResourceId, source: ProbeError },
}

impl Peers {
    /// What another node returns at `path`, at most `limit` bytes.
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

    /// The size of a blob according to a manifest of the repository that another node has served: the first that one
    /// of them knows within a limit.
    pub(crate) async fn promised(&self, origin: Uuid, repository: &RepositoryName, digest: &Digest) -> Option<u64> {
        let path = format!("{SIZES}{origin}/{digest}?repository={repository}");
        let ids: Vec<_> =
            self.inner.roll.lock().live(self.inner.memory.now()).map(|node| node.node_id.clone()).collect();
        let ask = |id: ResourceId| {
            let (peers, path) = (self.clone(), path.clone());
            async move { peers.get::<SizeAnswer>(&id, &path, limits::SIZE_ANSWER_BYTES).await.ok()?.size_bytes }
        };
        let answers = stream::iter(ids.into_iter().map(ask)).buffer_unordered(limits::SIZE_QUESTIONS);
        let known = answers.filter_map(std::future::ready);
        timeout(limits::SIZE_QUESTION, pin!(known).next()).await.ok().flatten()
    }

    /// Opens the stream of another node's fill from the byte `at` on. Also returns whether that node knows from the
    /// upstream that `repository` has the content.
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

    /// Opens a stream that lasts as long as another node works under a lease.
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

    /// The address of a node, from its signed record. The caller knows from elsewhere that the node is alive.
    async fn address_of(&self, id: &ResourceId) -> Result<Url, AskError> {
        let known = self.inner.roll.lock().record(id).cloned();
        let record = match known {
            Some(record) => Some(record),
            // A node that has started since the records were last listed.
            None => self.read(id).await,
        };
        let record = record.ok_or_else(|| AskError::NoRecord(id.clone()))?;
        let address = record.peer_address.and_then(|address| address.parse().ok());
        address.ok_or_else(|| AskError::NoAddress(id.clone()))
    }
}
