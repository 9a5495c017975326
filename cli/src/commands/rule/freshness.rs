//! The options for the freshness of a rule's tags, and how it is shown.

use std::time::Duration;

use clap::{Args, ValueEnum};
use entrepot_domain::freshness::exact;
use entrepot_proto::convert;
use entrepot_proto::v1::rule::{Mode, WhenDeleted, WhenDenied};
use entrepot_proto::v1::{AutomaticSync, Rule, TagWindow};
use entrepot_runtime::config::Setting as _;

use crate::commands::mask::Mask;
use crate::output::Cells;

/// The given options.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Flags {
    /// How long a tag is trusted after the upstream has confirmed it, such as 12h; 0 asks at every pull; 24h unless
    /// set.
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    window: Option<Duration>,
    /// What happens to a pull of a tag that is no longer trusted; blocking unless set.
    #[arg(long)]
    mode: Option<ModeFlag>,
    /// Tags that never move, such as 'v*' or '*-release'. Once the meaning of such a tag is known, the upstream is not
    /// asked again. Can be given several times; '' for none.
    #[arg(long = "immutable-tag", value_name = "PATTERN")]
    immutable_tags: Vec<String>,
    /// How long after its last validation a tag may be served although the upstream does not confirm it, such as 7d;
    /// `ever` unless set.
    #[arg(long, value_name = "LENGTH", value_parser = limit)]
    max_stale: Option<Limit>,
    /// What happens to a tag that no longer exists at the upstream; keep unless set.
    #[arg(long)]
    when_deleted: Option<WhenDeletedFlag>,
    /// What happens to a cached tag when the upstream denies access; keep unless set.
    #[arg(long)]
    when_denied: Option<WhenDeniedFlag>,
    /// Another window or mode for some tags, such as 'latest=5m', 'edge*=off' or 'dev=1m,background'; the first one
    /// that matches applies. Can be given several times; '' for none.
    #[arg(long = "tag-window", value_name = "PATTERN=LENGTH,MODE", value_parser = tag_window)]
    tag_windows: Vec<Own>,
    /// How long a repository's list of tags is served before the upstream is asked again; 5m unless set.
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    tag_list_window: Option<Duration>,
    /// The same for a manifest's list of referrers, such as signatures; 6h unless set.
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    referrers_window: Option<Duration>,
    /// Whether tags in use are revalidated before their window ends, even without a pull; on unless set.
    #[arg(long)]
    automatic_sync: Option<AutomaticSyncFlag>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AutomaticSyncFlag {
    /// Yes.
    On,
    /// No.
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeFlag {
    /// The pull waits until the upstream has been asked.
    Blocking,
    /// The pull gets what is cached, and the upstream is asked in the background.
    Background,
    /// The pull gets what is cached, and the upstream is asked only when somebody requests a sync.
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhenDeletedFlag {
    /// What is cached is still served.
    Keep,
    /// The tag is deleted here, too.
    Drop,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhenDeniedFlag {
    /// What is cached is still served.
    Keep,
    /// The pull is denied, too.
    Fail,
}

/// A time limit, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Ever,
    Of(Duration),
}

/// An exception for some tags; `None` stands for an empty text, which clears the list.
#[derive(Clone, Debug, PartialEq)]
struct Own(Option<TagWindow>);

impl Flags {
    /// Writes the given options into `rule`.
    pub(super) fn write(self, rule: &mut Rule, mask: &mut Mask) {
        let length = |length: Option<Duration>| length.map(|length| Some(convert::duration(length)));
        mask.set("window", &mut rule.window, length(self.window));
        mask.set("mode", &mut rule.mode, self.mode.map(|mode| Mode::from(mode).into()));
        mask.set_list("immutable_tags", &mut rule.immutable_tags, self.immutable_tags);
        let max_stale = self.max_stale.map(|limit| match limit {
            Limit::Of(length) => Some(convert::duration(length)),
            Limit::Ever => None,
        });
        mask.set("max_stale", &mut rule.max_stale, max_stale);
        let when_deleted = self.when_deleted.map(|flag| match flag {
            WhenDeletedFlag::Keep => WhenDeleted::Keep.into(),
            WhenDeletedFlag::Drop => WhenDeleted::Drop.into(),
        });
        mask.set("when_deleted", &mut rule.when_deleted, when_deleted);
        let when_denied = self.when_denied.map(|flag| match flag {
            WhenDeniedFlag::Keep => WhenDenied::Keep.into(),
            WhenDeniedFlag::Fail => WhenDenied::Fail.into(),
        });
        mask.set("when_denied", &mut rule.when_denied, when_denied);
        let has_windows = !self.tag_windows.is_empty();
        let windows = self.tag_windows.into_iter().filter_map(|own| own.0).collect();
        mask.set("tag_windows", &mut rule.tag_windows, has_windows.then_some(windows));
        mask.set("tag_list_window", &mut rule.tag_list_window, length(self.tag_list_window));
        mask.set("referrers_window", &mut rule.referrers_window, length(self.referrers_window));
        let automatic_sync = self.automatic_sync.map(|flag| match flag {
            AutomaticSyncFlag::On => AutomaticSync::On.into(),
            AutomaticSyncFlag::Off => AutomaticSync::Off.into(),
        });
        mask.set("automatic_sync", &mut rule.automatic_sync, automatic_sync);
    }
}

impl From<ModeFlag> for Mode {
    fn from(flag: ModeFlag) -> Self {
        match flag {
            ModeFlag::Blocking => Self::Blocking,
            ModeFlag::Background => Self::Background,
            ModeFlag::Off => Self::Off,
        }
    }
}

/// The columns in a list of rules.
pub(super) fn row(rule: &Rule) -> Cells {
    vec![("WINDOW", shown(rule.window.as_ref())), ("MODE", mode(rule.mode()).to_owned())]
}

/// All further details of a rule.
pub(super) fn details(rule: &Rule) -> Cells {
    let deleted = match rule.when_deleted() {
        WhenDeleted::Unspecified => "",
        WhenDeleted::Keep => "keep",
        WhenDeleted::Drop => "drop",
    };
    let denied = match rule.when_denied() {
        WhenDenied::Unspecified => "",
        WhenDenied::Keep => "keep",
        WhenDenied::Fail => "fail",
    };
    let max_stale = rule.max_stale.as_ref();
    vec![
        ("IMMUTABLE TAGS", rule.immutable_tags.join(" ")),
        ("TAG WINDOWS", rule.tag_windows.iter().map(said).collect::<Vec<_>>().join(" ")),
        ("MAX STALE", max_stale.map_or_else(|| "ever".to_owned(), |length| shown(Some(length)))),
        ("WHEN DELETED", deleted.to_owned()),
        ("WHEN DENIED", denied.to_owned()),
        ("TAG LIST WINDOW", shown(rule.tag_list_window.as_ref())),
        ("REFERRERS WINDOW", shown(rule.referrers_window.as_ref())),
        ("AUTOMATIC SYNC", if rule.automatic_sync() == AutomaticSync::Off { "off" } else { "on" }.to_owned()),
    ]
}

/// A duration in the form of the options; empty if it is absent.
pub(super) fn shown(length: Option<&prost_types::Duration>) -> String {
    length.and_then(convert::length).map(exact).unwrap_or_default()
}

/// A mode in the form of the options.
pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Unspecified => "",
        Mode::Blocking => "blocking",
        Mode::Background => "background",
        Mode::Off => "off",
    }
}

