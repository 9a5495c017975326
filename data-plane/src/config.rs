//! A node's configuration, and the limits that every node keeps.

use std::path::PathBuf;
use std::time::Duration;

use entrepot_upstream::Limits;
use ipnet::IpNet;
use tonic::transport::Uri;
use url::Url;

use crate::capacity::Capacity;

/// The configuration of a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's id: at most 63 lower-case letters, digits and hyphens; the same after a restart.
    pub node_id: String,
    /// The registry's URL for clients; without it, the URL of each request is used.
    pub external_url: Option<Url>,
    /// The proxies whose `X-Forwarded-For`, `-Proto` and `-Host` are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The addresses of the control plane's gRPC API: one per replica, or that of a load balancer in front of them.
    pub control_apis: Vec<Uri>,
    /// Certificate authorities in PEM for the control plane; without them, the machine's are used.
    pub control_ca: Option<String>,
    /// The URL at which other nodes reach this one; `None` if they cannot.
    pub peer_address: Option<Url>,
    /// Certificate authorities in PEM for other nodes; without them, the machine's are used.
    pub peer_ca: Option<String>,
    /// The folder for the bytes of running fills; it is emptied at the start.
    pub spool_dir: PathBuf,
    /// How long open answers and fills may continue when the node is told to stop.
    pub drain_limit: Duration,
    /// How much memory records may take, in bytes.
    pub memory_bytes: u64,
    /// Whether this is, and stays, the only node. Its control plane then tells it about all changes.
    pub is_alone: bool,
    pub capacity: Capacity,
    /// The largest blob that is stored, in bytes; larger ones are passed through.
    pub largest_blob: u64,
    /// How many children of an index are linked, reported and fetched in advance, counted from the first. The upstream
    /// is asked for the others when somebody wants them.
    pub index_children: usize,
    /// How many connections of clients may be open at once; fewer, if the process may have few file descriptors.
    pub connections: usize,
    /// When damaged objects are looked at, and for how long they are kept.
    pub damage: DamageTimes,
    /// The bounds of every wait for an upstream.
    pub upstream_limits: Limits,
}

/// When damaged objects are looked at, and for how long they are kept.
#[derive(Clone, Copy, Debug)]
pub struct DamageTimes {
    /// How often it is looked at what nodes have found, but for a fifth more or less.
    pub look: Duration,
    /// For how long an object is kept that no pointer names any more.
    pub kept: Duration,
}

impl Default for DamageTimes {
    fn default() -> Self {
        Self { look: Duration::from_secs(300), kept: Duration::from_secs(7 * 24 * 60 * 60) }
    }
}

/// The largest blob that is kept, unless it is configured otherwise.
pub const LARGEST_BLOB: u64 = 100 << 30;

/// The default number of an index's children that count.
pub const INDEX_CHILDREN: usize = 1000;

impl Config {
    /// The configuration of a node that no other node and no proxy reaches.
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
            largest_blob: LARGEST_BLOB,
            index_children: INDEX_CHILDREN,
            connections: limits::CONNECTIONS,
            damage: DamageTimes::default(),
            upstream_limits: Limits::default(),
        }
    }
}

/// The limits that every node keeps: each wait has one, and each queue.
pub mod limits {
    use std::time::Duration;

    use entrepot_domain::sync::Bounds;

