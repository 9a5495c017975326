//! `entrepot image`.

use clap::Subcommand;
use entrepot_proto::v1::{DeleteImageRequest, GetImageRequest, Image, ListImagesRequest};

use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, note_lagging, size, time, timed};

/// How many platforms of each image are shown in a list.
const LISTED_PLATFORMS: usize = 3;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show an image.
    #[command(after_help = "Example:\n  entrepot image get demo/team/app:v1")]
    Get {
        /// `REPOSITORY:TAG` or `REPOSITORY@DIGEST`.
        #[arg(value_name = "IMAGE")]
        image: String,
    },
    /// List a repository's images, the most recently cached first.
    #[command(after_help = "\
Examples:
  entrepot image list demo/team/app
  entrepot image list demo/team/app --filter 'tag = \"v1\"' --output json")]
    List {
        /// The repository's name, such as `demo/team/app`.
        #[arg(value_name = "REPOSITORY")]
        repository: String,
        /// Select images: terms joined by AND, each `tag = \"v1\"` or `tagged = true`.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Delete an image with all its tags, or only a tag; a later pull brings it back.
    #[command(after_help = "\
Examples:
  entrepot image delete demo/team/app:v1             the tag only
  entrepot image delete demo/team/app@sha256:44136…  the image with all its tags")]
    Delete {
        /// `REPOSITORY:TAG` or `REPOSITORY@DIGEST`.
        #[arg(value_name = "IMAGE")]
        image: String,
    },
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let (mut images, output) = (session.images(), session.output);
        match self {
            Self::Get { image } => {
                let request = GetImageRequest { name: names::image(&image)? };
                output.one(&images.get_image(request).await?.into_inner())?;
            }
            Self::List { repository, filter } => {
                let (parent, filter) = (names::full("repositories", &repository), filter.unwrap_or_default());
                let page = async |page_token| {
                    let (parent, filter) = (parent.clone(), filter.clone());
                    let request = ListImagesRequest { parent, page_size: PAGE_SIZE, page_token, filter };
                    let answer = images.list_images(request).await?.into_inner();
                    Ok((answer.images, answer.next_page_token))
                };
                output.list(&all_pages(page).await?)?;
            }
            Self::Delete { image } => {
                let name = names::image(&image)?;
                let deleted = images.delete_image(DeleteImageRequest { name: name.clone() }).await?.into_inner();
                output.deleted(&deleted, &name)?;
                note_lagging(deleted.lagging_node_count);
            }
        }
        Ok(())
    }
}

impl Shown for Image {
    const MESSAGE: &'static str = "entrepot.v1.Image";

    fn details(&self) -> Cells {
        let tags: Vec<_> = self.tags.iter().map(|tag| timed(&tag.tag, tag.validate_time.as_ref())).collect();
        vec![
            ("DIGEST", self.digest.clone()),
            ("TAGS", tags.join("\n")),
            ("MEDIA TYPE", self.media_type.clone()),
            ("PLATFORMS", self.platforms.join("\n")),
            ("MANIFEST SIZE", size(self.manifest_size_bytes)),
            ("CONTENT SIZE", size(self.content_size_bytes)),
            ("CACHED", time(self.cache_time.as_ref())),
            ("LAST VALIDATED", time(self.last_validate_time.as_ref())),
            ("LAST PULL", time(self.last_pull_time.as_ref())),
        ]
    }
}

impl Listed for Image {
    const ITEMS: &'static str = "images";

    fn row(&self) -> Cells {
        let tags: Vec<_> = self.tags.iter().map(|tag| tag.tag.as_str()).collect();
        let mut platforms = self.platforms[..self.platforms.len().min(LISTED_PLATFORMS)].join(", ");
        if self.platforms.len() > LISTED_PLATFORMS {
            platforms = format!("{platforms}, +{}", self.platforms.len() - LISTED_PLATFORMS);
        }
        vec![
            ("DIGEST", self.digest.clone()),
            ("TAGS", tags.join(", ")),
            ("PLATFORMS", platforms),
            ("SIZE", size(self.content_size_bytes)),
            ("CACHED", time(self.cache_time.as_ref())),
            ("LAST PULL", time(self.last_pull_time.as_ref())),
        ]
    }
}
