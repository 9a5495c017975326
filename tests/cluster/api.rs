//! The gRPC API, called as the administrator.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::access_keys_client::AccessKeysClient;
use entrepot_proto::v1::answers_client::AnswersClient;
use entrepot_proto::v1::fills_client::FillsClient;
use entrepot_proto::v1::images_client::ImagesClient;
use entrepot_proto::v1::login_tokens_client::LoginTokensClient;
use entrepot_proto::v1::operations_client::OperationsClient;
use entrepot_proto::v1::principals_client::PrincipalsClient;
use entrepot_proto::v1::repositories_client::RepositoriesClient;
use entrepot_proto::v1::rules_client::RulesClient;
use entrepot_proto::v1::upstreams_client::UpstreamsClient;
use entrepot_test_support::{FakeUpstream, wait_until};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::client::LIMIT;

/// Puts the administrator's key on every call.
#[derive(Clone)]
pub(crate) struct AsAdmin(MetadataValue<Ascii>);

impl Interceptor for AsAdmin {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Admin = InterceptedService<Channel, AsAdmin>;

/// The API of one control plane, or of whichever a load balancer chooses.
#[derive(Clone)]
pub(crate) struct Api {
    channel: Channel,
    admin: AsAdmin,
}

impl Api {
    /// The API at `address`, called with the key `<key id>:<secret>`. It connects when it is called.
    pub(crate) fn at(address: SocketAddr, key: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URL");
        let channel = endpoint.connect_timeout(LIMIT).timeout(LIMIT).connect_lazy();
        Self { channel, admin: AsAdmin(format!("Bearer {key}").parse().expect("a key is plain text")) }
    }

