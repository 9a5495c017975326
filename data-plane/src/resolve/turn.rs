//! Of all nodes that want to ask an upstream the same, one does.

use tokio::time::Instant;

use super::Resolver;
use crate::lease::{Claim, Holder, Lease, LeaseKey};
use crate::trail::{self, Note};

/// Who asks the upstream.
pub(super) enum Turn {
    /// This node, with the lease if there is one to be had.
    Ours(Option<Lease>),
    /// Another node did, and has ended, or was lost.
    Theirs,
}

impl Resolver {
    /// Waits for this node's turn, or until the node has ended whose turn it is, but no longer than until `limit`.
    ///
    /// Whoever gets the lease looks once more at what there is, since another may have been faster. The others look at
    /// what that one has written, and come again if it is not enough; one of them takes its place if it is `lost`.
    pub(super) async fn turn(&self, key: &LeaseKey, lost: &mut Option<Holder>, limit: Instant) -> Turn {
        let holder = match self.fills.leases().claim(key, lost.take().as_ref()).await {
            Claim::Granted(lease) => return Turn::Ours(Some(lease)),
            Claim::Uncoordinated => return Turn::Ours(None),
            Claim::Busy(holder) => holder,
        };
        if Instant::now() >= limit {
            return Turn::Ours(None);
        }
        trail::note(Note::WaitedForNode);
        *lost = (!self.fills.peers().wait_for(&holder, limit).await).then_some(holder);
        Turn::Theirs
    }
}
