//! Requests to services other than S3 have the form that these services expect.

use entrepot_domain::Secret;
use entrepot_store::Prefix;
use entrepot_store::bucket::{BucketConfig, BucketStore, OpenError, Service};
use http::Method;
use http::request::Parts;

use crate::opening::plain;
use crate::proxy::Stranger;

/// Opens a bucket at a server that accepts everything, and returns the first write that it received.
async fn first_write(service: Service) -> Parts {
    let server = Stranger::careless().await;
    let config = BucketConfig {
        endpoint: Some(server.endpoint().parse().unwrap()),
        prefix: Prefix::below("shared").unwrap(),
        service,
        ..plain("some-bucket")
    };
    let error = BucketStore::open(config, "node-1".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, OpenError::IgnoresConditions { .. }), "{error:?}");
    let write = server.seen(Method::PUT).swap_remove(0);
    // Google requires more escaping.
    let path = write.uri.path().replace("%2D", "-").replace("%2F", "/");
    assert!(path.starts_with("/some-bucket/shared/probe/"), "{path}");
    write
}

fn header<'a>(request: &'a Parts, name: &str) -> &'a str {
    request.headers.get(name).unwrap_or_else(|| panic!("{name} is missing: {request:?}")).to_str().unwrap()
}

#[tokio::test]
async fn google_is_asked_with_generations() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("account.json");
    // The form that emulators expect.
    let account = r#"{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}"#;
    std::fs::write(&file, account).unwrap();
    let write = first_write(Service::Gcs { service_account_file: Some(file) }).await;
    assert_eq!(header(&write, "x-goog-if-generation-match"), "0");
    assert!(write.headers.contains_key("x-goog-meta-entrepotwrite"), "{write:?}");
}

#[tokio::test]
async fn a_service_account_that_cannot_be_read_is_a_mistake_of_the_configuration() {
    let file = "/none/account.json".into();
    let config = BucketConfig { service: Service::Gcs { service_account_file: Some(file) }, ..plain("some-bucket") };
    let error = BucketStore::open(config, "node-1".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, OpenError::BadConfig { .. }) && !error.retry(), "{error:?}");
}

#[tokio::test]
async fn azure_is_asked_with_tags_and_a_shared_key() {
    let access_key = Some(Secret::new("c2VjcmV0".to_owned()));
    let service = Service::Azure { account: "some-account".to_owned(), access_key };
    assert!(!format!("{service:?}").contains("c2VjcmV0"));
    let write = first_write(service).await;
    assert_eq!(header(&write, "if-none-match"), "*");
    assert_eq!(header(&write, "x-ms-blob-type"), "BlockBlob");
    assert!(header(&write, "authorization").starts_with("SharedKey some-account:"), "{write:?}");
    assert!(write.headers.contains_key("x-ms-meta-entrepotwrite"), "{write:?}");
}
