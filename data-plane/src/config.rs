//! What a node is told at its start, and the limits it keeps.

use std::path::PathBuf;

use tonic::transport::Uri;
use url::Url;

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names this node: at most 63 lower-case letters, digits and hyphens; the same after a restart.
    pub node_id: String,
    /// Where clients reach the registry; without it, the `Host` header of each request says so.
    pub external_url: Option<Url>,
    /// Where the control plane's gRPC API is.
    pub control_api: Uri,
    /// A folder for the bytes of running fills; emptied at start.
    pub spool_dir: PathBuf,
}

/// The limits that every node keeps: each wait has one, and each queue.
pub mod limits {
    use std::time::Duration;

    /// Connections that are open at once.
    pub const CONNECTIONS: usize = 8192;
    /// How long a connection may be idle.
    pub const IDLE: Duration = Duration::from_secs(75);
    /// How long a request's head may take once it has begun.
    pub const HEAD: Duration = Duration::from_secs(10);
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
    /// Fills that run at once.
    pub const FILLS: usize = 256;
    /// How long a fill may wait for its turn.
    pub const FILL_TURN: Duration = Duration::from_secs(10);
    /// How long an upstream that failed is not asked again whether a tag that we hold has moved.
    pub const REVALIDATE_BACKOFF: Duration = Duration::from_secs(15);
    /// One write into the store, such as a record.
    pub const STORE: Duration = Duration::from_secs(30);
    /// Connecting to the control plane.
    pub const CONTROL_CONNECT: Duration = Duration::from_secs(3);
    /// How often, and for how long, a silent line to the control plane is tested.
    pub const CONTROL_KEEP_ALIVE: Duration = Duration::from_secs(10);
    /// One report of events.
    pub const REPORT: Duration = Duration::from_secs(10);
    /// The largest snapshot that is taken.
    pub const SNAPSHOT_BYTES: usize = 256 * 1024 * 1024;
}
