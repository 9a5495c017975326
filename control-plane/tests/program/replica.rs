//! A control plane as a process, with everything that it needs.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use entrepot_test_support::program::Host;
use entrepot_test_support::tls::Authority;
use entrepot_test_support::{Postgres, Program, Seaweed};
use entrepot_trust::{ClusterKey, SnapshotSigner};
use tempfile::TempDir;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// The limit of every wait.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// The password of the database.
pub(crate) const PASSWORD: &str = "a-password-of-these-tests";
/// The key of `ENTREPOT_BOOTSTRAP_KEY`, where it is set.
pub(crate) const ADMIN: &str = "admin:correct horse";

/// A database, a bucket and keys.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) postgres: Postgres,
    authority: Authority,
    database: String,
    store: String,
}

/// A control plane with its configuration.
pub(crate) struct Replica {
    pub(crate) program: Program,
    pub(crate) config: PathBuf,
    pub(crate) operations: SocketAddr,
    api: SocketAddr,
    authority: String,
}

/// The path of the program.
pub(crate) fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_entrepot-control-plane").into()
}

/// Adds a key to every call.
pub(crate) fn login(key: &str) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + use<> {
    let value: MetadataValue<Ascii> = format!("Bearer {key}").parse().unwrap();
    move |mut request| {
        request.metadata_mut().insert("authorization", value.clone());
        Ok(request)
    }
}

impl Place {
    /// A place on the shared bucket; `None` if tests with a bucket are to be skipped.
    pub(crate) async fn new() -> Option<Self> {
        Some(Self::with(Seaweed::shared().await?).await)
    }

    /// A place on a bucket of `seaweed`.
    pub(crate) async fn with(seaweed: &Seaweed) -> Self {
        let folder = TempDir::new().unwrap();
        let authority = Authority::new();
        let postgres = Postgres::start_with_tls(&authority, PASSWORD).await;
        let database = postgres.database().await.rsplit_once("dbname=").unwrap().1.to_owned();
        ClusterKey::load_or_generate(folder.path().join("cluster.key")).unwrap();
        let signer = SnapshotSigner::load_or_generate(folder.path().join("snapshot.key")).unwrap();
        signer.public_key().save(folder.path().join("snapshot.pub")).unwrap();
        let store = format!(
            "kind = \"s3\"\nbucket = \"{}\"\nendpoint = \"{}\"\nallow_plain_http = true\nregion = \"{}\"\n\
             access_key_id = \"{}\"\nsecret_access_key = \"{}\"",
            seaweed.bucket().await,
            seaweed.endpoint(),
            Seaweed::REGION,
            Seaweed::ACCESS_KEY_ID,
            Seaweed::SECRET_ACCESS_KEY
        );
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        std::fs::write(folder.path().join("database-password"), format!("{PASSWORD}\n")).unwrap();
        Self { folder, postgres, authority, database, store }
    }

    /// Whether each of the control plane's database sessions is encrypted, according to the database.
    pub(crate) async fn encrypted_sessions(&self) -> Vec<bool> {
        let url = self.postgres.url(&self.database);
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        let query = async move {
            let sql =
                "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'entrepot'";
            let rows = client.query(sql, &[]).await.unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        };
        tokio::join!(query, connection).0
    }
}

impl Replica {
    /// A control plane that does not run yet. `extra` adds lines to sections.
    pub(crate) fn new(place: &Place, name: &str, extra: &[(&str, &str)]) -> Self {
        let host = Host::free();
        let (api, operations) = (host.at(15_001), host.at(15_002));
        let folder = place.folder.path();
        let path = |file: &str| folder.join(file).display().to_string();
        let (certificate, key) = place.authority.certificate_for(&["control.example"]);
        let (certificate_file, key_file) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate_file, certificate).unwrap();
        std::fs::write(&key_file, key).unwrap();
        let sections = [
            (
                "api",
                format!(
                    "listen = \"{api}\"\ntls_certificate_file = \"{}\"\ntls_key_file = \"{}\"",
                    certificate_file.display(),
                    key_file.display()
                ),
            ),
            ("operations", format!("listen = \"{operations}\"")),
            (
                "postgres",
                format!(
                    "url = \"{}\"\npassword_file = \"{}\"\nca_file = \"{}\"",
                    place.postgres.tls_url(&place.database),
                    path("database-password"),
                    path("ca.pem")
                ),
            ),
            ("store", place.store.clone()),
            (
                "keys",
                format!(
                    "cluster_key_file = \"{}\"\nsnapshot_seed_file = \"{}\"\nsnapshot_public_key_files = [\"{}\"]",
                    path("cluster.key"),
                    path("snapshot.key"),
                    path("snapshot.pub")
                ),
            ),
            ("telemetry", String::new()),
            ("drain", "notice = \"100ms\"".to_owned()),
            // This key is for the other program.
            ("registry", "listen = \"0.0.0.0:5000\"".to_owned()),
        ];
        let mut text = String::new();
        for (section, lines) in sections {
            writeln!(text, "[{section}]\n{lines}").unwrap();
            for (_, more) in extra.iter().filter(|(name, _)| *name == section) {
                writeln!(text, "{more}").unwrap();
            }
        }
        let config = folder.join(format!("{name}.toml"));
        std::fs::write(&config, text).unwrap();
        let program = Program::new(name, program(), folder).arg("--config").arg(&config);
        Self { program, config, operations, api, authority: place.authority.pem() }
    }

    /// Sets [`ADMIN`] as its administrator.
    pub(crate) fn with_admin(self) -> Self {
        self.program.set_env("ENTREPOT_BOOTSTRAP_KEY", Some(ADMIN));
        self
    }

    pub(crate) async fn until_ready(&self) {
        self.program.until_ready(self.operations).await;
    }

    /// A connection to its API, over TLS.
    pub(crate) fn channel(&self) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authority))
            .domain_name("control.example");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.api)).unwrap();
        endpoint.tls_config(tls).unwrap().timeout(LIMIT).connect_lazy()
    }
}
