//! What a cache of other registries must get right besides its main job. The numbers are those of the requirements.

mod content;
mod forms;
mod questions;
mod references;

use anyhow::Result;
use entrepot_proto::v1 as pb;
use entrepot_test_support::FakeUpstream;
use http::Method;

use crate::registry::{Answer, Registry, send};

/// An upstream, and a registry with a manual clock whose rule `demo` leads to it.
async fn ground() -> Result<(FakeUpstream, Registry)> {
    ground_with(pb::Rule::default()).await
}

/// The same with a more detailed rule.
async fn ground_with(rule: pb::Rule) -> Result<(FakeUpstream, Registry)> {
    let upstream = FakeUpstream::start().await;
    let registry = Registry::start_with_manual_clock().await?;
    registry.upstream("demo", &upstream).await?;
    let rule = pb::Rule { upstream: "upstreams/demo".to_owned(), ..rule };
    let request = pb::CreateRuleRequest { rule_id: "demo".to_owned(), rule: Some(rule), request_id: String::new() };
    registry.rules().create_rule(request).await?;
    Ok((upstream, registry))
}

async fn head(registry: &Registry, path: &str) -> Result<Answer> {
    send(registry.request(Method::HEAD, path)).await
}

/// How often the upstream got requests with `method` for paths that end with `path`.
fn asked(upstream: &FakeUpstream, method: &str, path: &str) -> usize {
    upstream.log().iter().filter(|entry| entry.method == method && entry.path.ends_with(path)).count()
}
