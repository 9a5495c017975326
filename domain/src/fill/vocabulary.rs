//! The words between a fill and its driver: what has happened, what to do next, where the fill is, and how it ends.

use std::ops::Range;

/// The phase of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Asking the store whether it has the content.
    Looking,
    /// Asking for the lease.
    Claiming,
    /// Another node holds the lease. Bytes come from it until it has stored the content or is lost.
    Following,
    /// Asking the store once more: with the lease, or without it where no lease can be had.
    LookingAgain,
    /// Bytes come from the upstream.
    Leading,
    /// All bytes before a part that has landed ahead have landed, so the part is being hashed.
    Adopting,
    /// The rest comes from the store, where another node has put the content.
    Reading,
    /// All bytes have landed and are compared with the digest.
    Verifying,
    /// The content is verified and is being stored under its final key, or linked if it already has one.
    Committing,
    Finished(Outcome),
}

/// How a fill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The content is in the store, through this fill or another one.
    Stored,
    /// Readers get verified bytes, but the content could not be stored.
    Uncached,
    /// There is no content; readers get the error.
    Failed,
    /// Nobody wanted it any more.
    Abandoned,
    /// This node is stopping, and a follower takes the lead.
    HandedOver,
    /// The spool cannot be written: each reader gets its own stream from the upstream.
    PassedThrough,
}

/// Something that has happened, as the driver reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The store has the content.
    Found,
    /// The store does not have it.
    Absent,
    /// The store cannot be asked.
    StoreAway,
    /// We have the lease.
    Granted,
    /// The lease cannot be asked for; continue without it.
    Uncoordinated,
    /// Another node holds the lease.
    Busy,
    /// The leader has all bytes, and has stored them if the store took them.
    LeaderEnded,
    /// The leader has stopped, or is too slow.
    LeaderLost,
    /// The leader sent wrong bytes.
    LeaderRejected,
    /// The size is known.
    Sized(u64),
    /// This many further bytes have landed, in order, and are hashed.
    Landed(u64),
    /// The body from the upstream or the store has ended.
    Ended,
    /// The source has failed for good. Also used when the leader reports this of the upstream.
    Broken,
    /// A reader waits for the byte at this offset, far ahead of what has landed.
    Wanted(u64),
    /// No reader waits for a part ahead any more.
    Unwanted,
    /// This many further bytes have landed ahead.
    AheadLanded(u64),
    /// The request for a part ahead has ended.
    AheadEnded,
    /// The upstream refuses requests for parts.
    AheadRefused,
    /// This many bytes that had landed ahead are hashed.
    Hashed(u64),
    /// The bytes match the digest.
    Right,
    /// They do not match.
    Wrong,
    /// The content is stored under its final key.
    Committed,
    /// The content could not be stored.
    CommitFailed,
    /// The content is verified, but storing it takes long.
    CommitLate,
    /// The spool cannot be written.
    SpoolFailed,
    /// There have been no readers for a while, and too much is left to be worth fetching.
    Abandoned,
    /// This node is stopping.
    Draining {
        /// Whether there are readers on this node.
        readers: bool,
        /// Whether other nodes follow this one.
        followers: bool,
    },
}

/// Something that the driver must do next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Ask the store for the content.
    Look,
    /// Take the lease if it is free.
    Claim,
    /// Take the lease if it is free or still belongs to the leader that was lost.
    TakeOver,
    /// Read from the leader, from this offset on.
    Follow(u64),
    /// Begin an upload with what has landed. Everything hashed from now on goes into it.
    BeginUpload,
    /// Request the content from the upstream, from this offset on.
    Fetch(u64),
    /// Open a second request, for this part.
    FetchAhead(Range<u64>),
    /// End the second request.
    StopAhead,
    /// Continue the second request as the main one, whose bytes land in order.
    AdoptAhead,
    /// End the main request.
    HangUp,
    /// Hash these bytes, which have landed ahead.
    Hash(Range<u64>),
    /// Read the content from the store, from this offset on.
    ReadStore(u64),
    /// Compare the hash of all that has landed with the digest.
    Verify,
    /// Store the content under its final key.
    Commit,
    /// Link the stored content in the repositories that may show it.
    Link,
    /// Forget what has landed.
    Discard,
    /// Abort the upload, but only what this fill has created.
    AbortUpload,
    /// Give the lease back, if it is ours.
    ReleaseLease,
}
