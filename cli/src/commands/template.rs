//! `entrepot template`.

use clap::{Args, Subcommand, ValueEnum};
use entrepot_proto::v1::{
    CreateTemplateRequest, DeleteTemplateRequest, GetTemplateRequest, ListTemplatesRequest, ResourceTag, TagMutability,
    Template, UpdateTemplateRequest,
};

use super::mask::Mask;
use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, time};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a template: from now on, first pulls below its prefix create repositories with its settings.
    #[command(after_help = "\
Examples:
  entrepot template create hub --tag-mutability immutable-with-exclusion --exclude latest --exclude 'edge*'
  entrepot template create everything --prefix ROOT --resource-tag team=platform
  entrepot rule explain hub/library/nginx:1.27      says which template a first pull would use")]
    Create {
        /// The template's id: 1 to 63 lower-case letters, digits and inner hyphens.
        #[arg(value_name = "TEMPLATE")]
        template: String,
        /// The beginning of the names of the repositories it is for, such as `hub/library`, or ROOT for those that no
        /// other template covers; the template's id unless set.
        #[arg(long)]
        prefix: Option<String>,
        #[command(flatten)]
        flags: Flags,
    },
    /// Show a template.
    Get {
        #[arg(value_name = "TEMPLATE")]
        template: String,
    },
    /// List all templates.
    List,
    /// Change a template; existing repositories stay as they are.
    #[command(after_help = "\
Examples:
  entrepot template update hub --tag-mutability mutable --exclude ''
  entrepot template update hub --resource-tag team=web --resource-tag stage=test")]
    Update {
        #[arg(value_name = "TEMPLATE")]
        template: String,
        #[command(flatten)]
        flags: Flags,
        /// Only if the template still has this etag.
        #[arg(long)]
        etag: Option<String>,
    },
    /// Delete a template; the repositories that it created stay as they are.
    Delete {
        #[arg(value_name = "TEMPLATE")]
        template: String,
        /// Only if the template still has this etag.
        #[arg(long)]
        etag: Option<String>,
    },
}

/// The settings of a template.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Flags {
    /// A description for people.
    #[arg(long)]
    description: Option<String>,
    /// Whether the tags of the repositories may move. The upstream is not asked again about a tag that may not. They
    /// may unless set.
    #[arg(long, value_enum)]
    tag_mutability: Option<Mutability>,
    /// A pattern of tags that are exempt from that, such as `v*`; can be given several times, '' for none.
    #[arg(long = "exclude", value_name = "PATTERN")]
    exclusions: Vec<String>,
    /// A mark of the repositories; can be given several times, '' for none.
    #[arg(long = "resource-tag", value_name = "KEY=VALUE")]
    resource_tags: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mutability {
    Mutable,
    Immutable,
    MutableWithExclusion,
    ImmutableWithExclusion,
}

impl Flags {
    /// Writes the given options.
    fn write(self, template: &mut Template, mask: &mut Mask) {
        mask.set("description", &mut template.description, self.description);
        let mutability = self.tag_mutability.map(|mutability| TagMutability::from(mutability).into());
        mask.set("image_tag_mutability", &mut template.image_tag_mutability, mutability);
        let exclusions = &mut template.image_tag_mutability_exclusion_filters;
        mask.set_list("image_tag_mutability_exclusion_filters", exclusions, self.exclusions);
        let tags = self.resource_tags.iter().filter(|text| !text.is_empty()).map(|text| resource_tag(text)).collect();
        mask.set("resource_tags", &mut template.resource_tags, (!self.resource_tags.is_empty()).then_some(tags));
    }
}

/// `KEY=VALUE`; without `=`, the value is empty.
fn resource_tag(text: &str) -> ResourceTag {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    ResourceTag { key: key.to_owned(), value: value.to_owned() }
}