    /// The longest time for which a node relies on records that it has read.
    pub const HOLD: Duration = Duration::from_secs(30);
    /// How many connections may be open at once.
    pub const CONNECTIONS: usize = 8192;
    /// The share (one in so many) of the process's file descriptors for connections of clients, and for those of other
    /// nodes. A client's connection also needs a file while a blob is sent.
    pub const DESCRIPTORS_PARTS: (u64, u64) = (3, 6);
    /// How long a connection may be idle.
    pub const IDLE: Duration = Duration::from_secs(75);
    /// How long a request's head may take once it has begun.
    pub const HEAD: Duration = Duration::from_secs(10);
    /// How many requests may be open on one HTTP/2 connection.
    pub const HTTP2_STREAMS: u32 = 100;
    /// The size of a request's headers over HTTP/2.
    pub const HTTP2_HEADER_BYTES: u32 = 16 * 1024;
    /// How much of a request's body is accepted over HTTP/2 before anybody reads it: for one request, and for a
    /// connection.
    pub const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
    /// See [`HTTP2_STREAM_WINDOW`].
    pub const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024;
    /// How much of an answer may wait for its client, over HTTP/2.
    pub const HTTP2_SEND_BYTES: usize = 256 * 1024;
    /// How much of an answer over HTTP/2 a client must take within [`WRITE_STALL`].
    pub const HTTP2_SLICE_BYTES: usize = 64 * 1024;
    /// The largest frame in a request over HTTP/2; the protocol allows no smaller limit.
    pub const HTTP2_FRAME_BYTES: u32 = 16 * 1024;
    /// How many requests a client may cancel over HTTP/2 before this node has noticed. One more ends the connection.
    pub const HTTP2_RESETS: usize = 10;
    /// How often, and for how long, a silent HTTP/2 connection is tested.
    pub const HTTP2_PING: Duration = Duration::from_secs(20);
    /// The headers of a request.
    pub const HEADERS: usize = 64;
    /// The size of a request's head.
    pub const HEAD_BYTES: usize = 64 * 1024;
    /// How long a client may read nothing of what it is sent.
    pub const WRITE_STALL: Duration = Duration::from_secs(120);
    /// The size of the body of a token request.
    pub const FORM_BYTES: usize = 64 * 1024;
    /// How long a request's body may take.
    pub const FORM: Duration = Duration::from_secs(10);
    /// How long a fill may wait for its turn.
    pub const FILL_TURN: Duration = Duration::from_secs(10);
    /// How long a pull may take before its answer begins: containerd gives up after 30 s.
    pub const ANSWER_HEAD: Duration = Duration::from_secs(25);
    /// How long an answer with a blob may wait for its turn.
    pub const READER_TURN: Duration = Duration::from_secs(2);
    /// One write to the spool. If the disk is slower, the spool is not used.
    pub const SPOOL_WRITE: Duration = Duration::from_secs(10);
    /// How often a leader tells its followers that it is alive.
    pub const BEAT: Duration = Duration::from_millis(500);
    /// How long a leader may be silent before it counts as lost.
    pub const LEADER_SILENCE: Duration = Duration::from_secs(2);
    /// How long a node waits for another one that asks the upstream, before it asks itself.
    pub const OTHERS_WORK: Duration = Duration::from_secs(120);
    /// A follower that is at most this far behind its leader is close: the fill can be handed over to it, and it gets
    /// the last bytes of stored content from the leader instead of the store.
    pub const CLOSE_BYTES: u64 = 1024 * 1024;
    /// How long readers wait for verified content to be stored before they get its tail.
    pub const COMMIT_LATE: Duration = Duration::from_secs(3);
    /// How often a fill checks what its readers want.
    pub const FILL_TICK: Duration = Duration::from_millis(500);
    /// How long an upstream that failed is not asked again about a cached tag.
    pub const REVALIDATE_BACKOFF: Duration = Duration::from_secs(15);
    /// How many refusals of upstreams are remembered. One caller may cause a tenth of them.
    pub const REFUSALS: u64 = 100_000;
    /// How long a refusal that does not recur is remembered.
    pub const REFUSALS_IDLE: Duration = Duration::from_secs(20 * 60);
    /// The size of the remembered lists of tags, and of those of referrers.
    pub const LIST_BYTES: u64 = 64 * 1024 * 1024;
    /// How many failed requests for lists are remembered.
    pub const LISTS_IN_VAIN: u64 = 10_000;
    /// A client may look at a tag by HEAD and then pull its manifest by digest. For this long after the HEAD, the pull
    /// makes the tag known. The others limit how many such tags are remembered, and for how many of them pulls at other
    /// nodes count, too.
    pub const TOLD: Duration = Duration::from_secs(60);
    /// See [`TOLD`].
    pub const TOLD_TAGS: u64 = 10_000;
    /// See [`TOLD`].
    pub const TOLD_WATCHED: usize = 256;
    /// When to check whether another node has pulled the manifest of a tag after a HEAD here.
    pub const TOLD_LOOKS: [Duration; 4] =
        [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8), Duration::from_secs(40)];
    /// How many cached referrers of a manifest are listed.
    pub const REFERRERS: usize = 1000;
    /// How many keys of tags are listed at a time, and how many of their records are read at once.
    pub const TAG_RECORDS: usize = 1000;
    /// See [`TAG_RECORDS`].
    pub const TAG_READS: usize = 16;
    /// One write to the store, such as a record.
    pub const STORE: Duration = Duration::from_secs(30);
    /// How many objects that nodes have found damaged are looked at at once.
    pub const DAMAGES: usize = 1000;
    /// How many of those that this node has found wait to be written down.
    pub const DAMAGES_TOLD: usize = 1000;
    /// How long reading one of them to its end may take.
    pub const DAMAGED_READ: Duration = Duration::from_secs(6 * 60 * 60);
    /// Connecting to the control plane.
    pub const CONTROL_CONNECT: Duration = Duration::from_secs(3);
    /// How often a silent connection to the control plane is tested, and how long the test may take.
    pub const CONTROL_KEEP_ALIVE: Duration = Duration::from_secs(10);
    /// How often the store is listed for events that are not in memory, plus or minus a fifth.
    pub const LIST_EVENTS: Duration = Duration::from_secs(300);
    /// When events that a control plane could not take, being of an earlier release, are offered again: first and
    /// longest wait.
    pub const KEPT_EVENTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
    /// One report of events.
    pub const REPORT: Duration = Duration::from_secs(10);
    /// How long control planes are left alone once all have failed; shorter than the time for which changes wait for
    /// nodes.
    pub const CONTROL_RETRY: Duration = Duration::from_secs(1);
    /// The longest wait before a control plane that accepts no stream of questions is tried again.
    pub const QUESTIONS_RETRY: Duration = Duration::from_secs(5);
    /// How often the published snapshot is checked, plus or minus a fifth.
    pub const SNAPSHOT_POLL: Duration = Duration::from_secs(5);
    /// The same, while a control plane streams snapshots.
    pub const STREAMED_SNAPSHOT_POLL: Duration = Duration::from_secs(30);
    /// The same, before there is a first snapshot.
    pub const FIRST_SNAPSHOT_POLL: Duration = Duration::from_secs(1);
    /// How long reading the published head may take, and reading the snapshot.
    pub const SNAPSHOT_READ: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
    /// How often a node notes that it runs, and for how long it has not run when it counts as suspended: shorter than the
    /// time for which changes of the configuration wait for nodes.
    pub const AWAKE: Duration = Duration::from_millis(500);
    pub const SUSPENDED: Duration = Duration::from_millis(1500);
    /// How long it may look for a newer snapshot then, while requests wait.
    pub const AFTER_SUSPENSION: Duration = Duration::from_secs(2);
    /// How often a node writes its record.
    pub const NODE_RECORD: Duration = Duration::from_secs(10);
    /// How often it reads the records of the others: often enough that a record written just before one read is not too
    /// old at the next read.
    pub const SURVEY: Duration = Duration::from_secs(12);
    /// How often it checks whether its record is due.
    pub const NODE_RECORD_LOOK: Duration = Duration::from_secs(1);
    /// How long each of these operations may take.
    pub const NODE_RECORD_IO: Duration = Duration::from_secs(5);
    /// How often leftovers of failed fills and dead nodes are looked for, and how long that may take.
    pub const SWEEP: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(120));
    /// How old a node's record must be before others abort its uploads.
    pub const DEAD_AFTER: Duration = Duration::from_secs(120);
    /// How old a node's record must be before others remove it.
    pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);
    /// How many nodes a cluster can have.
    pub const NODES: usize = 1000;
    /// How many owners of uploads are checked in one sweep.
    pub const UPLOAD_OWNERS: usize = 1000;
    /// How many jobs a node works on at once.
    pub const JOBS: usize = 8;
    /// How much of one image is fetched in advance.
    pub const AHEAD: Bounds = Bounds { manifests: 4000, blobs: 20_000, bytes: 1 << 40, depth: 8 };
    /// How many blobs of one job are fetched at once.
    pub const JOB_BLOBS: usize = 3;
    /// How often jobs are asked for, plus or minus a fifth; and the same after a control plane gave none.
    pub const JOB_LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
    /// How often a node reports that it works on a job: often enough that two reports may be lost.
    pub const JOB_REPORT: Duration = Duration::from_secs(2);
    /// How long one such report may take; and how long to wait between reports of a job's end, and how many there are.
    pub const JOB_WORD: Duration = Duration::from_secs(5);
    /// See [`JOB_WORD`].
    pub const JOB_END: (Duration, usize) = (Duration::from_secs(1), 5);
    /// How long a job may take: twice the longest fill.
    pub const JOB: Duration = Duration::from_secs(12 * 60 * 60);
    /// How long connecting to another node may take, and its whole answer.
    pub const PEER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));
    /// The size of what another node says about itself.
    pub const PEER_ANSWER_BYTES: usize = 64 * 1024;
    /// The size of a message about what to forget.
    pub const FORGET_BYTES: usize = 2 * 1024 * 1024;
    /// How long other nodes are asked for the size of a blob.
    pub const SIZE_QUESTION: Duration = Duration::from_millis(500);
    /// How many nodes are asked for it at once.
    pub const SIZE_QUESTIONS: usize = 16;
    /// The largest answer of a node about it.
    pub const SIZE_ANSWER_BYTES: usize = 1024;
    /// The size of what another node says about its fills.
    pub const PEER_FILLS_BYTES: usize = 4 * 1024 * 1024;
    /// How many questions of one control plane a node works on at once.
    pub const QUESTIONS: usize = 16;
    /// How many connections of other nodes may be open.
    pub const PEER_CONNECTIONS: usize = 4096;
    /// How long a stopping node may take, after its answers and fills have ended, to deliver events and remove its
    /// record.
    pub const FAREWELL: Duration = Duration::from_secs(8);
    /// The largest accepted snapshot.
    pub const SNAPSHOT_BYTES: usize = 256 * 1024 * 1024;
}
