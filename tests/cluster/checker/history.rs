//! What was published, called and answered in a run, and when.

use std::time::Duration;

/// From when to when something went on, since the run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) begin: Duration,
    pub(super) end: Duration,
}

/// Something that is pulled: a tag, or an image by its digest.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) repository: String,
    /// The tag, or the digest.
    pub(super) reference: String,
    /// Which rule fills it.
    pub(super) rule: &'static str,
    /// What it has meant at its upstream, one after the other.
    pub(super) versions: Vec<Version>,
}

/// What a subject means at its upstream from some time on.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// The digest; `None` if the upstream has it no more.
    pub(super) digest: Option<String>,
    /// While that was made so.
    pub(super) published: Span,
}

/// A request and its answer. Subjects and nodes are numbers.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) node: usize,
    pub(super) subject: usize,
    pub(super) span: Span,
    pub(super) said: Said,
}

/// What a node has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// That the subject means this digest.
    Means(String, Source),
    /// That there is no such thing.
    Absent,
    /// Nothing of it: the request failed, or was not answered.
    Nothing,
}

/// Where a node says that it has an answer from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From the records, or now in them.
    Records,
    /// From what it has read last, since the store is away.
    StoreAway,
    /// From its upstream, and kept nowhere.
    Upstream,
}

/// A call of the API that was made, and what it promises once it has returned.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// What was called, for people.
    pub(super) what: String,
    pub(super) span: Span,
    pub(super) effect: Effect,
    /// The nodes of which the call has said that they do not follow yet.
    pub(super) lagging: Vec<usize>,
}

/// What holds behind a call.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    /// A subject means nothing older than what its upstream had when the call began.
    Renewed(usize),
    /// An image was deleted: a tag that no longer meant it at the upstream when the call began does not mean it any more.
    Deleted { subject: usize, digest: String },
    /// Nothing fills what this rule covered: what nobody has asked for before is not there.
    Severed(&'static str),
    /// A new rule fills it, for which all of it is as good as never confirmed.
    Restored(&'static str),
}

/// All of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    pub(super) nodes: usize,
    pub(super) subjects: Vec<Subject>,
    pub(super) answers: Vec<Answer>,
    pub(super) calls: Vec<Call>,
}

impl Subject {
    /// The newest version that was there for everybody at a time.
    pub(super) fn version_at(&self, time: Duration) -> Option<usize> {
        self.versions.iter().rposition(|version| version.published.end <= time)
    }

    /// Which version a digest is.
    pub(super) fn version_of(&self, digest: &str) -> Option<usize> {
        self.versions.iter().rposition(|version| version.digest.as_deref() == Some(digest))
    }

    /// What it is called.
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.repository, self.reference)
    }
}

impl Call {
    /// Whether it has promised something of what a node answers to a request that began at this time.
    pub(super) fn binds(&self, node: usize, begin: Duration) -> bool {
        self.span.end <= begin && !self.lagging.contains(&node)
    }
}
