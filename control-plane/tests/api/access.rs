//! Authentication and permissions: keys, permission sets, the first administrator.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use entrepot_control_plane::StartError;
use entrepot_domain::Secret;
use entrepot_proto::node::v1 as node;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::fills_client::FillsClient;
use entrepot_proto::v1::operations_client::OperationsClient;
use entrepot_proto::v1::rules_client::RulesClient;
use entrepot_records::{SnapshotHead, layout};
use entrepot_trust::access_key;
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use uuid::Uuid;

use crate::fixture::{ADMIN, Fixture, LIMIT, World, create_rule, fields, kind};

async fn principal_with_key(fixture: &Fixture, id: &str, set: pb::PermissionSet) -> (String, String) {
    principal_with_key_by(ADMIN, fixture, id, set).await
}

async fn principal_with_key_by(admin: &str, fixture: &Fixture, id: &str, set: pb::PermissionSet) -> (String, String) {
    let request = pb::CreatePrincipalRequest {
        principal_id: id.into(),
        principal: Some(pb::Principal { permission_set: set.into(), ..Default::default() }),
        ..Default::default()
    };
    fixture.principals_as(admin).create_principal(request).await.unwrap();
    let request = pb::CreateAccessKeyRequest { parent: format!("principals/{id}"), ..Default::default() };
    let created = fixture.access_keys_as(admin).create_access_key(request).await.unwrap().into_inner();
    let key = created.access_key.unwrap();
    (key.name, format!("{}:{}", key.key_id, created.secret))
}

#[tokio::test]
async fn callers_prove_who_they_are() {
    let fixture = Fixture::start().await;
    let list = pb::ListRulesRequest::default();
    let error = RulesClient::new(fixture.channel.clone()).list_rules(list.clone()).await.unwrap_err();
    assert_eq!(kind(&error), (Code::Unauthenticated, "CREDENTIALS_MISSING".into()));
    assert!(error.message().contains("ENTREPOT_KEY"), "{}", error.message());
    for (key, reason) in [
        ("admin", "CREDENTIALS_MALFORMED"),
        ("admin:wrong secret", "CREDENTIALS_WRONG"),
        ("nobody:correct horse", "CREDENTIALS_WRONG"),
    ] {
        let mut client = RulesClient::with_interceptor(fixture.channel.clone(), fixture.login(key));
        let error = client.list_rules(list.clone()).await.unwrap_err();
        assert_eq!(kind(&error), (Code::Unauthenticated, reason.into()), "{key}");
    }
}

#[tokio::test]
async fn guesses_are_bounded() {
    let fixture = Fixture::start().await;
    let (wrong, too_many) =
        ((Code::Unauthenticated, "CREDENTIALS_WRONG"), (Code::ResourceExhausted, "TOO_MANY_ATTEMPTS"));
    fixture.login_tokens().get_login_token(pb::GetLoginTokenRequest {}).await.unwrap();
    // The answer is the same whether the key exists or not.
    for id in ["admin", "nobody"] {
        for guess in 0..12 {
            let mut client = fixture.login_tokens_as(&format!("{id}:guess {guess}"));
            let error = client.get_login_token(pb::GetLoginTokenRequest {}).await.unwrap_err();
            let (code, reason) = if guess < 10 { wrong } else { too_many };
            assert_eq!(kind(&error), (code, reason.to_owned()), "{id} {guess}");
        }
    }
    // A caller that has logged in before continues to work.
    fixture.login_tokens().get_login_token(pb::GetLoginTokenRequest {}).await.unwrap();
}