    pub(crate) fn upstreams(&self) -> UpstreamsClient<Admin> {
        UpstreamsClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    pub(crate) fn rules(&self) -> RulesClient<Admin> {
        RulesClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    pub(crate) fn repositories(&self) -> RepositoriesClient<Admin> {
        RepositoriesClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    pub(crate) fn images(&self) -> ImagesClient<Admin> {
        ImagesClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    pub(crate) fn principals(&self) -> PrincipalsClient<Admin> {
        PrincipalsClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    pub(crate) fn access_keys(&self) -> AccessKeysClient<Admin> {
        AccessKeysClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    pub(crate) fn login_tokens(&self) -> LoginTokensClient<Admin> {
        LoginTokensClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    pub(crate) fn operations(&self) -> OperationsClient<Admin> {
        OperationsClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    pub(crate) fn fills(&self) -> FillsClient<Admin> {
        FillsClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    pub(crate) fn answers(&self) -> AnswersClient<Admin> {
        AnswersClient::with_interceptor(self.channel.clone(), self.admin.clone())
    }

    /// Makes an upstream for `upstream`, which is on loopback and plain HTTP, and says so.
    pub(crate) async fn upstream(&self, id: &str, upstream: &FakeUpstream) -> Result<pb::Upstream, tonic::Status> {
        self.upstream_with_password(id, upstream, None).await
    }

    /// Makes an upstream that is logged in to.
    pub(crate) async fn upstream_with_password(
        &self,
        id: &str,
        upstream: &FakeUpstream,
        login: Option<(&str, &str)>,
    ) -> Result<pb::Upstream, tonic::Status> {
        self.upstream_at(id, &upstream.url(), login).await
    }

    /// Makes an upstream at a URL of this machine, which may be that of a link.
    pub(crate) async fn upstream_at(
        &self,
        id: &str,
        url: &str,
        login: Option<(&str, &str)>,
    ) -> Result<pb::Upstream, tonic::Status> {
        let (username, password) = login.unwrap_or_default();
        let request = pb::CreateUpstreamRequest {
            upstream_id: id.to_owned(),
            upstream: Some(pb::Upstream {
                kind: pb::UpstreamKind::Oci.into(),
                endpoint: url.to_owned(),
                allow_plain_http: true,
                allow_private_addresses: true,
                username: username.to_owned(),
                password: password.to_owned(),
                ..Default::default()
            }),
            request_id: String::new(),
        };
        Ok(self.upstreams().create_upstream(request).await?.into_inner())
    }

    /// Makes a rule `id` for the prefix `id`, and an upstream of the same name.
    pub(crate) async fn rule(&self, id: &str, upstream: &FakeUpstream) -> Result<pb::Rule, tonic::Status> {
        self.upstream(id, upstream).await?;
        self.rule_to(id, id).await
    }

    /// Makes a rule `id` for the prefix `id` to an upstream that exists.
    pub(crate) async fn rule_to(&self, id: &str, upstream: &str) -> Result<pb::Rule, tonic::Status> {
        let rule = pb::Rule { upstream: format!("upstreams/{upstream}"), ..Default::default() };
        let request = pb::CreateRuleRequest { rule_id: id.to_owned(), rule: Some(rule), request_id: String::new() };
        Ok(self.rules().create_rule(request).await?.into_inner())
    }

    pub(crate) async fn delete_rule(&self, id: &str) -> Result<(), tonic::Status> {
        let request = pb::DeleteRuleRequest { name: format!("rules/{id}"), etag: String::new() };
        self.rules().delete_rule(request).await.map(drop)
    }

    /// A round of calls that change something and list something, each repeated while a control plane is away; how
    /// often one was.
    pub(crate) async fn round(&self, id: &str, upstream: &str) -> Result<usize, Status> {
        let (api, id, upstream) = (self.clone(), id.to_owned(), upstream.to_owned());
        let mut retries = 0;
        let (calls, rule) = (api.clone(), id.clone());
        retries += with_retries(Code::AlreadyExists, move || {
            let (api, rule, upstream) = (calls.clone(), rule.clone(), upstream.clone());
            Box::pin(async move { api.rule_to(&rule, &upstream).await })
        })
        .await?;
        let calls = api.clone();
        retries += with_retries(Code::Ok, move || {
            let api = calls.clone();
            Box::pin(async move { api.repository_names().await })
        })
        .await?;
        retries += with_retries(Code::NotFound, move || {
            let (api, rule) = (api.clone(), id.clone());
            Box::pin(async move { api.delete_rule(&rule).await })
        })
        .await?;
        Ok(retries)
    }

    /// A password for registry clients.
    pub(crate) async fn login_token(&self) -> Result<String, tonic::Status> {
        Ok(self.login_tokens().get_login_token(pb::GetLoginTokenRequest {}).await?.into_inner().token)
    }

    /// The ids of all rules.
    pub(crate) async fn rule_names(&self) -> Result<Vec<String>, tonic::Status> {
        let listed = self.rules().list_rules(pb::ListRulesRequest { page_size: 1000, ..Default::default() }).await?;
        Ok(listed.into_inner().rules.into_iter().map(|rule| rule.name).collect())
    }

    /// The names of all repositories, page by page, without `repositories/`.
    pub(crate) async fn repository_names(&self) -> Result<Vec<String>, tonic::Status> {
        let (mut names, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = pb::ListRepositoriesRequest { page_size: 7, page_token, ..Default::default() };
            let page = self.repositories().list_repositories(request).await?.into_inner();
            let found = page.repositories.into_iter().map(|repository| repository.name);
            names.extend(found.map(|name| name.trim_start_matches("repositories/").to_owned()));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(names);
            }
        }
    }

    /// The images of a repository, page by page.
    pub(crate) async fn image_list(&self, repository: &str) -> Result<Vec<pb::Image>, tonic::Status> {
        let (mut images, mut page_token) = (Vec::new(), String::new());
        loop {
            let parent = format!("repositories/{repository}");
            let request = pb::ListImagesRequest { parent, page_size: 7, page_token, ..Default::default() };
            let page = match self.images().list_images(request).await {
                Err(status) if status.code() == tonic::Code::NotFound => return Ok(images),
                page => page?.into_inner(),
            };
            images.extend(page.images);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(images);
            }
        }
    }

    /// Waits until the index lists `tag` in `repository`; events arrive when they arrive.
    pub(crate) async fn listed(&self, repository: &str, tag: &str) -> pb::Image {
        let what = format!("`{repository}:{tag}` is listed");
        let found = Mutex::new(None);
        wait_until(LIMIT, &what, async || {
            let images = self.image_list(repository).await.unwrap_or_default();
            let image = images.into_iter().find(|image| image.tags.iter().any(|listed| listed.tag == tag));
            let is_listed = image.is_some();
            *found.lock() = image;
            is_listed
        })
        .await;
        found.into_inner().expect("it was found")
    }
}

/// What is called again.
const REPEATED: [Code; 3] = [Code::Unavailable, Code::Aborted, Code::Cancelled];

/// Calls again after UNAVAILABLE and ABORTED, as gRPC's own retries do, and answers how often it had to. A call that was
/// cut off may have been carried out: then its repetition gets `done`. CANCELLED is what this client says, where others
/// repeat by themselves, of a call that it had not sent yet when its connection was closed.
pub(crate) async fn with_retries<T>(
    done: Code,
    mut call: impl FnMut() -> BoxFuture<'static, Result<T, Status>>,
) -> Result<usize, Status> {
    let mut retries = 0;
    loop {
        match call().await {
            Err(status) if retries > 0 && status.code() == done => return Ok(retries),
            Err(status) if retries < 8 && REPEATED.contains(&status.code()) => {
                tokio::time::sleep(Duration::from_millis(50 << retries)).await;
                retries += 1;
            }
            settled => return settled.map(|_| retries),
        }
    }
}
