//! A registry client: it logs in as docker does, pulls whole images, and believes no hash that it has not computed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use entrepot_test_support::images;
use http::{HeaderMap, Method, StatusCode, header};

/// How long one request may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(30);

/// A client of one registry. Clones share its connections.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: Arc<str>,
    credential: Credential,
}

/// What a client shows.
#[derive(Clone)]
pub(crate) enum Credential {
    /// Nothing.
    Nobody,
    /// A name and a password.
    Password(String, String),
    /// A bearer token.
    Bearer(String),
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

/// An image that was pulled whole; every hash was right.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// The digest of its manifest.
    pub(crate) manifest: String,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Answer {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The code of the first OCI error.
    pub(crate) fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(500)]).into_owned()
    }
}

impl Client {
    /// A client of the registry at `url` with connections of its own.
    pub(crate) fn of(url: &str, credential: Credential) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().expect("a client can be made");
        Self { http, url: url.into(), credential }
    }

    /// A client that reads for as long as something comes.
    pub(crate) fn patient(url: &str, credential: Credential) -> Self {
        // It gives up idle connections before its peers do.
        let http = reqwest::Client::builder().no_proxy().read_timeout(LIMIT).pool_idle_timeout(IDLE);
        let http = http.build().expect("a client can be made");
        Self { http, url: url.into(), credential }
    }

    /// The same with another credential.
    pub(crate) fn with(&self, credential: Credential) -> Self {
        Self { credential, ..self.clone() }
    }

    /// What it shows.
    pub(crate) fn credential(&self) -> &Credential {
        &self.credential
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        let request = request.header(header::ACCEPT, images::OCI_MANIFEST).header(header::ACCEPT, images::OCI_INDEX);
        match &self.credential {
            Credential::Nobody => request,
            Credential::Password(name, password) => request.basic_auth(name, Some(password)),
            Credential::Bearer(token) => request.bearer_auth(token),
        }
    }

    /// The whole answer to a GET.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        send(self.request(Method::GET, path)).await.with_context(|| format!("GET {path}"))
    }

    /// Asks nobody's challenge what token `repository` needs, and buys it with the password.
    pub(crate) async fn log_in(&self, repository: &str) -> Result<Self> {
        let challenge = self.with(Credential::Nobody).get("/v2/").await?;
        ensure!(challenge.status == StatusCode::UNAUTHORIZED, "no challenge: {}", challenge.status);
        let said = challenge.header("www-authenticate").context("a challenge says how to log in")?;
        let field = |name: &str| said.split_once(&format!("{name}=\""))?.1.split('"').next();
        let realm = field("realm").context("a challenge has a realm")?;
        let service = field("service").context("a challenge has a service")?;
        let url = format!("{realm}?service={service}&scope=repository:{repository}:pull");
        let Credential::Password(name, password) = &self.credential else { bail!("only a password buys a token") };
        let answer = send(self.http.get(url).basic_auth(name, Some(password))).await?;
        ensure!(answer.status == StatusCode::OK, "no token: {} {}", answer.status, answer.text());
        let token: serde_json::Value = serde_json::from_slice(&answer.bytes)?;
        let token = token["token"].as_str().context("the answer has a token")?;
        Ok(self.with(Credential::Bearer(token.to_owned())))
    }

    /// Pulls an image whole: its manifest, then all its blobs.
    ///
    /// # Errors
    /// If any answer is not 200, or any content is not what its digest says.
    pub(crate) async fn pull(&self, repository: &str, reference: &str) -> Result<Pulled> {
        let begun = Instant::now();
        let manifest = self.content(&format!("/v2/{repository}/manifests/{reference}")).await?;
        let digest = images::sha256(&manifest);
        if reference.starts_with("sha256:") {
            ensure!(digest == reference, "the manifest {reference} is {digest}");
        }
        let parsed: serde_json::Value = serde_json::from_slice(&manifest)?;
        let layers = parsed["layers"].as_array().into_iter().flatten();
        let blobs = std::iter::once(&parsed["config"]).chain(layers).map(|blob| blob["digest"].as_str());
        let blobs: Option<Vec<String>> = blobs.map(|digest| Some(digest?.to_owned())).collect();
        for wanted in blobs.context("descriptors have digests")? {
            let bytes = self.content(&format!("/v2/{repository}/blobs/{wanted}")).await?;
            ensure!(images::sha256(&bytes) == wanted, "the blob {wanted} is {}", images::sha256(&bytes));
        }
        Ok(Pulled { manifest: digest, took: begun.elapsed() })
    }

    /// The body of an answer that must be 200 and hold what its `Docker-Content-Digest` says.
    async fn content(&self, path: &str) -> Result<Bytes> {
        let answer = self.get(path).await?;
        ensure!(answer.status == StatusCode::OK, "GET {path}: {} {}", answer.status, answer.text());
        let said = answer.header("docker-content-digest").context("content has a digest")?;
        ensure!(images::sha256(&answer.bytes) == said, "GET {path}: the body is not {said}");
        Ok(answer.bytes)
    }
}

/// The whole answer to a request.
pub(crate) async fn send(request: reqwest::RequestBuilder) -> Result<Answer> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer { status, headers, bytes: response.bytes().await? })
}
