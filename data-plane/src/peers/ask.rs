//! What operators want to know of another node, asked on behalf of a control plane that has no line to it.

use entrepot_domain::ResourceId;
use url::Url;

use super::Peers;
use super::client::ProbeError;
use crate::fill::FillView;
use crate::inspect::AnswerView;

/// Why another node could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// It has no record, or an old one.
    #[error("no node `{0}` is alive")]
    NotAlive(ResourceId),
    /// Its record has no address.
    #[error("other nodes do not reach the node `{0}`, since its peer.address is not set")]
    NoAddress(ResourceId),
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
    /// The fills that run on another node.
    pub(crate) async fn fills_of(&self, id: &ResourceId) -> Result<Vec<FillView>, AskError> {
        let address = self.address_of(id).await?;
        let fills = self.inner.client.fills(&address).await;
        fills.map_err(|source| AskError::Silent { id: id.clone(), source })
    }

    /// An answer as another node remembers it.
    pub(crate) async fn answer_of(&self, id: &ResourceId, request_id: &str) -> Result<Option<AnswerView>, AskError> {
        let address = self.address_of(id).await?;
        let answer = self.inner.client.answer(&address, request_id).await;
        answer.map_err(|source| AskError::Silent { id: id.clone(), source })
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