#[tokio::test]
async fn guesses_are_counted_for_whom_a_trusted_proxy_speaks() {
    let guess = async |fixture: &Fixture, key: &str, from: &str| {
        let mut request = Request::new(pb::GetLoginTokenRequest {});
        request.metadata_mut().insert("x-forwarded-for", from.parse().unwrap());
        fixture.login_tokens_as(key).get_login_token(request).await.map_err(|error| error.code())
    };
    // Guesses from one network keep another one out only where nobody may say that they are two.
    for (proxies, owner) in [("127.0.0.0/8", None), ("10.0.0.0/8", Some(Code::ResourceExhausted))] {
        let world = World { trusted_proxies: vec![proxies.parse().unwrap()], ..World::new().await };
        let fixture = world.launch(Some(ADMIN)).await;
        fixture.plane.ready(LIMIT).await.unwrap();
        for number in 0..10 {
            let answer = guess(&fixture, &format!("admin:guess {number}"), "1.1.1.1, 192.0.2.1").await;
            assert_eq!(answer.err(), Some(Code::Unauthenticated), "{proxies} {number}");
        }
        let again = guess(&fixture, "admin:guess", "192.0.2.77").await;
        assert_eq!(again.err(), Some(Code::ResourceExhausted), "{proxies}");
        assert_eq!(guess(&fixture, ADMIN, "198.51.100.7").await.err(), owner, "{proxies}");
    }
}

#[tokio::test]
async fn pullers_read_and_administrators_change() {
    let fixture = Fixture::start().await;
    let (_, puller) = principal_with_key(&fixture, "ci", pb::PermissionSet::Puller).await;
    let mut client = RulesClient::with_interceptor(fixture.channel.clone(), fixture.login(&puller));
    client.list_rules(pb::ListRulesRequest::default()).await.unwrap();
    let error = client.create_rule(create_rule("a", "a", "b")).await.unwrap_err();
    assert_eq!(kind(&error), (Code::PermissionDenied, "PERMISSION_MISSING".into()));
    assert!(error.message().contains("principals/ci") && error.message().contains("ADMINISTRATOR"));

    let answer =
        fixture.login_tokens_as(&puller).get_login_token(pb::GetLoginTokenRequest {}).await.unwrap().into_inner();
    let registry_id = fixture.plane.ready(LIMIT).await.unwrap().registry_id;
    let tokens = fixture.world.cluster_key().tokens();
    let claims = tokens.verify_login(registry_id, &answer.token, fixture.world.clock.now()).unwrap();
    assert_eq!((claims.expire_time - fixture.world.clock.now()).num_hours(), 12);
    // A login token is for the registry, not for this API.
    let error =
        fixture.login_tokens_as(&format!("x:{}", answer.token)).get_login_token(pb::GetLoginTokenRequest {}).await;
    assert_eq!(error.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_revoked_key_and_a_deleted_principal_are_refused_at_once() {
    let fixture = Fixture::start().await;
    let (name, key) = principal_with_key(&fixture, "ops", pb::PermissionSet::Administrator).await;
    fixture.login_tokens_as(&key).get_login_token(pb::GetLoginTokenRequest {}).await.unwrap();
    let revoke = pb::RevokeAccessKeyRequest { name: name.clone() };
    let revoked = fixture.access_keys().revoke_access_key(revoke).await.unwrap().into_inner();
    assert_eq!(revoked.state(), pb::access_key::State::Revoked);
    let call = async |key: &str| fixture.login_tokens_as(key).get_login_token(pb::GetLoginTokenRequest {}).await;
    assert_eq!(call(&key).await.unwrap_err().code(), Code::Unauthenticated);

    let (_, key) = principal_with_key(&fixture, "gone", pb::PermissionSet::Puller).await;
    let delete = pb::DeletePrincipalRequest { name: "principals/gone".into() };
    fixture.principals().delete_principal(delete.clone()).await.unwrap();
    assert_eq!(call(&key).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(fixture.principals().delete_principal(delete).await.unwrap_err().code(), Code::NotFound);

    let list = pb::ListAccessKeysRequest { parent: "principals/ops".into(), ..Default::default() };
    let keys = fixture.access_keys().list_access_keys(list).await.unwrap().into_inner().access_keys;
    assert_eq!(keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), [name]);
}

#[tokio::test]
async fn streams_end_once_their_key_is_revoked() {
    let fixture = Fixture::start().await;
    let (name, key) = principal_with_key(&fixture, "ops", pb::PermissionSet::Administrator).await;
    let images = vec!["repositories/demo/app/tags/v1".to_owned()];
    let request = pb::WarmImagesRequest { images, ..Default::default() };
    let operation = fixture.images().warm_images(request).await.unwrap().into_inner();
    let mut fills = FillsClient::with_interceptor(fixture.channel.clone(), fixture.login(&key));
    let mut fills = fills.watch_fills(pb::WatchFillsRequest::default()).await.unwrap().into_inner();
    let mut operations = OperationsClient::with_interceptor(fixture.channel.clone(), fixture.login(&key));
    let request = pb::WatchOperationRequest { name: operation.name };
    let mut operation = operations.watch_operation(request).await.unwrap().into_inner();
    assert!(fills.message().await.unwrap().is_some() && operation.message().await.unwrap().is_some());

    fixture.access_keys().revoke_access_key(pb::RevokeAccessKeyRequest { name }).await.unwrap();
    for end in [until_end(&mut fills).await, until_end(&mut operation).await] {
        assert_eq!(kind(&end), (Code::Unauthenticated, "CREDENTIALS_WRONG".into()));
    }
}

/// Waits for the error with which a stream ends.
async fn until_end<T>(stream: &mut Streaming<T>) -> Status {
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a reason"),
                Err(status) => return status,
            }
        }
    };
    timeout(Duration::from_secs(20), end).await.expect("the stream goes on")
}

