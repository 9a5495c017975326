//! The connection to the API.

use std::ffi::OsString;
use std::time::Duration;

use entrepot_domain::Secret;
use entrepot_proto::v1;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;
use crate::output::Output;
use crate::tls::TlsArgs;

/// How long to wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait for an answer, unless a call sets its own limit.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How many items to request at once.
pub(crate) const PAGE_SIZE: i32 = 500;

/// A connection to the API with a caller's credentials, and how to show results.
#[derive(Debug)]
pub(crate) struct Session {
    channel: Channel,
    credentials: Credentials,
    /// How to show results.
    pub(crate) output: Output,
}

type AuthenticatedChannel = InterceptedService<Channel, Credentials>;

impl Session {
    /// Connects to `api` as the caller whose key is `key`.
    pub(crate) async fn open(
        api: &str,
        tls: &TlsArgs,
        key: Option<Secret<OsString>>,
        output: Output,
    ) -> Result<Self, Error> {
        let credentials = Credentials::parse(key)?;
        let bad_address = || Error::Usage(format!("`{api}` is not an API address such as http://127.0.0.1:5001"));
        let endpoint = Endpoint::from_shared(api.to_owned()).map_err(|_| bad_address())?;
        let endpoint = match (endpoint.uri().scheme_str(), endpoint.uri().host()) {
            (Some("http"), Some(_)) => endpoint,
            (Some("https"), Some(_)) => endpoint
                .tls_config(tls.tonic()?)
                .map_err(|source| Error::Unreachable { api: api.to_owned(), source })?,
            _ => return Err(bad_address()),
        };
        let channel = endpoint
            .connect_timeout(CONNECT_LIMIT)
            .connect()
            .await
            .map_err(|source| Error::Unreachable { api: api.to_owned(), source })?;
        Ok(Self { channel, credentials, output })
    }
}

/// A method of [`Session`] for each service, which returns a client of it.
macro_rules! clients {
    ($($service:ident: $module:ident::$client:ident),* $(,)?) => {
        impl Session {
            $(pub(crate) fn $service(&self) -> v1::$module::$client<AuthenticatedChannel> {
                v1::$module::$client::with_interceptor(self.channel.clone(), self.credentials.clone())
            })*
        }
    };
}

clients! {
    rules: rules_client::RulesClient,
    templates: templates_client::TemplatesClient,
    upstreams: upstreams_client::UpstreamsClient,
    repositories: repositories_client::RepositoriesClient,
    images: images_client::ImagesClient,
    nodes: nodes_client::NodesClient,
    damaged_objects: damaged_objects_client::DamagedObjectsClient,
    fills: fills_client::FillsClient,
    operations: operations_client::OperationsClient,
    answers: answers_client::AnswersClient,
    principals: principals_client::PrincipalsClient,
    access_keys: access_keys_client::AccessKeysClient,
    login_tokens: login_tokens_client::LoginTokensClient,
}

/// Reads a list to its end. `page` takes a page token, and returns the items of a page and the next token.
pub(crate) async fn all_pages<T>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Status>,
) -> Result<Vec<T>, Status> {
    let mut items = vec![];
    let mut token = String::new();
    loop {
        let (more, next) = page(token).await?;
        items.extend(more);
        if next.is_empty() {
            return Ok(items);
        }
        token = next;
    }
}

/// Adds the access key and a deadline to each call.
#[derive(Clone, Debug)]
pub(crate) struct Credentials(MetadataValue<Ascii>);

impl Credentials {
    fn parse(key: Option<Secret<OsString>>) -> Result<Self, Error> {
        let key = key.ok_or(Error::NoKey)?;
        let text = key
            .expose()
            .to_str()
            .filter(|key| key.split_once(':').is_some_and(|(id, secret)| !id.is_empty() && !secret.is_empty()));
        let mut value: MetadataValue<Ascii> =
            text.and_then(|text| format!("Bearer {text}").parse().ok()).ok_or(Error::MalformedKey)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        if !request.metadata().contains_key("grpc-timeout") {
            request.set_timeout(CALL_LIMIT);
        }
        Ok(request)
    }
}
