//! The line to the API.

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
/// How long to wait for an answer, unless the call says otherwise.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How many items to ask for at once.
pub(crate) const PAGE_SIZE: i32 = 500;

/// A connection to the API, a caller, and how to show what comes back.
#[derive(Debug)]
pub(crate) struct Session {
    channel: Channel,
    credentials: Credentials,
    /// How to show what comes back.
    pub(crate) output: Output,
}

type Line = InterceptedService<Channel, Credentials>;

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

    /// The service of this name.
    pub(crate) fn rules(&self) -> v1::rules_client::RulesClient<Line> {
        v1::rules_client::RulesClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn templates(&self) -> v1::templates_client::TemplatesClient<Line> {
        v1::templates_client::TemplatesClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn upstreams(&self) -> v1::upstreams_client::UpstreamsClient<Line> {
        v1::upstreams_client::UpstreamsClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn repositories(&self) -> v1::repositories_client::RepositoriesClient<Line> {
        v1::repositories_client::RepositoriesClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn images(&self) -> v1::images_client::ImagesClient<Line> {
        v1::images_client::ImagesClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// Nodes.
    pub(crate) fn nodes(&self) -> v1::nodes_client::NodesClient<Line> {
        v1::nodes_client::NodesClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn fills(&self) -> v1::fills_client::FillsClient<Line> {
        v1::fills_client::FillsClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn operations(&self) -> v1::operations_client::OperationsClient<Line> {
        v1::operations_client::OperationsClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn answers(&self) -> v1::answers_client::AnswersClient<Line> {
        v1::answers_client::AnswersClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn principals(&self) -> v1::principals_client::PrincipalsClient<Line> {
        v1::principals_client::PrincipalsClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn access_keys(&self) -> v1::access_keys_client::AccessKeysClient<Line> {
        v1::access_keys_client::AccessKeysClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The service of this name.
    pub(crate) fn login_tokens(&self) -> v1::login_tokens_client::LoginTokensClient<Line> {
        v1::login_tokens_client::LoginTokensClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }
}

/// Follows a list to its end; `page` takes a page token and returns the page's items with the next token.
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

/// Puts the access key and a deadline on each call.
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