#[tokio::test]
async fn the_last_administrator_cannot_be_lost() {
    let fixture = Fixture::start().await;
    let last = (Code::FailedPrecondition, "LAST_ADMINISTRATOR".to_owned());
    let delete = pb::DeletePrincipalRequest { name: "principals/admin".into() };
    assert_eq!(kind(&fixture.principals().delete_principal(delete.clone()).await.unwrap_err()), last);
    let revoke = pb::RevokeAccessKeyRequest { name: "principals/admin/accessKeys/admin".into() };
    assert_eq!(kind(&fixture.access_keys().revoke_access_key(revoke.clone()).await.unwrap_err()), last);
    principal_with_key(&fixture, "ops", pb::PermissionSet::Administrator).await;
    fixture.principals().delete_principal(delete).await.unwrap();
}

#[tokio::test]
async fn a_secret_is_handed_out_once() {
    let fixture = Fixture::start().await;
    let request =
        pb::CreateAccessKeyRequest { parent: "principals/admin".into(), request_id: Uuid::new_v4().to_string() };
    fixture.access_keys().create_access_key(request.clone()).await.unwrap();
    let error = fixture.access_keys().create_access_key(request).await.unwrap_err();
    assert_eq!(kind(&error), (Code::AlreadyExists, "SECRET_NOT_KEPT".into()));
    let request = pb::CreatePrincipalRequest { principal_id: "X".into(), ..Default::default() };
    let error = fixture.principals().create_principal(request).await.unwrap_err();
    assert_eq!(fields(&error), ["principal_id", "principal"]);
}

#[tokio::test]
async fn a_generated_secret_is_sealed_in_the_database_alone_and_a_chosen_one_nowhere() {
    let fixture = Fixture::start().await;
    let (_, pair) = principal_with_key(&fixture, "signer", pb::PermissionSet::Puller).await;
    let (key_id, secret) = access_key::parse_pair(&pair).unwrap();
    let sealed = async |id: &str| {
        let sql = format!("SELECT encode(sealed_secret, 'hex') AS sealed FROM access_keys WHERE key_id = '{id}'");
        let rows = fixture.world.sql(&sql).await;
        let rows = rows.into_iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get("sealed").map(str::to_owned)),
            tokio_postgres::SimpleQueryMessage::CommandComplete(_)
            | tokio_postgres::SimpleQueryMessage::RowDescription(_)
            | _ => None,
        });
        rows.collect::<Vec<_>>()
    };
    let kept = hex::decode(sealed(key_id.as_str()).await.remove(0).unwrap()).unwrap();
    let cluster_key = fixture.world.cluster_key();
    assert_eq!(access_key::unseal_secret(&cluster_key, &key_id, &kept).unwrap().expose(), secret.expose());
    assert!(access_key::unseal_secret(&entrepot_trust::ClusterKey::generate(), &key_id, &kept).is_err());
    assert_eq!(sealed("admin").await, [None], "of a chosen secret there is a hash only");

    let head = fixture.world.store.get(&layout::snapshot_head()).await.unwrap().unwrap();
    let head: SnapshotHead = serde_json::from_slice(&head.bytes).unwrap();
    let snapshot = fixture.world.store.get(&head.key).await.unwrap().unwrap().bytes;
    let has = |part: &[u8]| snapshot.windows(part.len()).any(|window| window == part);
    assert!(has(key_id.as_str().as_bytes()), "the key is published");
    assert!(!has(&kept) && !has(secret.expose().as_bytes()));

    let name = format!("principals/signer/accessKeys/{key_id}");
    fixture
        .access_keys()
        .revoke_access_key(pb::RevokeAccessKeyRequest { name: name.to_lowercase().replace("keys", "Keys") })
        .await
        .unwrap();
    assert_eq!(sealed(key_id.as_str()).await, [None], "nor of a revoked one");
}

