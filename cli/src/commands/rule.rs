//! `entrepot rule`.

mod freshness;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use entrepot_proto::v1::validation_step::{Kind, State};
use entrepot_proto::v1::{
    CreateRuleRequest, DeleteRuleRequest, ExplainRuleRequest, ExplainRuleResponse, GetRuleRequest, ListRulesRequest,
    Rule, UpdateRuleRequest, ValidateRuleRequest, ValidateRuleResponse,
};

use self::freshness::Flags;
use super::mask::Mask;
use super::template;
use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, time};

/// A validation calls the upstream, which may take long to refuse.
const VALIDATE_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a rule: from now on, pulls below its prefix are filled from its upstream.
    #[command(after_help = "\
Examples:
  entrepot rule create hub --upstream docker-hub
      docker pull 127.0.0.1:5000/hub/library/alpine      asks for library/alpine
  entrepot rule create team --prefix mirrors/team --upstream quay --upstream-prefix prometheus
      docker pull 127.0.0.1:5000/mirrors/team/busybox    asks for prometheus/busybox
  entrepot rule create ci --upstream quay --window 1h --mode background --immutable-tag 'v*' --tag-window latest=5m")]
    Create {
        /// The rule's id: 1 to 63 lower-case letters, digits and inner hyphens.
        #[arg(value_name = "RULE")]
        rule: String,
        /// The upstream to pull from.
        #[arg(long)]
        upstream: String,
        /// The beginning of the names that the rule covers, such as `mirrors/quay`, or ROOT for all names that no other
        /// rule covers; the rule's id unless set.
        #[arg(long)]
        prefix: Option<String>,
        /// The prefix at the upstream, in front of the rest of the name; none unless set.
        #[arg(long)]
        upstream_prefix: Option<String>,
        #[command(flatten)]
        freshness: Box<Flags>,
    },
    /// Show a rule.
    Get {
        #[arg(value_name = "RULE")]
        rule: String,
    },
    /// List all rules.
    List,
    /// Change a rule; content that was cached under the old settings is validated again.
    #[command(after_help = "\
