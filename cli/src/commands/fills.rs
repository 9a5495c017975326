//! `entrepot fills`.

use chrono::{DateTime, Utc};
use entrepot_proto::v1::{Fill, FillState, ListFillsRequest, WatchFillsRequest, WatchFillsResponse};
use entrepot_runtime::Clock;
use prost_types::Timestamp;

use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Screen, Shown, note, size, time, word};

pub(super) const EXAMPLES: &str = "\
Examples:
  entrepot fills
  entrepot fills --once --output json
  entrepot fills --filter 'rule = \"rules/hub\"'";

/// How many digits of a digest are shown in a list.
const DIGITS: usize = 12;
/// The width of a progress bar.
const BAR: usize = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show them once and exit, instead of refreshing every second.
    #[arg(long)]
    once: bool,
    /// Select fills: terms joined by AND, each `rule = "rules/hub"`, `repository = "repositories/hub/library/nginx"` or
    /// `node = "nodes/node-1"`.
    #[arg(long)]
    filter: Option<String>,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let filter = self.filter.unwrap_or_default();
        if self.once { once(session, filter).await } else { watch(session, filter).await }
    }
}

async fn once(session: &Session, filter: String) -> Result<(), Error> {
    let (mut client, mut silent) = (session.fills(), String::new());
    let page = async |page_token| {
        let request = ListFillsRequest { page_size: PAGE_SIZE, page_token, filter: filter.clone() };
        let answer = client.list_fills(request).await?;
        silent =
            answer.metadata().get("entrepot-silent-nodes").and_then(|text| text.to_str().ok()).unwrap_or("").into();
        let answer = answer.into_inner();
        Ok((answer.fills, answer.next_page_token))
    };
    let fills = all_pages(page).await?;
    if !silent.is_empty() {
        note(&format!("these nodes cannot be asked: {silent}"));
    }
    Ok(session.output.list(&fills)?)
}

async fn watch(session: &Session, filter: String) -> Result<(), Error> {
    let screen = Screen::of_stdout();
    let mut states = session.fills().watch_fills(WatchFillsRequest { filter }).await?.into_inner();
    while let Some(state) = states.message().await? {
        let mut text = match state.fills.len() {
            0 => "no fills".to_owned(),
            1 => "1 fill".to_owned(),
            count => format!("{count} fills"),
        };
        if !state.silent_nodes.is_empty() {
            text = format!("{text}; these nodes cannot be asked: {}", state.silent_nodes.join(", "));
        }
        if !session.output.state(screen, &state, &state.fills, &text) {
            break;
        }
    }
    Ok(())
}

impl Shown for WatchFillsResponse {
    const MESSAGE: &'static str = "entrepot.v1.WatchFillsResponse";

    fn details(&self) -> Cells {
        vec![("SILENT NODES", self.silent_nodes.join(", "))]
    }
}

impl Shown for Fill {
    const MESSAGE: &'static str = "entrepot.v1.Fill";

    fn details(&self) -> Cells {
        vec![
            ("NODE", names::short("nodes", &self.node).to_owned()),
            ("RULE", names::short("rules", &self.rule).to_owned()),
            ("UPSTREAM", names::short("upstreams", &self.upstream).to_owned()),
            ("DIGEST", self.digest.clone()),
            ("REPOSITORY", names::short("repositories", &self.repository).to_owned()),
            ("STATE", if self.state() == FillState::Unspecified { String::new() } else { word(self, "state") }),
            ("LEADER", names::short("nodes", &self.leader).to_owned()),
            ("PROGRESS", progress(self.landed_bytes, self.size_bytes)),
            ("READERS", self.reader_count.to_string()),
            ("FOLLOWERS", self.followers.iter().map(|node| names::short("nodes", node)).collect::<Vec<_>>().join(", ")),
            ("RATE", format!("{}/s", size(self.bytes_per_second))),
            ("BEGUN", time(self.begin_time.as_ref())),
        ]
    }
}

impl Listed for Fill {
    const ITEMS: &'static str = "fills";

    fn row(&self) -> Cells {
        let mut cells = self.details();
        cells.retain(|(heading, _)| *heading != "UPSTREAM");
        for (heading, value) in &mut cells {
            match *heading {
                "DIGEST" => *value = short(value),
                "BEGUN" => (*heading, *value) = ("AGE", age(self.begin_time.as_ref(), Clock::system().now())),
                _ => {}
            }
        }
        cells
    }
}

/// `sha256:` and the first digits.
fn short(digest: &str) -> String {
    match digest.split_once(':') {
        Some((algorithm, hex)) => format!("{algorithm}:{}", hex.get(..DIGITS).unwrap_or(hex)),
        None => digest.to_owned(),
    }
}

/// How much has landed, with a bar if the total is known.
fn progress(landed: i64, of: Option<i64>) -> String {
    let Some(total) = of.filter(|total| *total > 0) else { return size(landed) };
    let percent = i128::from(landed.clamp(0, total)) * 100 / i128::from(total);
    let done = usize::try_from(percent).unwrap_or(0) * BAR / 100;
    format!("[{}{}] {percent:>3}%  {} of {}", "#".repeat(done), "-".repeat(BAR - done), size(landed), size(total))
}

fn age(begun: Option<&Timestamp>, now: DateTime<Utc>) -> String {
    let Some(begun) = begun else { return String::new() };
    let seconds = now.timestamp().saturating_sub(begun.seconds).max(0);
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds / 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_how_far_a_fill_is() {
        let fill = Fill {
            node: "nodes/node-1".into(),
            rule: "rules/hub".into(),
            digest: format!("sha256:{}", "0123456789abcdef".repeat(4)),
            state: FillState::Transferring.into(),
            followers: vec!["nodes/node-2".into(), "nodes/node-3".into()],
            size_bytes: Some(90 << 20),
            landed_bytes: 45 << 20,
            reader_count: 2,
            bytes_per_second: 5 << 20,
            ..Default::default()
        };
        let row = fill.row();
        let cell = |name: &str| row.iter().find(|(heading, _)| *heading == name).unwrap().1.as_str();
        assert_eq!((cell("NODE"), cell("RULE"), cell("DIGEST")), ("node-1", "hub", "sha256:0123456789ab"));
        assert_eq!(cell("PROGRESS"), "[#####-----]  50%  45.0 MiB of 90.0 MiB");
        assert_eq!((cell("STATE"), cell("READERS"), cell("RATE")), ("transferring", "2", "5.0 MiB/s"));
        assert_eq!((cell("LEADER"), cell("FOLLOWERS")), ("", "node-2, node-3"));
        let follower = Fill { leader: "nodes/node-1".into(), state: FillState::Following.into(), ..fill.clone() };
        assert!(follower.row().contains(&("LEADER", "node-1".to_owned())));
        assert_eq!(progress(5, None), "5 B");
        assert_eq!(progress(7, Some(5)), "[##########] 100%  7 B of 5 B");
    }
}