#[tokio::test]
async fn key_ids_are_compared_without_case() {
    let fixture = Fixture::start().await;
    let (_, pair) = principal_with_key(&fixture, "ops", pb::PermissionSet::Administrator).await;
    let (id, secret) = pair.split_once(':').unwrap();
    assert!(id.starts_with("AK") && id.len() == 20, "{id}");
    for key in [pair.clone(), format!("{}:{secret}", id.to_lowercase()), "ADMIN:correct horse".to_owned()] {
        fixture.login_tokens_as(&key).get_login_token(pb::GetLoginTokenRequest {}).await.unwrap();
    }
}

#[tokio::test]
async fn the_bootstrap_key_is_made_true_at_every_start() {
    let fixture = Fixture::start().await;
    fixture.plane.ready(LIMIT).await.unwrap();
    assert!(!fixture.world.folder.path().join("first-key").exists());
    let world = fixture.stop().await;
    let fixture = world.launch(Some("admin:another secret")).await;
    fixture.plane.ready(LIMIT).await.unwrap();
    let call = async |fixture: &Fixture, key: &str| {
        fixture.login_tokens_as(key).get_login_token(pb::GetLoginTokenRequest {}).await.map(|_| ())
    };
    assert!(call(&fixture, ADMIN).await.is_err());
    call(&fixture, "admin:another secret").await.unwrap();

    let admin = "admin:another secret";
    let (_, other) = principal_with_key_by(admin, &fixture, "ops", pb::PermissionSet::Administrator).await;
    let revoke = pb::RevokeAccessKeyRequest { name: "principals/admin/accessKeys/admin".into() };
    fixture.access_keys_as(&other).revoke_access_key(revoke).await.unwrap();
    let fixture = fixture.stop().await.start().await;
    assert!(call(&fixture, ADMIN).await.is_err());
    call(&fixture, &other).await.unwrap();
}

#[tokio::test]
async fn without_an_administrator_a_first_key_is_made_once() {
    let fixture = World::new().await.launch(None).await;
    fixture.plane.ready(LIMIT).await.unwrap();
    let file = fixture.world.folder.path().join("first-key");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let first = std::fs::read_to_string(&file).unwrap();
    fixture.login_tokens_as(first.trim()).get_login_token(pb::GetLoginTokenRequest {}).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    let fixture = fixture.stop().await.launch(None).await;
    fixture.plane.ready(LIMIT).await.unwrap();
    assert!(!file.exists());
    fixture.login_tokens_as(first.trim()).get_login_token(pb::GetLoginTokenRequest {}).await.unwrap();
}

#[tokio::test]
async fn a_bootstrap_key_that_is_too_short_or_guessed_at_once_stops_the_start_with_the_reason() {
    for (key, said) in [
        ("admin:short", "at least 8"),
        ("admin", "<key id>:<secret>"),
        ("Ad min:long enough", "key id"),
        ("admin:<secret>", "guessed at once"),
        ("admin-key:Admin-Key", "guessed at once"),
    ] {
        let fixture = World::new().await.launch(Some(key)).await;
        let Err(StartError::Refused { why }) = fixture.plane.ready(LIMIT).await else { panic!("{key} was taken") };
        assert!(why.contains("ENTREPOT_BOOTSTRAP_KEY") && why.contains(said), "{why}");
        assert!(!fixture.health.is_ready());
    }
}

