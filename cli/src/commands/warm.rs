//! `entrepot warm`.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use entrepot_proto::v1::WarmImagesRequest;

use super::operation;
use crate::client::Session;
use crate::error::Error;
use crate::names;

pub(super) const EXAMPLES: &str = "\
Examples:
  entrepot warm hub/library/nginx:1.27 hub/library/redis:7
  entrepot warm hub/library/nginx:1.27 --platform linux/amd64 --platform linux/arm64
  entrepot warm --file images.txt
  grep '^hub/' images.txt | entrepot warm --file -

A file has one image a line; empty lines and what follows a # do not matter. The exit code is 1 if an image failed.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The images: `REPOSITORY:TAG` or `REPOSITORY@DIGEST`.
    #[arg(value_name = "IMAGE", required_unless_present = "file")]
    images: Vec<String>,
    /// The wanted platforms of images for several platforms, such as linux/amd64. Can be given several times; otherwise
    /// those that are cached already, or all if none is.
    #[arg(long = "platform", value_name = "PLATFORM")]
    platforms: Vec<String>,
    /// A file with a list of images; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Do not wait for the end; `entrepot operation` shows the progress.
    #[arg(long)]
    detach: bool,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Error> {
        let mut images = self.images;
        if let Some(file) = &self.file {
            let cannot = |error| Error::Failed(format!("cannot read {}: {error}", file.display()));
            images.extend(listed(&read(file).map_err(cannot)?).map(str::to_owned));
        }
        let images = images.iter().map(|image| names::image(image)).collect::<Result<_, _>>()?;
        let request_id = uuid::Uuid::now_v7().to_string();
        let request = WarmImagesRequest { images, platforms: self.platforms, request_id };
        let begun = session.images().warm_images(request).await?.into_inner();
        operation::follow(session, begun, self.detach).await
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

/// The images in a list.
fn listed(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_an_image_a_line_and_comments() {
        let text = "# what the cluster runs\nhub/library/nginx:1.27\n\n  hub/library/redis:7  # cache\n";
        assert_eq!(listed(text).collect::<Vec<_>>(), ["hub/library/nginx:1.27", "hub/library/redis:7"]);
    }
}
