//! Of all nodes that want to ask an upstream the same question, one does.

use tokio::time::Instant;

use super::Resolver;
use crate::lease::{Claim, Holder, Lease, LeaseKey};
use crate::trail::{self, Note};

/// Who asks the upstream.
pub(super) enum Leadership {
    /// This node, with the lease if one could be had.
    Ours(Option<Lease>),
    /// Another node did, and has ended or was lost.
    Theirs,
}

impl Resolver {
    /// Waits for this node's turn, or until the node whose turn it is has ended, but at most until `limit`.
    ///
    /// A node that gets the lease checks once more what there is, since another may have been faster. The others check
    /// what that node has written, and come again if it is not enough. If that node is `lost`, one of them takes its
    /// place.
    pub(super) async fn lead_or_wait(&self, key: &LeaseKey, lost: &mut Option<Holder>, limit: Instant) -> Leadership {
        let holder = match self.fills.leases().claim(key, lost.take().as_ref()).await {
            Claim::Granted(lease) => return Leadership::Ours(Some(lease)),
            Claim::Uncoordinated => return Leadership::Ours(None),
            Claim::Busy(holder) => holder,
        };
        if Instant::now() >= limit {
            return Leadership::Ours(None);
        }
        trail::note(Note::WaitedForNode);
        *lost = (!self.fills.peers().wait_for(&holder, limit).await).then_some(holder);
        Leadership::Theirs
    }
}