impl From<Mutability> for TagMutability {
    fn from(mutability: Mutability) -> Self {
        match mutability {
            Mutability::Mutable => Self::Mutable,
            Mutability::Immutable => Self::Immutable,
            Mutability::MutableWithExclusion => Self::MutableWithExclusion,
            Mutability::ImmutableWithExclusion => Self::ImmutableWithExclusion,
        }
    }
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let (mut templates, output) = (session.templates(), session.output);
        match self {
            Self::Create { template, prefix, flags } => {
                let template_id = names::short("templates", &template).to_owned();
                let mut template = Template { prefix: prefix.unwrap_or_default(), ..Default::default() };
                flags.write(&mut template, &mut Mask::default());
                let request = CreateTemplateRequest { template_id, template: Some(template), ..Default::default() };
                output.one(&templates.create_template(request).await?.into_inner())?;
            }
            Self::Get { template } => {
                let request = GetTemplateRequest { name: names::full("templates", &template) };
                output.one(&templates.get_template(request).await?.into_inner())?;
            }
            Self::List => output.list(&list(session).await?)?,
            Self::Update { template, flags, etag } => {
                let request = update(&template, flags, etag)?;
                output.one(&templates.update_template(request).await?.into_inner())?;
            }
            Self::Delete { template, etag } => {
                let name = names::full("templates", &template);
                let request = DeleteTemplateRequest { name, etag: etag.unwrap_or_default() };
                let deleted = templates.delete_template(request).await?.into_inner();
                output.deleted(&deleted, &deleted.name)?;
            }
        }
        Ok(())
    }
}

async fn list(session: &Session) -> Result<Vec<Template>, Error> {
    let mut templates = session.templates();
    let page = async |page_token| {
        let request = ListTemplatesRequest { page_size: PAGE_SIZE, page_token };
        let answer = templates.list_templates(request).await?.into_inner();
        Ok((answer.templates, answer.next_page_token))
    };
    Ok(all_pages(page).await?)
}

/// The request that changes exactly the given fields.
fn update(template: &str, flags: Flags, etag: Option<String>) -> Result<UpdateTemplateRequest, Error> {
    let name = names::full("templates", template);
    let mut template = Template { name, etag: etag.unwrap_or_default(), ..Default::default() };
    let mut mask = Mask::default();
    flags.write(&mut template, &mut mask);
    Ok(UpdateTemplateRequest { template: Some(template), update_mask: mask.finish("template")? })
}

/// Whether tags may move, as text for people.
pub(super) fn mutability(mutability: TagMutability, exclusions: &[String]) -> String {
    match mutability {
        TagMutability::Unspecified | TagMutability::Mutable => "mutable".to_owned(),
        TagMutability::Immutable => "immutable".to_owned(),
        TagMutability::MutableWithExclusion => format!("mutable but {}", exclusions.join(", ")),
        TagMutability::ImmutableWithExclusion => format!("immutable but {}", exclusions.join(", ")),
    }
}

/// Marks as text for people.
pub(super) fn marks(tags: &[ResourceTag]) -> String {
    tags.iter().map(|tag| format!("{}={}", tag.key, tag.value)).collect::<Vec<_>>().join(", ")
}

impl Shown for Template {
    const MESSAGE: &'static str = "entrepot.v1.Template";

    fn details(&self) -> Cells {
        let mut cells = self.row();
        cells.extend([
            ("UID", self.uid.clone()),
            ("CREATED", time(self.create_time.as_ref())),
            ("UPDATED", time(self.update_time.as_ref())),
            ("ETAG", self.etag.clone()),
        ]);
        cells
    }
}

impl Listed for Template {
    const ITEMS: &'static str = "templates";

    fn row(&self) -> Cells {
        vec![
            ("TEMPLATE", names::short("templates", &self.name).to_owned()),
            ("PREFIX", self.prefix.clone()),
            ("TAGS", mutability(self.image_tag_mutability(), &self.image_tag_mutability_exclusion_filters)),
            ("RESOURCE TAGS", marks(&self.resource_tags)),
            ("DESCRIPTION", self.description.clone()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_masks_what_is_given_and_an_empty_text_empties_a_list() {
        let flags = Flags {
            tag_mutability: Some(Mutability::Mutable),
            exclusions: vec![String::new()],
            resource_tags: vec!["team=a=b".to_owned(), "plain".to_owned()],
            ..Flags::default()
        };
        let request = update("hub", flags, None).unwrap();
        let paths = request.update_mask.unwrap().paths;
        assert_eq!(paths, ["image_tag_mutability", "image_tag_mutability_exclusion_filters", "resource_tags"]);
        let template = request.template.unwrap();
        assert_eq!(
            (template.name.as_str(), marks(&template.resource_tags).as_str()),
            ("templates/hub", "team=a=b, plain=")
        );
        assert!(template.image_tag_mutability_exclusion_filters.is_empty());
        assert!(update("hub", Flags::default(), None).is_err());
    }
}
