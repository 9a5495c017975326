//! What a node is told at its start, and the limits it keeps.

use std::path::PathBuf;
use std::time::Duration;

use entrepot_upstream::Limits;
use ipnet::IpNet;
use tonic::transport::Uri;
use url::Url;

use crate::capacity::Capacity;

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names this node: at most 63 lower-case letters, digits and hyphens; the same after a restart.
    pub node_id: String,
    /// Where clients reach the registry; without it, each request says so.
    pub external_url: Option<Url>,
    /// Whose `X-Forwarded-For`, `-Proto` and `-Host` are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where the control plane's gRPC API is, one for each replica or for a load balancer before them.
    pub control_apis: Vec<Uri>,
    /// Authorities, as PEM, that vouch for the control plane; without them, those of this machine do.
    pub control_ca: Option<String>,
    /// Where other nodes reach this one; `None` if they do not.
    pub peer_address: Option<Url>,
    /// Authorities, as PEM, that vouch for other nodes; without them, those of this machine do.
    pub peer_ca: Option<String>,
    /// A folder for the bytes of running fills; emptied at start.
    pub spool_dir: PathBuf,
    /// How long open answers and fills may go on when the node is told to stop.
    pub drain_limit: Duration,
    /// What records may take in memory, in bytes.
    pub memory_bytes: u64,
    /// Whether it is the only node, now and later: it is then told of all changes by its control plane.
    pub is_alone: bool,
    /// How much it does at once.
    pub capacity: Capacity,
    /// How many children of an index are linked, reported and fetched ahead: the first ones. The others are asked of the
    /// upstream when they are wanted.
    pub index_children: usize,
    /// The bounds of every wait for an upstream.
    pub upstream_limits: Limits,
}

/// How many children of an index count, unless it is configured otherwise.
pub const INDEX_CHILDREN: usize = 1000;

impl Config {
    /// A node that no other one reaches, and no proxy stands before.
    pub fn new(node_id: impl Into<String>, control_apis: Vec<Uri>, spool_dir: impl Into<PathBuf>) -> Self {
        Self {
            node_id: node_id.into(),
            external_url: None,
            trusted_proxies: Vec::new(),
            control_apis,
            control_ca: None,
            peer_address: None,
            peer_ca: None,
            spool_dir: spool_dir.into(),
            drain_limit: Duration::from_secs(20),
            memory_bytes: 64 * 1024 * 1024,
            is_alone: false,
            capacity: Capacity::default(),
            index_children: INDEX_CHILDREN,
            upstream_limits: Limits::default(),
        }
    }
}

/// The limits that every node keeps: each wait has one, and each queue.
pub mod limits {
    use std::time::Duration;

    use entrepot_domain::sync::Bounds;

