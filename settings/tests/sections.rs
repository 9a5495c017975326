//! The shared sections: correct files and mistakes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use entrepot_runtime::Tasks;
use entrepot_runtime::config::{Reader, Reported, Section};
use entrepot_runtime::tls::Alpn;
use entrepot_settings::{
    ControlKeys, DrainSettings, ListenerSettings, NodeKeys, OperationsSettings, StoreSettings, TelemetrySettings,
    required_secret, secret,
};
use entrepot_store::bucket::Service;
use entrepot_test_support::tls::Authority;
use entrepot_trust::{ClusterKey, SnapshotSigner, Statement};

/// A configuration file, in which `DIR` stands for the folder that contains it.
struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn reader(&self, file: &str) -> Reader {
        self.write("entrepot.toml", &file.replace("DIR", self.0.path().to_str().unwrap()));
        Reader::load(Some(&self.path("entrepot.toml")), []).unwrap()
    }

    /// The result of `read` for this file, which has no mistake.
    fn read<T>(&self, file: &str, read: impl FnOnce(&mut Reader) -> Result<T, Reported>) -> T {
        let mut reader = self.reader(file);
        let settings = read(&mut reader);
        reader.finish(&[]).unwrap();
        settings.unwrap()
    }

    /// The mistakes that `read` finds in this file, one per line.
    fn mistakes<T>(&self, file: &str, read: impl FnOnce(&mut Reader) -> Result<T, Reported>) -> Vec<String> {
        let mut reader = self.reader(file);
        assert!(read(&mut reader).is_err(), "a mistake leaves no settings");
        let problems = reader.finish(&[]).unwrap_err();
        problems.iter().map(|problem| problem.to_string().replace(self.0.path().to_str().unwrap(), "DIR")).collect()
    }

    /// All keys of a cluster, and the public key of another one.
    fn make_keys(&self) -> SnapshotSigner {
        ClusterKey::load_or_generate(self.path("cluster.key")).unwrap();
        let signer = SnapshotSigner::load_or_generate(self.path("snapshot.key")).unwrap();
        signer.public_key().save(self.path("snapshot.pub")).unwrap();
        SnapshotSigner::generate().public_key().save(self.path("old.pub")).unwrap();
        SnapshotSigner::generate().public_key().save(self.path("older.pub")).unwrap();
        signer
    }
}

