//! A registry that misbehaves, as a program: use it as the upstream of any registry, and see what happens.
//!
//! ```sh
//! hostile-upstream --listen 127.0.0.1:5555 --seed 7 --image demo/app:v1=8MiBx3 \
//!     --fault 'GET /v2/demo/app/blobs/=cut-after:1MiB*5'
//! ```
//!
//! It publishes images made from the seed, and plays the given faults, or with `--chaos` those that the seed chooses.
//! It prints each image with its digests as a line of JSON. `GET /_requests` returns how often each path was requested
//! and how many bytes were sent; so does the last line of output, when the program is told to stop.
//!
//! Redirects lead to two more origins. The `elsewhere` origin has the same content and expects no `Authorization`: a
//! request with one is refused, and counted. The `private` origin is empty, and only shows who calls it.

mod args;
mod fault;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use entrepot_test_support::{Auth, FakeUpstream, images};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use args::{Args, ImageSpec};
use fault::Planned;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let (elsewhere, private) = (origin(args.elsewhere).await, origin(args.private).await);
    elsewhere.set_auth(Auth::Unwanted);
    let upstream = origin(args.listen).await;
    let urls = [&upstream, &elsewhere, &private].map(|origin| origin.url());
    say(&json!({ "url": urls[0], "elsewhere": urls[1], "private": urls[2] }))?;

    upstream.set_token_lifetime(args.token_lifetime());
    upstream.set_auth(args.auth.clone());
    if let Some((requests, window)) = args.limit {
        upstream.set_limit(requests, window);
    }
    for (seed, image) in (args.seed..).step_by(1000).zip(&args.images) {
        say(&publish(&upstream, seed, image))?;
    }
    elsewhere.publish_all_of(&upstream);
    for planned in &args.faults {
        let Planned { pattern, word, times } = planned;
        upstream.script_times(pattern, word.fault(&elsewhere.url(), &private.url()), *times);
    }
    if let Some(percent) = args.chaos {
        upstream.chaos(args.seed, percent);
    }

    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for SIGINT")?,
    }
    say(&json!({ "requests": upstream.report(), "elsewhere": elsewhere.report(), "private": private.report() }))
}

async fn origin(address: SocketAddr) -> Arc<FakeUpstream> {
    Arc::new(FakeUpstream::start_at(address).await)
}

/// Publishes an image, or an index of images, and returns its description.
fn publish(upstream: &FakeUpstream, seed: u64, spec: &ImageSpec) -> Value {
    let ImageSpec { repository, tag, layer_bytes, layers, platforms } = spec;
    let reference = format!("{repository}:{tag}");
    let platforms: Vec<&str> = platforms.iter().map(String::as_str).collect();
    let layers_of = |seed: u64| -> Vec<Vec<u8>> {
        (seed..).take(*layers).map(|seed| images::random_bytes(seed, *layer_bytes)).collect()
    };
    let tell = |image: &images::Image, layers: &[Vec<u8>]| {
        let layers =
            image.layers.iter().zip(layers).map(|(digest, bytes)| json!({ "digest": digest, "size": bytes.len() }));
        json!({ "manifest": image.manifest, "config": image.config, "layers": layers.collect::<Vec<_>>() })
    };
    if platforms.is_empty() {
        let layers = layers_of(seed);
        let mut told = tell(&upstream.publish_image(repository, tag, &layers), &layers);
        told["image"] = reference.into();
        return told;
    }
    let (mut children, mut told) = (Vec::new(), Vec::new());
    for (seed, platform) in (seed..).step_by(*layers).zip(&platforms) {
        let layers = layers_of(seed);
        let child = upstream.publish_image_for(repository, None, platform, &layers);
        told.push(tell(&child, &layers));
        children.push(child);
    }
    let index = images::index(&platforms, &children);
    let digest = upstream.publish_manifest(repository, Some(tag), images::OCI_INDEX, index);
    json!({ "image": reference, "index": digest, "children": told })
}

/// Prints a line, at once even in a pipe.
fn say(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("nobody takes the output")
}