/// An exception in the form of the option.
fn said(own: &TagWindow) -> String {
    let parts = [shown(own.window.as_ref()), mode(own.mode()).to_owned()];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    format!("{}={}", own.pattern, parts.join(","))
}

fn length(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { Duration::from_text(text) }
}

fn limit(text: &str) -> Result<Limit, String> {
    if text == "ever" {
        Ok(Limit::Ever)
    } else {
        length(text).map(Limit::Of).map_err(|why| format!("{why}, or `ever`"))
    }
}

fn tag_window(text: &str) -> Result<Own, String> {
    if text.is_empty() {
        return Ok(Own(None));
    }
    let wrong = || "must be a pattern with a window, a mode, or both, such as `latest=5m,background`".to_owned();
    let (pattern, says) = text.split_once('=').ok_or_else(wrong)?;
    let mut own = TagWindow { pattern: pattern.to_owned(), window: None, mode: Mode::Unspecified.into() };
    for word in says.split(',') {
        match (length(word), ModeFlag::from_str(word, false)) {
            (Ok(window), _) if own.window.is_none() => own.window = Some(convert::duration(window)),
            (Err(_), Ok(mode)) if own.mode() == Mode::Unspecified => own.mode = Mode::from(mode).into(),
            (Ok(_) | Err(_), _) => return Err(wrong()),
        }
    }
    Ok(Own(Some(own)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_tags_are_read_as_they_are_said() {
        for text in ["latest=5m", "edge*=off", "dev=1m,background", "x=0s"] {
            assert_eq!(said(&tag_window(text).unwrap().0.unwrap()), text);
        }
        assert_eq!(said(&tag_window("dev=background,60s").unwrap().0.unwrap()), "dev=1m,background");
        assert_eq!(tag_window(""), Ok(Own(None)));
        for text in ["latest", "latest=", "latest=soon", "a=1m,2m", "a=off,off", "a=1m,off,off"] {
            assert!(tag_window(text).unwrap_err().contains("such as `latest=5m,background`"), "{text}");
        }
    }

    #[test]
    fn what_is_given_is_written_and_named() {
        let flags = Flags {
            window: Some(length("0").unwrap()),
            immutable_tags: vec![String::new()],
            max_stale: Some(limit("ever").unwrap()),
            when_deleted: Some(WhenDeletedFlag::Drop),
            ..Flags::default()
        };
        let mut rule = Rule::default();
        let mut mask = Mask::default();
        flags.write(&mut rule, &mut mask);
        let paths = mask.finish("rule").unwrap().unwrap().paths;
        assert_eq!(paths, ["window", "immutable_tags", "max_stale", "when_deleted"]);
        assert_eq!((shown(rule.window.as_ref()), rule.max_stale), ("0s".to_owned(), None));
        assert!(rule.immutable_tags.is_empty() && rule.when_deleted() == WhenDeleted::Drop);
        let mut nothing = Mask::default();
        Flags::default().write(&mut Rule::default(), &mut nothing);
        assert!(nothing.finish("rule").is_err());
        assert_eq!(limit("7d"), Ok(Limit::Of(Duration::from_secs(604_800))));
        assert!(limit("long").unwrap_err().ends_with("or `ever`"));
    }
}