Examples:
  entrepot rule update demo --upstream other
  entrepot rule update demo --window 12h --max-stale 7d --when-deleted drop")]
    Update {
        #[arg(value_name = "RULE")]
        rule: String,
        /// Pull from this upstream.
        #[arg(long)]
        upstream: Option<String>,
        /// Cover names that begin with this.
        #[arg(long)]
        prefix: Option<String>,
        /// The prefix at the upstream, in front of the rest of the name; '' for none.
        #[arg(long)]
        upstream_prefix: Option<String>,
        #[command(flatten)]
        freshness: Box<Flags>,
        /// Only if the rule still has this etag.
        #[arg(long)]
        etag: Option<String>,
    },
    /// Delete a rule; its cached content is still served.
    Delete {
        #[arg(value_name = "RULE")]
        rule: String,
        /// Only if the rule still has this etag.
        #[arg(long)]
        etag: Option<String>,
    },
    /// Test a rule's upstream step by step; exit 1 if a step fails.
    #[command(after_help = "Example:\n  entrepot rule validate hub --image hub/library/alpine:latest")]
    Validate {
        #[arg(value_name = "RULE")]
        rule: String,
        /// An image below the rule's prefix to request; unless set, one that the upstream is known to have.
        #[arg(long)]
        image: Option<String>,
    },
    /// Explain which rule covers an image name, what a pull would fetch from where, and which repository it would
    /// create with which settings. Fetches and creates nothing.
    #[command(after_help = "Example:\n  entrepot rule explain demo/team/app:v1")]
    Explain {
        /// The image's name without the registry's host.
        #[arg(value_name = "IMAGE")]
        image: String,
    },
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Error> {
        let (mut rules, output) = (session.rules(), session.output);
        match self {
            Self::Create { rule, upstream, prefix, upstream_prefix, freshness } => {
                let rule_id = names::short("rules", &rule).to_owned();
                let mut rule = Rule {
                    upstream: names::full("upstreams", &upstream),
                    prefix: prefix.unwrap_or_default(),
                    upstream_prefix: upstream_prefix.unwrap_or_default(),
                    ..Default::default()
                };
                freshness.write(&mut rule, &mut Mask::default());
                let request = CreateRuleRequest { rule_id, rule: Some(rule), ..Default::default() };
                output.one(&rules.create_rule(request).await?.into_inner())?;
            }
            Self::Get { rule } => {
                let request = GetRuleRequest { name: names::full("rules", &rule) };
                output.one(&rules.get_rule(request).await?.into_inner())?;
            }
            Self::List => output.list(&list(session).await?)?,
            Self::Update { rule, upstream, prefix, upstream_prefix, freshness, etag } => {
                let request = update(&rule, upstream, prefix, upstream_prefix, *freshness, etag)?;
                output.one(&rules.update_rule(request).await?.into_inner())?;
            }
            Self::Delete { rule, etag } => {
                let request = DeleteRuleRequest { name: names::full("rules", &rule), etag: etag.unwrap_or_default() };
                let deleted = rules.delete_rule(request).await?.into_inner();
                output.deleted(&deleted, &deleted.name)?;
            }
            Self::Validate { rule, image } => return validate(session, &rule, image).await,
            Self::Explain { image } => {
                let answer = rules.explain_rule(ExplainRuleRequest { image }).await?.into_inner();
                output.one(&answer)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(session: &Session) -> Result<Vec<Rule>, Error> {
    let mut rules = session.rules();
    let page = async |page_token| {
        let answer = rules.list_rules(ListRulesRequest { page_size: PAGE_SIZE, page_token }).await?.into_inner();
        Ok((answer.rules, answer.next_page_token))
    };
    Ok(all_pages(page).await?)
}

/// The request that changes exactly the given fields.
fn update(
    rule: &str,
    upstream: Option<String>,
    prefix: Option<String>,
    upstream_prefix: Option<String>,
    freshness: Flags,
    etag: Option<String>,
) -> Result<UpdateRuleRequest, Error> {
    let mut rule = Rule { name: names::full("rules", rule), etag: etag.unwrap_or_default(), ..Default::default() };
    let mut mask = Mask::default();
    mask.set("upstream", &mut rule.upstream, upstream.map(|upstream| names::full("upstreams", &upstream)));
    mask.set("prefix", &mut rule.prefix, prefix);
    mask.set("upstream_prefix", &mut rule.upstream_prefix, upstream_prefix);
    freshness.write(&mut rule, &mut mask);
    Ok(UpdateRuleRequest { rule: Some(rule), update_mask: mask.finish("rule")? })
}

async fn validate(session: &Session, rule: &str, image: Option<String>) -> Result<ExitCode, Error> {
    let request = ValidateRuleRequest { name: names::full("rules", rule), image: image.unwrap_or_default() };
    let mut request = tonic::Request::new(request);
    request.set_timeout(VALIDATE_LIMIT);
    let answer = session.rules().validate_rule(request).await?.into_inner();
    session.output.show(&answer, |out| steps(out, &answer))?;
    Ok(if answer.valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn steps(out: &mut dyn Write, answer: &ValidateRuleResponse) -> io::Result<()> {
    for step in &answer.steps {
        let mark = match step.state() {
            State::Passed => '✓',
            State::Failed => '✗',
            State::Skipped | State::Unspecified => '-',
        };
        let kind = match step.kind() {
            Kind::Name => "name",
            Kind::Tcp => "TCP",
            Kind::Tls => "TLS",
            Kind::Token => "token",
            Kind::Manifest => "manifest",
            Kind::Unspecified => "",
        };
        writeln!(out, "{mark} {kind:<8}  {}", step.message)?;
    }
    let is_whole = answer.steps.iter().any(|step| step.kind() == Kind::Manifest && step.state() == State::Passed);
    writeln!(
        out,
        "{}",
        match (answer.valid, is_whole) {
            (true, true) => "the rule works",
            (true, false) => "the rule works as far as tried; name an image to try the rest",
            (false, _) => "the rule does not work",
        }
    )
}

impl Shown for Rule {
    const MESSAGE: &'static str = "entrepot.v1.Rule";

    fn details(&self) -> Cells {
        let mut cells = self.row();
        cells.extend(freshness::details(self));
        cells.extend([
            ("UID", self.uid.clone()),
            ("CREATED", time(self.create_time.as_ref())),
            ("UPDATED", time(self.update_time.as_ref())),
            ("ETAG", self.etag.clone()),
        ]);
        cells
    }
}

impl Listed for Rule {
    const ITEMS: &'static str = "rules";

    fn row(&self) -> Cells {
        let mut cells = vec![
            ("RULE", names::short("rules", &self.name).to_owned()),
            ("PREFIX", self.prefix.clone()),
            ("UPSTREAM", names::short("upstreams", &self.upstream).to_owned()),
            ("UPSTREAM PREFIX", self.upstream_prefix.clone()),
        ];
        cells.extend(freshness::row(self));
        cells
    }
}

impl Shown for ValidateRuleResponse {
    const MESSAGE: &'static str = "entrepot.v1.ValidateRuleResponse";

    fn details(&self) -> Cells {
        vec![("VALID", self.valid.to_string())]
    }
}

impl Shown for ExplainRuleResponse {
    const MESSAGE: &'static str = "entrepot.v1.ExplainRuleResponse";

    fn details(&self) -> Cells {
        let repository = names::short("repositories", &self.repository);
        let repository = match (repository, self.repository_exists) {
            ("", _) => String::new(),
            (name, true) => format!("{name} (exists)"),
            (name, false) => format!("{name} (would be created)"),
        };
        let created = self.created.as_ref().map(|repository| {
            let exclusions = &repository.image_tag_mutability_exclusion_filters;
            let tags = template::mutability(repository.image_tag_mutability(), exclusions);
            let marks = template::marks(&repository.resource_tags);
            if marks.is_empty() { format!("{tags} tags") } else { format!("{tags} tags; {marks}") }
        });
        let created = created.unwrap_or_default();
        let rule = self.rule.as_ref().map(|rule| names::short("rules", &rule.name)).unwrap_or_default();
        vec![
            ("COVERED", if self.covered { "yes" } else { "no" }.to_owned()),
            ("RULE", rule.to_owned()),
            ("REPOSITORY", repository),
            ("TEMPLATE", names::short("templates", &self.template).to_owned()),
            ("WOULD BE CREATED WITH", created),
            ("UPSTREAM", names::short("upstreams", &self.upstream).to_owned()),
            ("UPSTREAM REPOSITORY", self.upstream_repository.clone()),
            ("MANIFEST", self.manifest_url.clone()),
            ("WINDOW", freshness::shown(self.window.as_ref())),
            ("MODE", freshness::mode(self.mode()).to_owned()),
            ("TAG PATTERN", self.tag_pattern.clone()),
            ("EXPLANATION", self.explanation.clone()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrepot_proto::v1::ValidationStep;

    #[test]
    fn an_update_masks_what_is_given_and_nothing_else() {
        let none = Flags::default;
        let request = update("demo", None, None, Some(String::new()), none(), Some("\"e\"".to_owned())).unwrap();
        assert_eq!(request.update_mask.unwrap().paths, ["upstream_prefix"]);
        let rule = request.rule.unwrap();
        assert_eq!((rule.name.as_str(), rule.etag.as_str(), rule.upstream.as_str()), ("rules/demo", "\"e\"", ""));
        assert!(update("demo", None, None, None, none(), None).is_err());
    }

    #[test]
    fn a_validation_marks_each_step() {
        let step = |kind: Kind, state: State, message: &str| ValidationStep {
            kind: kind.into(),
            state: state.into(),
            message: message.to_owned(),
        };
        let answer = ValidateRuleResponse {
            valid: false,
            steps: vec![
                step(Kind::Name, State::Passed, "127.0.0.1"),
                step(Kind::Tcp, State::Failed, "connection refused"),
                step(Kind::Manifest, State::Skipped, "not tried"),
            ],
        };
        let mut out = vec![];
        steps(&mut out, &answer).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "✓ name      127.0.0.1\n✗ TCP       connection refused\n- manifest  not tried\nthe rule does not work\n"
        );
    }
}