    /// How long a node believes at most what it has read of records.
    pub const HOLD: Duration = Duration::from_secs(30);
    /// Connections that are open at once.
    pub const CONNECTIONS: usize = 8192;
    /// How long a connection may be idle.
    pub const IDLE: Duration = Duration::from_secs(75);
    /// How long a request's head may take once it has begun.
    pub const HEAD: Duration = Duration::from_secs(10);
    /// Requests at once on one HTTP/2 connection.
    pub const HTTP2_STREAMS: u32 = 100;
    /// The headers of a request over HTTP/2.
    pub const HTTP2_HEADER_BYTES: u32 = 16 * 1024;
    /// How much of a request's body comes before anybody reads it, over HTTP/2: for one, and for all of a connection.
    pub const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
    /// See [`HTTP2_STREAM_WINDOW`].
    pub const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024;
    /// How much of an answer waits for its client, over HTTP/2.
    pub const HTTP2_SEND_BYTES: usize = 256 * 1024;
    /// How much of an answer over HTTP/2 a client must take within [`WRITE_STALL`].
    pub const HTTP2_SLICE_BYTES: usize = 64 * 1024;
    /// The largest frame of a request over HTTP/2; the smallest limit that the protocol has.
    pub const HTTP2_FRAME_BYTES: u32 = 16 * 1024;
    /// How many requests a client may have taken back over HTTP/2 before this node has seen that it did. One more ends the
    /// connection.
    pub const HTTP2_RESETS: usize = 10;
    /// How often, and for how long, a silent HTTP/2 connection is tested.
    pub const HTTP2_PING: Duration = Duration::from_secs(20);
    /// The headers of a request.
    pub const HEADERS: usize = 64;
    /// The bytes of a request's head.
    pub const HEAD_BYTES: usize = 64 * 1024;
    /// How long a client may take nothing of what it is sent.
    pub const WRITE_STALL: Duration = Duration::from_secs(120);
    /// The body of a request for a token.
    pub const FORM_BYTES: usize = 64 * 1024;
    /// How long a request's body may take.
    pub const FORM: Duration = Duration::from_secs(10);
    /// How long a fill may wait for its turn.
    pub const FILL_TURN: Duration = Duration::from_secs(10);
    /// How long a pull may take before its answer begins: containerd gives up after 30 s.
    pub const ANSWER_HEAD: Duration = Duration::from_secs(25);
    /// How long an answer with a blob may wait for its turn.
    pub const READER_TURN: Duration = Duration::from_secs(2);
    /// One write to the spool: a disk that is slower is done without.
    pub const SPOOL_WRITE: Duration = Duration::from_secs(10);
    /// How often a leader tells those that follow it that it lives.
    pub const BEAT: Duration = Duration::from_millis(500);
    /// How long a leader may be silent before it counts as lost.
    pub const LEADER_SILENCE: Duration = Duration::from_secs(2);
    /// How long a node may wait for others to ask the upstream before it does so itself.
    pub const OTHERS_WORK: Duration = Duration::from_secs(120);
    /// How far a follower may be behind its leader to count as close: close enough to be handed the fill over, and to
    /// have the last bytes of stored content from the leader instead of the store.
    pub const CLOSE_BYTES: u64 = 1024 * 1024;
    /// How long readers wait for verified content to be stored before they have its end.
    pub const COMMIT_LATE: Duration = Duration::from_secs(3);
    /// How often a fill looks at what its readers want.
    pub const FILL_TICK: Duration = Duration::from_millis(500);
    /// How long a fill that nobody reads goes on, unless it is worth finishing.
    pub const UNREAD_FILL: Duration = Duration::from_secs(5);
    /// How long an upstream that failed is not asked again whether a tag that we hold has moved.
    pub const REVALIDATE_BACKOFF: Duration = Duration::from_secs(15);
    /// Refusals of upstreams that are remembered, of which one caller may cause a tenth.
    pub const REFUSALS: u64 = 100_000;
    /// How long one is known that did not come again.
    pub const REFUSALS_IDLE: Duration = Duration::from_secs(20 * 60);
    /// The lists of tags that a node remembers, and those of referrers.
    pub const LIST_BYTES: u64 = 64 * 1024 * 1024;
    /// How many questions for lists that led to nothing are remembered.
    pub const LISTS_IN_VAIN: u64 = 10_000;
    /// How long after a tag was looked at it is noted with the manifest that it means, once that is pulled by its digest;
    /// how many such tags are remembered, and for how many of them other nodes' pulls count, too.
    pub const TOLD: Duration = Duration::from_secs(60);
    /// See [`TOLD`].
    pub const TOLD_TAGS: u64 = 10_000;
    /// See [`TOLD`].
    pub const TOLD_WATCHED: usize = 256;
    /// When it is looked whether another node has pulled what a tag means, after it was looked at here.
    pub const TOLD_LOOKS: [Duration; 4] =
        [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8), Duration::from_secs(40)];
    /// How many cached manifests are told of that refer to one.
    pub const REFERRERS: usize = 1000;
    /// How many keys of tags are listed at once, and how many of their records are read at once.
    pub const TAG_RECORDS: usize = 1000;
    /// See [`TAG_RECORDS`].
    pub const TAG_READS: usize = 16;
    /// One write into the store, such as a record.
    pub const STORE: Duration = Duration::from_secs(30);
    /// Connecting to the control plane.
    pub const CONTROL_CONNECT: Duration = Duration::from_secs(3);
    /// How often, and for how long, a silent line to the control plane is tested.
    pub const CONTROL_KEEP_ALIVE: Duration = Duration::from_secs(10);
    /// How often the store is listed for events that are not in memory, but for a fifth more or less.
    pub const LIST_EVENTS: Duration = Duration::from_secs(300);
    /// When events that no control plane has taken yet, being of an earlier release, are offered again: at first, at most.
    pub const KEPT_EVENTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
    /// One report of events.
    pub const REPORT: Duration = Duration::from_secs(10);
    /// How long a control plane that failed is left alone, once all have failed: shorter than changes wait for nodes.
    pub const CONTROL_RETRY: Duration = Duration::from_secs(1);
    /// How long a control plane that takes no line for questions is left alone, at most.
    pub const QUESTIONS_RETRY: Duration = Duration::from_secs(5);
    /// How often the published snapshot is looked at, but for a fifth more or less.
    pub const SNAPSHOT_POLL: Duration = Duration::from_secs(5);
    /// The same, while a control plane streams snapshots.
    pub const STREAMED_SNAPSHOT_POLL: Duration = Duration::from_secs(30);
    /// The same, before there is a first one.
    pub const FIRST_SNAPSHOT_POLL: Duration = Duration::from_secs(1);
    /// How long reading the head of the published snapshot may take, and reading the snapshot itself.
    pub const SNAPSHOT_READ: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
    /// How often a node writes its record.
    pub const NODE_RECORD: Duration = Duration::from_secs(10);
    /// How often it reads those of the others: often enough that one which was just written is not too old before the next
    /// one is read.
    pub const SURVEY: Duration = Duration::from_secs(12);
    /// How often it looks whether its record is due.
    pub const NODE_RECORD_LOOK: Duration = Duration::from_secs(1);
    /// How long each of these may take.
    pub const NODE_RECORD_IO: Duration = Duration::from_secs(5);
    /// How often leftovers of failed fills and dead nodes are looked for, and how long that may take.
    pub const SWEEP: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(120));
    /// How old a node's record must be for its uploads to be nobody's.
    pub const DEAD_AFTER: Duration = Duration::from_secs(120);
    /// How old a node's record must be to be removed by others.
    pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);
    /// How many nodes a cluster can have.
    pub const NODES: usize = 1000;
    /// How many owners of uploads are looked at in one sweep.
    pub const UPLOAD_OWNERS: usize = 1000;
    /// How many jobs a node works at.
    pub const JOBS: usize = 8;
    /// How much of one image is fetched ahead.
    pub const AHEAD: Bounds = Bounds { manifests: 4000, blobs: 20_000, bytes: 1 << 40, depth: 8 };
    /// How many blobs of one job are fetched at once.
    pub const JOB_BLOBS: usize = 3;
    /// How often it is looked for jobs, but for a fifth more or less; and when a control plane did not give any.
    pub const JOB_LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
    /// How often a node says that it works at a job: often enough that two words may be lost.
    pub const JOB_REPORT: Duration = Duration::from_secs(2);
    /// One such word; and how long, and how often, a job's end is told.
    pub const JOB_WORD: Duration = Duration::from_secs(5);
    /// See [`JOB_WORD`].
    pub const JOB_END: (Duration, usize) = (Duration::from_secs(1), 5);
    /// How long a job may take: twice the longest fill.
    pub const JOB: Duration = Duration::from_secs(12 * 60 * 60);
    /// Connecting to another node; its whole answer.
    pub const PEER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));
    /// What another node may say of itself.
    pub const PEER_ANSWER_BYTES: usize = 64 * 1024;
    /// What a node may be told to forget at once.
    pub const FORGET_BYTES: usize = 2 * 1024 * 1024;
    /// What another node may say of its fills.
    pub const PEER_FILLS_BYTES: usize = 4 * 1024 * 1024;
    /// How many questions of one control plane a node works at.
    pub const QUESTIONS: usize = 16;
    /// Connections from other nodes at once.
    pub const PEER_CONNECTIONS: usize = 4096;
    /// What a stopping node may still do when its answers and fills have ended: deliver events, remove its record.
    pub const FAREWELL: Duration = Duration::from_secs(8);
    /// The largest snapshot that is taken.
    pub const SNAPSHOT_BYTES: usize = 256 * 1024 * 1024;
}
