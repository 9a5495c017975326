//! The command as people and scripts call it, without a registry.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use entrepot_proto::v1 as pb;
use entrepot_proto::v1::images_server::{Images, ImagesServer};
use entrepot_test_support::tls::Authority;
use entrepot_trust::{ClusterKey, PublicKey, SnapshotSigner};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// Runs the command in an environment of its own.
fn entrepot(args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_entrepot"))
        .args(args)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Answers one HTTP request with `head`.
fn answering(head: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![];
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1);
            request.push(byte[0]);
        }
        stream.write_all(head.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    });
    (address, thread)
}

#[test]
fn help_teaches_the_environment_and_shows_examples() {
    let help = entrepot(&["--help"], &[]);
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success());
    for part in ["ENTREPOT_API", "ENTREPOT_KEY", "ENTREPOT_BOOTSTRAP_KEY", "entrepot rule create quay --upstream quay"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let help = String::from_utf8(entrepot(&["upstream", "create", "--help"], &[]).stdout).unwrap();
    assert!(help.contains("--allow-private-addresses") && help.contains("Examples:"), "{help}");
}

#[test]
fn without_a_key_it_says_where_keys_come_from() {
    for (environment, part) in [
        (&[][..], "ENTREPOT_KEY is not set"),
        (&[("ENTREPOT_KEY", "")], "ENTREPOT_KEY is not set"),
        (&[("ENTREPOT_KEY", "no-colon")], "`<key id>:<secret>`"),
        (&[("ENTREPOT_KEY", "line:bre\nak")], "`<key id>:<secret>`"),
    ] {
        let output = entrepot(&["rule", "list"], environment);
        assert_eq!(output.status.code(), Some(2));
        assert!(errors(&output).starts_with("error: ") && errors(&output).contains(part), "{}", errors(&output));
        assert!(!errors(&output).contains("colon"), "the key is not shown");
    }
}

#[test]
fn an_api_that_is_not_there_says_what_to_start_or_set() {
    let api = format!("http://{}", nobody());
    let output = entrepot(&["rule", "list"], &[("ENTREPOT_KEY", "admin:secret99"), ("ENTREPOT_API", &api)]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        errors(&output),
        format!(
            "error: cannot reach the API at {api} (connection refused): is it running? If the API is elsewhere, set \
             ENTREPOT_API or --api\n"
        )
    );
}

#[test]
fn an_address_that_is_none_is_a_mistake_in_the_call() {
    for api in ["127.0.0.1:5001", "ftp://127.0.0.1", "http://", "not a url"] {
        let output = entrepot(&["rule", "list", "--api", api], &[("ENTREPOT_KEY", "admin:secret99")]);
        assert_eq!(output.status.code(), Some(2), "{api}");
        assert!(errors(&output).contains(api) && errors(&output).contains("http://127.0.0.1:5001"), "{api}");
    }
}

