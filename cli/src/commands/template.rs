//! `entrepot template`.

use clap::{Args, Subcommand, ValueEnum};
use entrepot_proto::v1::{
    CreateTemplateRequest, DeleteTemplateRequest, GetTemplateRequest, ListTemplatesRequest, ResourceTag, TagMutability,
    Template, UpdateTemplateRequest,
};
use prost_types::FieldMask;

use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, time};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a template: from now on, first pulls below its prefix create repositories by it.
    #[command(after_help = "\
Examples:
  entrepot template create hub --tag-mutability immutable-with-exclusion --exclude latest --exclude 'edge*'
  entrepot template create everything --prefix ROOT --resource-tag team=platform
  entrepot rule explain hub/library/nginx:1.27      says which template a first pull would use")]
    Create {
        /// The template's id: 1 to 63 lower-case letters, digits and inner hyphens.
        #[arg(value_name = "TEMPLATE")]
        template: String,
        /// The first part of the names of the repositories that it is for, such as `hub/library`, or ROOT for those
        /// that no other template is for; the template's id unless set.
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
    /// Change a template; repositories that exist stay as they are.
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

/// What a template says.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Flags {
    /// What people should know about it.
    #[arg(long)]
    description: Option<String>,
    /// Whether the tags of the repositories may move; one that may not is never asked for again. They may unless set.
    #[arg(long, value_enum)]
    tag_mutability: Option<Mutability>,
    /// A pattern of tags that are excluded from that, such as `v*`; can be given several times, '' for none.
    #[arg(long = "exclude", value_name = "PATTERN")]
    exclusions: Vec<String>,
    /// What the repositories are marked with; can be given several times, '' for nothing.
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
    /// Writes what is given, and says which fields that are.
    fn write(self, template: &mut Template) -> Vec<&'static str> {
        let mut paths = Vec::new();
        if let Some(description) = self.description {
            template.description = description;
            paths.push("description");
        }
        if let Some(mutability) = self.tag_mutability {
            template.image_tag_mutability = TagMutability::from(mutability).into();
            paths.push("image_tag_mutability");
        }
        if !self.exclusions.is_empty() {
            let patterns = self.exclusions.into_iter().filter(|pattern| !pattern.is_empty());
            template.image_tag_mutability_exclusion_filters = patterns.collect();
            paths.push("image_tag_mutability_exclusion_filters");
        }
        if !self.resource_tags.is_empty() {
            let tags = self.resource_tags.iter().filter(|text| !text.is_empty());
            template.resource_tags = tags.map(|text| resource_tag(text)).collect();
            paths.push("resource_tags");
        }
        paths
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
                flags.write(&mut template);
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

/// The request that changes exactly what is given.
fn update(template: &str, flags: Flags, etag: Option<String>) -> Result<UpdateTemplateRequest, Error> {
    let name = names::full("templates", template);
    let mut template = Template { name, etag: etag.unwrap_or_default(), ..Default::default() };
    let paths: Vec<String> = flags.write(&mut template).into_iter().map(str::to_owned).collect();
    if paths.is_empty() {
        return Err(Error::Usage(
            "nothing to change: `entrepot template update --help` lists what can be given".to_owned(),
        ));
    }
    Ok(UpdateTemplateRequest { template: Some(template), update_mask: Some(FieldMask { paths }) })
}

/// Whether tags may move, as a person reads it.
pub(super) fn mutability(mutability: TagMutability, exclusions: &[String]) -> String {
    match mutability {
        TagMutability::Unspecified | TagMutability::Mutable => "mutable".to_owned(),
        TagMutability::Immutable => "immutable".to_owned(),
        TagMutability::MutableWithExclusion => format!("mutable but {}", exclusions.join(", ")),
        TagMutability::ImmutableWithExclusion => format!("immutable but {}", exclusions.join(", ")),
    }
}

/// Marks as a person reads them.
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