#[tokio::test]
async fn a_bootstrap_key_that_exists_goes_on_even_if_it_is_guessed_at_once() {
    let weak = "admin:changeme";
    let fixture = Fixture::start().await;
    // The hash that an earlier release would have stored.
    let hash = access_key::hash_chosen(&Secret::new("changeme".to_owned())).await;
    let sealed = fixture.world.cluster_key().seal("access-key/admin", &hash.encode());
    let world = fixture.stop().await;
    world.sql(&format!("UPDATE access_keys SET sealed_hash = '\\x{}'", hex::encode(sealed))).await;
    let fixture = world.launch(Some(weak)).await;
    fixture.plane.ready(LIMIT).await.unwrap();
    fixture.login_tokens_as(weak).get_login_token(pb::GetLoginTokenRequest {}).await.unwrap();
}

#[tokio::test]
async fn nodes_and_operators_have_their_own_doors() {
    let fixture = Fixture::start().await;
    let report = node::ReportEventsRequest { node_id: "n1".into(), events: vec![] };
    fixture.nodes("n1").report_events(report.clone()).await.unwrap();
    let error = fixture.nodes("n2").report_events(report.clone()).await.unwrap_err();
    assert_eq!(fields(&error), ["node_id"]);
    let login = fixture.login(ADMIN);
    let mut client = node::nodes_client::NodesClient::with_interceptor(fixture.channel.clone(), login);
    let error = client.report_events(report.clone()).await.unwrap_err();
    assert_eq!(kind(&error), (Code::Unauthenticated, "NODE_TOKEN_WRONG".into()));
    let mut late = fixture.nodes("n1");
    fixture.world.clock.advance(std::time::Duration::from_secs(120));
    assert_eq!(late.report_events(report).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn health_and_reflection_are_open() {
    let fixture = Fixture::start().await;
    let mut client = HealthClient::new(fixture.channel.clone());
    for service in ["", "entrepot.v1.Rules", "entrepot.node.v1.Nodes"] {
        let check = HealthCheckRequest { service: service.into() };
        entrepot_test_support::wait_until(LIMIT, "serving", async || {
            let answer = client.check(check.clone()).await;
            answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
        })
        .await;
    }
    let names = reflected_services(&fixture).await;
    for service in ["entrepot.v1.Rules", "entrepot.v1.Principals", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == service), "{service} in {names:?}");
    }
}

#[tokio::test]
async fn reflection_knows_error_details_and_hides_what_nodes_say() {
    let fixture = Fixture::start().await;
    for details in ["google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo", "google.rpc.Status"] {
        assert!(is_reflected(&fixture, details).await, "{details}");
    }
    for internal in ["entrepot.node.v1.Nodes", "entrepot.node.v1.Snapshot"] {
        assert!(!is_reflected(&fixture, internal).await, "{internal}");
    }
    let names = reflected_services(&fixture).await;
    assert!(names.iter().all(|name| !name.starts_with("entrepot.node.")), "{names:?}");
}

async fn reflected_services(fixture: &Fixture) -> Vec<String> {
    let answer = reflect(fixture, MessageRequest::ListServices(String::new())).await.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    services.service.into_iter().map(|service| service.name).collect()
}

/// Whether reflection has the file of a service or message.
async fn is_reflected(fixture: &Fixture, symbol: &str) -> bool {
    let answer = reflect(fixture, MessageRequest::FileContainingSymbol(symbol.to_owned())).await;
    matches!(answer, Ok(MessageResponse::FileDescriptorResponse(_)))
}

async fn reflect(fixture: &Fixture, request: MessageRequest) -> Result<MessageResponse, tonic::Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut client = ServerReflectionClient::new(fixture.channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await?.into_inner();
    let answer = answers.message().await?.and_then(|answer| answer.message_response);
    answer.ok_or_else(|| tonic::Status::not_found("there is no answer"))
}
