//! Certificates served to real clients, and replaced while they connect.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use entrepot_test_support::tls::Authority;
use entrepot_test_support::wait_until;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::Listener;
use crate::listen::{Accepted, Bounds};

const LIMIT: Duration = Duration::from_secs(20);

/// A certificate and its key in files, and a client that trusts it.
struct Fixture {
    authority: Authority,
    folder: tempfile::TempDir,
    connector: TlsConnector,
}

impl Fixture {
    fn new() -> Self {
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let fixture = Self { authority, folder, connector: TlsConnector::from(Arc::new(config)) };
        fixture.write("first.example");
        fixture
    }

    fn certificate_file(&self) -> PathBuf {
        self.folder.path().join("tls.crt")
    }

    fn key_file(&self) -> PathBuf {
        self.folder.path().join("tls.key")
    }

    /// A new certificate for `name` and loopback.
    fn write(&self, name: &str) {
        let (certificate, key) = self.authority.certificate_for(&["127.0.0.1", name]);
        fs::write(self.certificate_file(), certificate).unwrap();
        fs::write(self.key_file(), key).unwrap();
    }

    fn load(&self, alpn: Alpn) -> Result<Arc<Tls>, TlsError> {
        Tls::load(self.certificate_file(), self.key_file(), alpn)
    }

    /// Whether a server at `addr` shows a certificate for `name`.
    async fn is_served(&self, addr: std::net::SocketAddr, name: &'static str) -> bool {
        let stream = TcpStream::connect(addr).await.unwrap();
        self.connector.connect(ServerName::try_from(name).unwrap(), stream).await.is_ok()
    }
}

/// Sends back what each connection sends, until the tasks stop.
fn echo(listener: Listener, tasks: &Tasks) {
    let inner = tasks.clone();
    tasks.spawn("echo", async move {
        let echo = |accepted: Accepted, _| async move {
            let Ok(stream) = accepted.handshake().await else { return };
            let (mut reader, mut writer) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        };
        listener.serve("echo.connection", Bounds::new(16), &inner, echo).await;
    });
}

#[tokio::test]
async fn client_and_server_agree_on_the_version_of_http() {
    let fixture = Fixture::new();
    for (alpn, is_http2) in [(Alpn::Http1, false), (Alpn::Http1And2, true), (Alpn::Http2, true)] {
        let tls = fixture.load(alpn).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "registry.listen", Some(tls)).unwrap();
        assert!(listener.is_tls());
        let addr = listener.local_addr().unwrap();
        let client = async {
            let stream = TcpStream::connect(addr).await.unwrap();
            let mut stream =
                fixture.connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await.unwrap();
            stream.write_all(b"ping").await.unwrap();
            stream.shutdown().await.unwrap();
        };
        let server = async {
            let mut stream = listener.accept_one().await.handshake().await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            (text, stream.is_http2(), stream.is_tls())
        };
        let ((), seen) = tokio::join!(client, server);
        assert_eq!(seen, ("ping".to_owned(), is_http2, true), "{alpn:?}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_served_after_sighup_and_a_broken_one_never() {
    let (fixture, tasks) = (Fixture::new(), Tasks::new());
    let tls = fixture.load(Alpn::Http1).unwrap();
    Arc::clone(&tls).keep_current(&tasks);
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), "registry.listen", Some(tls.clone())).unwrap();
    let addr = listener.local_addr().unwrap();
    echo(listener, &tasks);
    assert!(fixture.is_served(addr, "first.example").await);

    // Half a replacement: the certificate is new, but the key is not.
    let (certificate, _) = fixture.authority.certificate_for(&["127.0.0.1", "second.example"]);
    fs::write(fixture.certificate_file(), certificate).unwrap();
    assert!(matches!(tls.reload(), Err(TlsError::Pair { .. })));
    assert_eq!(tls.reload().unwrap(), Reload::Unchanged, "told once");
    assert!(fixture.is_served(addr, "first.example").await);

    fixture.write("third.example");
    let hang_up = || rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
    hang_up();
    wait_until(LIMIT, "the new certificate is served", async || fixture.is_served(addr, "third.example").await).await;
    assert!(!fixture.is_served(addr, "first.example").await);
    assert!(tasks.drain(Duration::from_secs(10)).await);
}

#[tokio::test(start_paused = true)]
async fn files_are_looked_at_every_half_minute() {
    let (fixture, tasks) = (Fixture::new(), Tasks::new());
    let tls = fixture.load(Alpn::Http1).unwrap();
    let watched = Arc::clone(&tls);
    // Other tests of this process send SIGHUP.
    tasks.spawn("watch", async move { watched.watch(None).await });
    tokio::time::sleep(POLL * 3 / 2).await;
    let before = tls.current();
    fixture.write("second.example");
    tokio::time::sleep(POLL / 3).await;
    assert!(Arc::ptr_eq(&before, &tls.current()));
    tokio::time::sleep(POLL).await;
    assert!(!Arc::ptr_eq(&before, &tls.current()));
}

#[tokio::test]
async fn a_client_that_does_not_speak_tls_is_sent_away() {
    let fixture = Fixture::new();
    let listener =
        Listener::bind("127.0.0.1:0".parse().unwrap(), "x", Some(fixture.load(Alpn::Http1).unwrap())).unwrap();
    let mut plain = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(listener.accept_one().await.handshake().await.is_err());

    // A client that sends nothing at all is waited for, but not for ever.
    let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let accepted = listener.accept_one().await;
    tokio::time::pause();
    assert_eq!(accepted.handshake().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let fixture = Fixture::new();
    let error = |fixture: &Fixture| chain(&fixture.load(Alpn::Http1).unwrap_err()).to_string();
    let (certificate, key) = (fixture.certificate_file(), fixture.key_file());

    fs::write(&key, fs::read(&certificate).unwrap()).unwrap();
    assert!(error(&fixture).contains("tls.key does not hold a private key"), "{}", error(&fixture));
    fs::remove_file(&key).unwrap();
    assert!(error(&fixture).contains("tls.key cannot be read: No such file"), "{}", error(&fixture));
    fixture.write("second.example");
    fs::write(&certificate, "").unwrap();
    assert!(error(&fixture).contains("tls.crt does not hold certificates"), "{}", error(&fixture));
    let (other, _) = fixture.authority.certificate_for(&["127.0.0.1"]);
    fs::write(&certificate, other).unwrap();
    assert!(error(&fixture).contains("tls.crt and ") && error(&fixture).contains("together"), "{}", error(&fixture));
}

#[test]
fn a_key_that_others_can_read_is_used() {
    let fixture = Fixture::new();
    fs::set_permissions(fixture.key_file(), fs::Permissions::from_mode(0o644)).unwrap();
    fixture.load(Alpn::Http1).unwrap();
}
