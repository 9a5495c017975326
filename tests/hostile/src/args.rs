//! The command line.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;
use entrepot_test_support::Auth;

use crate::fault::{self, Planned};

/// A registry that misbehaves.
#[derive(Debug, Parser)]
#[command(name = "hostile-upstream", max_term_width = 100, after_help = fault::HELP)]
pub(crate) struct Args {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:5555")]
    pub(crate) listen: SocketAddr,

    /// The address of the origin to which redirects lead.
    #[arg(long, default_value = "127.0.0.2:0")]
    pub(crate) elsewhere: SocketAddr,

    /// The address of the origin to which nobody should be led.
    #[arg(long, default_value = "127.0.0.3:0")]
    pub(crate) private: SocketAddr,

    /// The seed for the bytes of the images, and for --chaos.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Publish an image with N layers, such as `demo/app:v1=8MiBx3`; with `@linux/amd64,linux/arm64` at the end, an
    /// index with an image for each platform.
    #[arg(long = "image", value_name = "NAME:TAG=SIZExN", value_parser = image)]
    pub(crate) images: Vec<ImageSpec>,

    /// Play a fault in requests whose `METHOD PATH` contains PATTERN; `*TIMES` at the end limits how often.
    #[arg(long = "fault", value_name = "PATTERN=FAULT[:ARGS][*TIMES]", value_parser = fault::planned)]
    pub(crate) faults: Vec<Planned>,

    /// Play faults in this percentage of all requests.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) chaos: Option<u8>,

    /// Who may pull: `open`, `anonymous` (with a token for everybody), `token:USER:PASSWORD` or `basic:USER:PASSWORD`.
    #[arg(long, default_value = "open", value_parser = auth)]
    pub(crate) auth: Auth,

    /// Limit how many manifests may be fetched in a number of seconds, and tell what is left, like Docker Hub: HEAD is
    /// free.
    #[arg(long, value_name = "REQUESTS/SECONDS", value_parser = limit)]
    pub(crate) limit: Option<(u64, Duration)>,

    /// The lifetime of tokens in seconds, as told to clients.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    token_lifetime: u64,
}

impl Args {
    pub(crate) fn token_lifetime(&self) -> Duration {
        Duration::from_secs(self.token_lifetime)
    }
}

/// An image to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageSpec {
    pub(crate) repository: String,
    pub(crate) tag: String,
    pub(crate) layer_bytes: usize,
    pub(crate) layers: usize,
    /// The platforms of an index; none for a plain image.
    pub(crate) platforms: Vec<String>,
}

fn image(text: &str) -> Result<ImageSpec> {
    let (reference, content) = text.split_once('=').context("want NAME:TAG=SIZExN")?;
    let (repository, tag) = reference.rsplit_once(':').context("the image needs a tag, as in demo/app:v1")?;
    let (content, platforms) = content.split_once('@').unwrap_or((content, ""));
    let (size, layers) = content.rsplit_once('x').context("want SIZExN, as in 8MiBx3")?;
    let layers = layers.parse().context("N is how many layers there are")?;
    ensure!((1..=100).contains(&layers), "an image has 1 to 100 layers");
    Ok(ImageSpec {
        repository: repository.to_owned(),
        tag: tag.to_owned(),
        layer_bytes: usize::try_from(bytes(size)?)?,
        layers,
        platforms: platforms.split(',').filter(|platform| !platform.is_empty()).map(str::to_owned).collect(),
    })
}

fn limit(text: &str) -> Result<(u64, Duration)> {
    let (requests, seconds) = text.split_once('/').context("want REQUESTS/SECONDS, as in 100/21600")?;
    let seconds = seconds.parse().context("the seconds are a number")?;
    ensure!(seconds > 0, "a window takes a second at least");
    Ok((requests.parse().context("the requests are a number")?, Duration::from_secs(seconds)))
}

fn auth(text: &str) -> Result<Auth> {
    let parts: Vec<&str> = text.splitn(3, ':').collect();
    match parts[..] {
        ["open"] => Ok(Auth::Open),
        ["anonymous"] => Ok(Auth::AnonymousToken),
        ["token", user, password] => Ok(Auth::Token(user.to_owned(), password.to_owned())),
        ["basic", user, password] => Ok(Auth::Basic(user.to_owned(), password.to_owned())),
        _ => Err(anyhow!("want open, anonymous, token:USER:PASSWORD or basic:USER:PASSWORD")),
    }
}

/// A number of bytes, such as `1000`, `64KiB` or `8MiB`.
pub(crate) fn bytes(text: &str) -> Result<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit: u64 = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(anyhow!("`{text}` is no size; write 1000, 64KiB or 8MiB")),
    };
    let number: u64 = number.parse().with_context(|| format!("`{text}` is no size"))?;
    number.checked_mul(unit).with_context(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_names_with_the_sizes_of_their_layers() {
        let plain = image("demo/app:v1=8MiBx3").unwrap();
        assert_eq!((plain.repository.as_str(), plain.tag.as_str()), ("demo/app", "v1"));
        assert_eq!((plain.layer_bytes, plain.layers, plain.platforms.len()), (8 << 20, 3, 0));
        assert_eq!(image("a:b=10x1@linux/amd64,linux/arm64/v8").unwrap().platforms, ["linux/amd64", "linux/arm64/v8"]);
        for wrong in ["demo/app", "demo/app=1x1", "demo/app:v1=1", "a:b=1MBx1", "a:b=1x0", "a:b=99999999999GiBx1"] {
            assert!(image(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_limit_is_so_many_requests_in_so_many_seconds() {
        assert_eq!(limit("100/21600").unwrap(), (100, Duration::from_secs(21_600)));
        for wrong in ["100", "100/0", "x/1", "1/x"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_arguments_are_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
