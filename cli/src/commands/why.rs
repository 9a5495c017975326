//! `entrepot why`.

use std::io::{self, Write};

use entrepot_proto::v1::{Answer, AnswerState, GetAnswerRequest};

use crate::client::Session;
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Shown, details, size, time};

pub(super) const EXAMPLE: &str = "\
The request id is in the header X-Request-Id of each answer of the registry, and in the logs of
nodes. A node remembers its last 10,000 answers, until it ends.

Example:
  curl -sI -u \"AWS:$(entrepot login-password)\" http://127.0.0.1:5000/v2/demo/team/app/manifests/v1
  entrepot why node-1-0193a7c2d4f07b118e5d3a6b9c0d1e2f";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The value of the answer's header X-Request-Id.
    #[arg(value_name = "REQUEST_ID")]
    request_id: String,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let request = GetAnswerRequest { name: names::full("answers", self.request_id.trim()) };
        let answer = session.answers().get_answer(request).await?.into_inner();
        Ok(session.output.show(&answer, |out| explain(out, &answer))?)
    }
}

/// First the reasons, then everything else.
fn explain(out: &mut dyn Write, answer: &Answer) -> io::Result<()> {
    let end = if answer.reasons.is_empty() { "." } else { ":" };
    writeln!(out, "{}{end}", verdict(answer))?;
    for reason in &answer.reasons {
        writeln!(out, "  - {reason}")?;
    }
    writeln!(out)?;
    let mut cells = answer.details();
    cells.retain(|(heading, _)| *heading != "WHY");
    details(out, &cells)
}

fn verdict(answer: &Answer) -> String {
    match answer.outcome.as_str() {
        "hit" => "It was a hit: the node had it, and asked nobody".to_owned(),
        "revalidated" => "It was a hit, after the upstream had confirmed it".to_owned(),
        "miss" => "It was a miss: it had to come from the upstream".to_owned(),
        "background" => "It was served as it was cached, and the upstream was asked behind it".to_owned(),
        "stale" => "It was served stale: what was cached, although the upstream had not confirmed it".to_owned(),
        "bypass" => "It came from the upstream, and was not stored".to_owned(),
        "" if answer.http_status >= 400 => format!("It was refused with status {}", answer.http_status),
        "" => format!("It was answered with status {}", answer.http_status),
        other => format!("It was a {other}"),
    }
}

impl Shown for Answer {
    const MESSAGE: &'static str = "entrepot.v1.Answer";

    fn details(&self) -> Cells {
        let state = match self.state() {
            AnswerState::Unspecified => "",
            AnswerState::Sending => ", more to come",
            AnswerState::Complete => ", all of it",
            AnswerState::Cut => ", then the node ended it early",
            AnswerState::Abandoned => ", then the client had gone",
        };
        let took = self.duration.as_ref();
        let took = took.map(|took| format!("{}.{:03} s", took.seconds, took.nanos.max(0) / 1_000_000));
        vec![
            ("REQUEST", names::short("answers", &self.name).to_owned()),
            ("NODE", names::short("nodes", &self.node).to_owned()),
            ("TIME", time(self.begin_time.as_ref())),
            ("METHOD", self.method.clone()),
            ("ROUTE", self.route.clone()),
            ("REPOSITORY", names::short("repositories", &self.repository).to_owned()),
            ("REFERENCE", self.reference.clone()),
            ("DIGEST", self.digest.clone()),
            ("PRINCIPAL", names::short("principals", &self.principal).to_owned()),
            ("CLIENT", self.client_address.clone()),
            ("STATUS", self.http_status.to_string()),
            ("OUTCOME", self.outcome.clone()),
            ("WHY", self.reasons.join("\n")),
            ("SENT", format!("{}{state}", size(self.sent_bytes))),
            ("TOOK", took.unwrap_or_default()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_is_explained_before_all_else() {
        let answer = Answer {
            name: "answers/node-1-7".into(),
            outcome: "miss".into(),
            http_status: 200,
            reasons: vec!["no link to this digest".into(), "filled from upstream `hub`".into()],
            state: AnswerState::Complete.into(),
            ..Default::default()
        };
        let mut out = vec![];
        explain(&mut out, &answer).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected = "It was a miss: it had to come from the upstream:\n  - no link to this digest\n  - filled from \
                        upstream `hub`\n\nREQUEST  node-1-7\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(!text.contains("WHY"), "{text}");
        assert_eq!(verdict(&Answer { http_status: 404, ..Default::default() }), "It was refused with status 404");
    }
}