#[test]
fn mistakes_in_the_call_exit_with_2() {
    for args in [&["rule", "create", "demo"][..], &["upstream", "create", "x", "--kind", "nexus"], &["frobnicate"], &[]]
    {
        assert_eq!(entrepot(args, &[("ENTREPOT_KEY", "admin:secret99")]).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn health_is_an_exit_code() {
    let (address, server) = answering("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n");
    let output = entrepot(&["health", "--url", &format!("http://{address}/readyz")], &[]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), b"ready\n".to_vec()));
    assert!(server.join().unwrap().starts_with("GET /readyz HTTP/1.1\r\n"));

    let (address, _server) =
        answering("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 19\r\n\r\nsnapshot: starting\n");
    let output = entrepot(&["health", "--url", &format!("http://{address}/readyz")], &[]);
    assert_eq!(
        (output.status.code(), errors(&output).as_str()),
        (Some(1), "error: not ready (503): snapshot: starting\n")
    );

    let output = entrepot(&["health", "--url", &format!("http://{}/readyz", nobody())], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("is the program running"), "{}", errors(&output));
}

#[test]
fn completions_are_for_the_shell_that_is_asked_for() {
    for (shell, part) in
        [("bash", "complete -F _entrepot"), ("zsh", "#compdef entrepot"), ("fish", "complete -c entrepot")]
    {
        let output = entrepot(&["completions", shell], &[]);
        assert!(String::from_utf8(output.stdout).unwrap().contains(part), "{shell}");
    }
}

#[test]
fn keys_are_made_once_as_the_programs_want_them() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("keys");
    let generate =
        |more: &[&str]| entrepot(&[&["keys", "generate", "--out", out.to_str().unwrap()], more].concat(), &[]);

    let made = generate(&[]);
    assert!(made.status.success(), "{}", errors(&made));
    let files = ["cluster.key", "snapshot.key", "snapshot.pub"];
    let modes = files.map(|file| out.join(file).metadata().unwrap().permissions().mode() & 0o7777);
    assert_eq!(modes, [0o600, 0o600, 0o644]);
    assert_eq!(out.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(files.iter().all(|file| errors(&made).contains(file)), "{}", errors(&made));
    ClusterKey::load(out.join("cluster.key")).unwrap();
    let signer = SnapshotSigner::load(out.join("snapshot.key")).unwrap();
    assert_eq!(PublicKey::load(out.join("snapshot.pub")).unwrap(), signer.public_key());

    let refused = generate(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(errors(&refused).contains("--if-missing"), "{}", errors(&refused));
    assert!(generate(&["--if-missing"]).status.success());
    assert_eq!(SnapshotSigner::load(out.join("snapshot.key")).unwrap().public_key(), signer.public_key());

    // As if another set of keys had been copied by mistake.
    std::fs::remove_file(out.join("cluster.key")).unwrap();
    let half = generate(&["--if-missing"]);
    assert_eq!(half.status.code(), Some(1));
    assert!(errors(&half).contains("but cluster.key is not") && !out.join("cluster.key").exists(), "{}", errors(&half));
}

#[test]
fn health_over_tls_believes_the_authority_that_is_named_under_the_name_that_is_asked_for() {
    let authority = Authority::new();
    let (folder, ca) = ca_file(&authority);
    let other = ca_file(&Authority::new());
    for (args, environment, expected) in [
        (&["--ca", &ca][..], &[][..], "ready"),
        (&[], &[("ENTREPOT_CA", ca.as_str())], "ready"),
        (&["--ca", &ca, "--tls-name", "localhost"], &[], "ready"),
        (&["--ca", &ca, "--tls-name", "node-1.example"], &[], "certificate"),
        (&["--ca", &other.1], &[], "certificate"),
        (&[], &[], "certificate"),
    ] {
        let (address, server) = answering_over_tls(&authority);
        let url = format!("https://{address}/readyz");
        let output = entrepot(&[&["health", "--url", &url], args].concat(), environment);
        assert_eq!(output.status.code(), Some(i32::from(expected != "ready")), "{args:?}: {}", errors(&output));
        let said = String::from_utf8(output.stdout.clone()).unwrap() + &errors(&output);
        assert!(said.contains(expected), "{args:?}: {said}");
        server.join().unwrap();
    }

    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    let url = format!("https://{}/readyz", nobody());
    for path in [empty.to_str().unwrap(), "/nowhere/ca.pem"] {
        let output = entrepot(&["health", "--url", &url, "--ca", path], &[]);
        assert_eq!(output.status.code(), Some(2));
        assert!(errors(&output).contains(path) && errors(&output).contains("--ca"), "{}", errors(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_over_tls_is_believed_by_its_authority_and_its_name() {
    let authority = Authority::new();
    let (_folder, ca) = ca_file(&authority);
    let (certificate, key) = authority.certificate_for(&["registry.example"]);
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let api = format!("https://{}", incoming.local_addr().unwrap());
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)))
        .unwrap()
        .add_routes(Routes::default())
        .serve_with_incoming(incoming);

    let calls = tokio::task::spawn_blocking(move || {
        let list = |more: &[&str]| {
            let output =
                entrepot(&[&["rule", "list", "--api", &api], more].concat(), &[("ENTREPOT_KEY", "admin:secret99")]);
            assert_eq!(output.status.code(), Some(1));
            errors(&output)
        };
        // This server has no services: any answer has come through TLS.
        let answer = list(&["--ca", &ca, "--tls-name", "registry.example"]);
        assert!(answer.contains("of another release"), "{answer}");
        for more in [&["--ca", &ca][..], &["--tls-name", "registry.example"]] {
            let refused = list(more);
            assert!(refused.contains("cannot reach the API") && refused.contains("certificate"), "{refused}");
            assert!(refused.contains("--ca") && refused.contains("--tls-name"), "{refused}");
        }
    });
    tokio::select! {
        served = server => panic!("the server ended: {served:?}"),
        called = calls => called.unwrap(),
    }
}

/// A file with the authority's certificate, in a temporary folder.
fn ca_file(authority: &Authority) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, authority.pem()).unwrap();
    (folder, path.to_str().unwrap().to_owned())
}

/// Answers one request with "ready" as `127.0.0.1` and `localhost`, unless the client does not trust it.
fn answering_over_tls(authority: &Authority) -> (String, std::thread::JoinHandle<()>) {
    let config = authority.server_config();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), stream);
        let mut request = vec![];
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => request.push(byte[0]),
                Ok(_) | Err(_) => return,
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n").unwrap();
    });
    (address, thread)
}

/// A control plane that knows nothing but deletes, which one node does not follow.
struct Deletes;

#[tonic::async_trait]
impl Images for Deletes {
    async fn get_image(&self, _: Request<pb::GetImageRequest>) -> Result<Response<pb::Image>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn list_images(&self, _: Request<pb::ListImagesRequest>) -> Result<Response<pb::ListImagesResponse>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn warm_images(&self, _: Request<pb::WarmImagesRequest>) -> Result<Response<pb::Operation>, Status> {
        Err(Status::unimplemented("not played"))
    }

    async fn delete_image(&self, request: Request<pb::DeleteImageRequest>) -> Result<Response<pb::Image>, Status> {
        let lagging_node_count = if request.into_inner().name.ends_with("/tags/lags") { 1 } else { 0 };
        Ok(Response::new(pb::Image { lagging_node_count, ..Default::default() }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_a_node_does_not_follow_says_so_beside_its_answer() {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let api = format!("http://{}", incoming.local_addr().unwrap());
    let server = Server::builder().add_service(ImagesServer::new(Deletes)).serve_with_incoming(incoming);
    let calls = tokio::task::spawn_blocking(move || {
        let delete = |image: &str| {
            let output = entrepot(&["image", "delete", image, "--api", &api], &[("ENTREPOT_KEY", "admin:secret99")]);
            assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
            (String::from_utf8(output.stdout.clone()).unwrap(), errors(&output))
        };
        let (answer, said) = delete("demo/app:lags");
        assert_eq!(answer, "deleted repositories/demo/app/tags/lags\n");
        assert!(said.starts_with("1 node did not say in time"), "{said}");
        assert_eq!(delete("demo/app:v1").1, "");
    });
    tokio::select! {
        served = server => panic!("the server ended: {served:?}"),
        called = calls => called.unwrap(),
    }
}