fn section<T>(
    name: &'static str,
    read: impl FnOnce(&mut Section<'_>) -> Result<T, Reported>,
) -> impl FnOnce(&mut Reader) -> Result<T, Reported> {
    move |reader| read(&mut reader.section(name))
}

#[test]
fn a_secret_comes_from_its_key_or_from_a_file() {
    let fixture = Fixture::new();
    fixture.write("password", "hunter22\n");
    let read = || section("redis", |section| secret(section, "password"));
    assert_eq!(fixture.read("[redis]\npassword = 'hunter22'", read()).unwrap().expose(), "hunter22");
    assert_eq!(fixture.read("[redis]\npassword_file = 'DIR/password'", read()).unwrap().expose(), "hunter22");
    assert!(fixture.read("", read()).is_none());

    let both = "[redis]\npassword = 'hunter22'\npassword_file = 'DIR/password'";
    assert_eq!(fixture.mistakes(both, read()), ["redis.password: is set, and password_file too: remove one of them"]);
    let missing = fixture.mistakes("[redis]\npassword_file = 'DIR/none'", read());
    assert!(missing[0].starts_with("redis.password_file: `DIR/none` cannot be read: No such file"), "{missing:?}");
    let unset = fixture.mistakes("", section("redis", |section| required_secret(section, "password")));
    assert_eq!(unset, ["redis.password: must be set, here or as ENTREPOT__REDIS__PASSWORD"]);
}

#[tokio::test]
async fn a_listener_has_tls_with_both_files_or_not_at_all() {
    let fixture = Fixture::new();
    let (certificate, key) = Authority::new().certificate_for(&["127.0.0.1"]);
    fixture.write("tls.crt", &certificate);
    fixture.write("tls.key", &key);
    let read = || section("registry", |section| ListenerSettings::read(section, "127.0.0.1:0", Alpn::Http1));

    let plain = fixture.read("", read());
    assert_eq!((plain.listen, plain.tls.is_some()), ("127.0.0.1:0".parse().unwrap(), false));
    let file = "[registry]\ntls_certificate_file = 'DIR/tls.crt'\ntls_key_file = 'DIR/tls.key'";
    let tasks = Tasks::new();
    let listener = fixture.read(file, read()).bind(&tasks).unwrap();
    assert!(listener.is_tls());
    let same = format!("[registry]\nlisten = '{}'", listener.local_addr().unwrap());
    let taken = fixture.read(&same, read()).bind(&tasks).unwrap_err();
    assert!(taken.to_string().contains("registry.listen"), "{taken}");
    assert!(tasks.drain(Duration::from_secs(20)).await);

    assert_eq!(
        fixture.mistakes("[registry]\ntls_key_file = 'DIR/tls.key'", read()),
        ["registry.tls_certificate_file: must be set, since tls_key_file is; or remove both"]
    );
    assert_eq!(
        fixture.mistakes("[registry]\ntls_certificate_file = 'DIR/tls.crt'", read()),
        ["registry.tls_key_file: must be set, since tls_certificate_file is; or remove both"]
    );
    // A broken file is reported together with all other mistakes.
    let file = "[registry]\nlisten = 'x'\ntls_certificate_file = 'DIR/tls.key'\ntls_key_file = 'DIR/none'";
    let mistakes = fixture.mistakes(file, read());
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(mistakes[1].starts_with("registry.tls_certificate_file: cannot be served with: DIR/none cannot be read"));
}

#[test]
fn one_section_of_keys_serves_both_programs() {
    let fixture = Fixture::new();
    let signer = fixture.make_keys();
    let file = "[keys]\ncluster_key_file = 'DIR/cluster.key'\nsnapshot_seed_file = 'DIR/snapshot.key'\n\
                snapshot_public_key_files = ['DIR/snapshot.pub', 'DIR/old.pub']";
    let control = fixture.read(file, ControlKeys::read);
    let node = fixture.read(file, NodeKeys::read);
    let statement = Statement::of(1, 1, b"snapshot");
    let signature = control.snapshot_signer.sign(&statement);
    assert_eq!(control.snapshot_signer.public_key(), signer.public_key());
    assert!(control.snapshot_trust.check(&statement, &signature).is_ok());
    assert!(node.snapshot_trust.check(&statement, &signature).is_ok());
    assert!(node.cluster_key.unseal("p", &control.cluster_key.seal("p", b"x")).is_ok());
}

#[test]
fn a_control_plane_trusts_its_own_key_without_being_told_and_one_more() {
    let fixture = Fixture::new();
    fixture.make_keys();
    let with = |files: &str| {
        format!(
            "[keys]\ncluster_key_file = 'DIR/cluster.key'\nsnapshot_seed_file = 'DIR/snapshot.key'\n\
             snapshot_public_key_files = [{files}]"
        )
    };
    let alone = "[keys]\ncluster_key_file = 'DIR/cluster.key'\nsnapshot_seed_file = 'DIR/snapshot.key'";
    let statement = Statement::of(1, 1, b"snapshot");
    for file in [alone.to_owned(), with(""), with("'DIR/old.pub'"), with("'DIR/snapshot.pub', 'DIR/old.pub'")] {
        let keys = fixture.read(&file, ControlKeys::read);
        assert!(keys.snapshot_trust.check(&statement, &keys.snapshot_signer.sign(&statement)).is_ok(), "{file}");
    }
    let mistakes = fixture.mistakes(&with("'DIR/older.pub', 'DIR/old.pub'"), ControlKeys::read);
    assert!(mistakes[0].starts_with("keys.snapshot_public_key_files: names two keys"), "{mistakes:?}");
}

#[test]
fn keys_that_are_missing_are_all_named_and_none_is_made() {
    let fixture = Fixture::new();
    let file = "[keys]\ncluster_key_file = 'DIR/cluster.key'\nsnapshot_seed_file = 'DIR/snapshot.key'\n\
                snapshot_public_key_files = ['DIR/snapshot.pub']";
    for mistakes in [fixture.mistakes(file, ControlKeys::read), fixture.mistakes(file, NodeKeys::read)] {
        assert!(mistakes.len() >= 2, "{mistakes:?}");
        for mistake in &mistakes {
            assert!(mistake.contains("does not exist") && mistake.contains("`entrepot keys generate`"), "{mistake}");
        }
    }
    assert_eq!(fs::read_dir(fixture.0.path()).unwrap().count(), 1, "the file of configuration only");

    let mistakes =
        fixture.mistakes("[keys]\ncluster_key_file = 'DIR/a'\nsnapshot_public_key_files = []", NodeKeys::read);
    assert!(mistakes.iter().any(|mistake| mistake.contains("must name the file")), "{mistakes:?}");
    let three = "[keys]\nsnapshot_public_key_files = ['a', 'b', 'c']";
    let mistakes = fixture.mistakes(three, NodeKeys::read);
    assert!(mistakes.iter().any(|mistake| mistake.contains("at most two files")), "{mistakes:?}");
}

#[test]
fn a_bucket_is_read_for_each_provider() {
    let fixture = Fixture::new();
    fixture.write("secret", "hunter22\n");
    let s3 = "[store]\nkind = 's3'\nbucket = 'images'\nprefix = '/team/registry/'\nendpoint = 'http://s3:8333'\n\
              allow_plain_http = true\naccess_key_id = 'id'\nsecret_access_key_file = 'DIR/secret'";
    let bucket = fixture.read(s3, StoreSettings::read).bucket;
    assert_eq!((bucket.bucket.as_str(), bucket.prefix.as_str()), ("images", "team/registry/"));
    assert_eq!((bucket.endpoint.unwrap().as_str(), bucket.allow_plain_http), ("http://s3:8333/", true));
    let Service::S3 { region, path_style, credentials: Some(key) } = bucket.service else { panic!("not S3") };
    assert_eq!((region.as_str(), path_style, key.id.as_str()), ("us-east-1", true, "id"));
    assert_eq!(key.secret.expose(), "hunter22");

    let bare = "[store]\nkind = 's3'\nbucket = 'images'\nproxy = 'http://proxy:3128'";
    let bucket = fixture.read(bare, StoreSettings::read).bucket;
    assert!(matches!(bucket.service, Service::S3 { path_style: false, credentials: None, .. }));
    assert_eq!(
        (bucket.prefix.as_str(), bucket.endpoint, bucket.proxy.unwrap().expose().port()),
        ("", None, Some(3128))
    );

    let gcs = "[store]\nkind = 'gcs'\nbucket = 'images'\nservice_account_file = 'DIR/secret'";
    assert!(matches!(fixture.read(gcs, StoreSettings::read).bucket.service, Service::Gcs { .. }));
    let azure = "[store]\nkind = 'azure'\nbucket = 'images'\naccount = 'acme'\naccess_key = 'aGk='";
    assert!(matches!(fixture.read(azure, StoreSettings::read).bucket.service, Service::Azure { .. }));
}

#[test]
fn all_that_is_wrong_with_a_bucket_is_told_together() {
    let fixture = Fixture::new();
    fixture.write("not-a-certificate", "hello");
    let file = "[store]\nkind = 's3'\nprefix = '../up'\nendpoint = 'http://s3:8333'\naccess_key_id = 'id'\n\
                account = 'acme'\nca_file = 'DIR/not-a-certificate'\nproxy = 'ftp://proxy'";
    let mistakes = fixture.mistakes(file, StoreSettings::read);
    let begin = [
        "store.bucket: must be set",
        "store.prefix: must be parts separated by `/`",
        "store.endpoint: is clear text: use https, or set allow_plain_http = true",
        "store.ca_file: `DIR/not-a-certificate` must hold certificates",
        "store.proxy: must be a URL with http or https",
        "store.secret_access_key: must be set, since access_key_id is",
        "store.account: is for kind = \"azure\" only: remove it",
    ];
    assert_eq!(mistakes.len(), begin.len(), "{mistakes:#?}");
    for (mistake, begin) in mistakes.iter().zip(begin) {
        assert!(mistake.starts_with(begin), "{mistake}");
    }
    let mistakes = fixture.mistakes("[store]\nkind = 'local'\nbucket = 'b'", StoreSettings::read);
    assert!(mistakes[0].contains("`s3`, `gcs` or `azure`") && mistakes[0].contains("`entrepot up`"), "{mistakes:?}");
    let mistakes = fixture.mistakes("[store]\nkind = 'azure'\nbucket = 'b'", StoreSettings::read);
    assert_eq!(mistakes, ["store.account: must be set, here or as ENTREPOT__STORE__ACCOUNT"]);
    let credentials = "[store]\nkind = 's3'\nbucket = 'b'\nendpoint = 'https://id:hunter22@s3'";
    let mistakes = fixture.mistakes(credentials, StoreSettings::read);
    assert!(mistakes[0].contains("own keys") && !mistakes[0].contains("hunter22"), "{mistakes:?}");
}

#[test]
fn what_a_process_needs_has_defaults() {
    let fixture = Fixture::new();
    let telemetry = fixture.read("", TelemetrySettings::read);
    assert!(telemetry.otlp.is_none());
    let config = telemetry.config("entrepot-data-plane", "node-1");
    assert_eq!((config.service, config.instance.as_str()), ("entrepot-data-plane", "node-1"));
    let operations = fixture.read("", OperationsSettings::read);
    assert_eq!(operations.listener.listen, "127.0.0.1:5002".parse::<SocketAddr>().unwrap());
    let drain = fixture.read("[drain]\nnotice = '0s'", DrainSettings::read).drain;
    assert_eq!((drain.notice, drain.limit), (Duration::ZERO, Duration::from_secs(300)));
}

#[test]
fn telemetry_is_sent_where_the_file_says_and_mistakes_quote_no_header() {
    let fixture = Fixture::new();
    let file = "[telemetry]\nlog_format = 'json'\notlp_endpoint = 'http://127.0.0.1:4317'\notlp_interval = '5s'\n\
                trace_ratio = 0.25\notlp_headers = 'authorization=Bearer hunter22, x-tenant = harbour'";
    let otlp = fixture.read(file, TelemetrySettings::read).otlp.unwrap();
    assert_eq!((otlp.interval, otlp.endpoint.port()), (Duration::from_secs(5), Some(4317)));
    let headers: Vec<_> = otlp.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(headers, [("authorization", "Bearer hunter22"), ("x-tenant", "harbour")]);
    assert!(!format!("{otlp:?}").contains("hunter22"));

    let file = "[telemetry]\nlog_format = 'xml'\nlog_filter = 'entrepot=loud'\notlp_endpoint = 'collector:4317'\n\
                trace_ratio = 2\notlp_headers = 'hunter22'";
    let mistakes = fixture.mistakes(file, TelemetrySettings::read);
    assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
    assert!(!mistakes.concat().contains("hunter22"), "{mistakes:#?}");
}
