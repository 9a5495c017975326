//! The flags that say how far a rule's tags are trusted, and how that is shown.

use std::time::Duration;

use clap::{Args, ValueEnum};
use entrepot_domain::freshness::exact;
use entrepot_proto::convert;
use entrepot_proto::v1::rule::{Mode, WhenDeleted, WhenDenied};
use entrepot_proto::v1::{AutomaticSync, Rule, TagWindow};
use entrepot_runtime::config::Setting as _;

use crate::output::Cells;

/// What is given of a rule's freshness.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Flags {
    /// How long a tag is trusted after the upstream has confirmed it, such as 12h; 0 asks at every pull; 24h unless set.
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    window: Option<Duration>,
    /// What happens to a pull of a tag that is not trusted any more; blocking unless set.
    #[arg(long)]
    mode: Option<ModeFlag>,
    /// Tags that never move, such as 'v*' or '*-release': what is known of one is never asked for again. Can be given
    /// several times; '' for none.
    #[arg(long = "immutable-tag", value_name = "PATTERN")]
    immutable_tags: Vec<String>,
    /// How long after its last validation a tag is served that the upstream does not confirm, such as 7d; `ever`
    /// unless set.
    #[arg(long, value_name = "LENGTH", value_parser = limit)]
    max_stale: Option<Limit>,
    /// What is done with a tag that the upstream has no more; keep unless set.
    #[arg(long)]
    when_deleted: Option<WhenDeletedFlag>,
    /// What is done when the upstream denies access to a tag that is cached; keep unless set.
    #[arg(long)]
    when_denied: Option<WhenDeniedFlag>,
    /// Another window or mode for some tags, such as 'latest=5m', 'edge*=off' or 'dev=1m,background'; the first one
    /// that matches counts. Can be given several times; '' for none.
    #[arg(long = "tag-window", value_name = "PATTERN=LENGTH,MODE", value_parser = tag_window)]
    tag_windows: Vec<Own>,
    /// How long a repository's list of tags is served before the upstream is asked for it again; 5m unless set.
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    tag_list_window: Option<Duration>,
    /// The same for the list of what refers to a manifest, such as signatures; 6h unless set.
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    referrers_window: Option<Duration>,
    /// Whether tags in use are revalidated before their window ends, without a pull asking for it; on unless set.
    #[arg(long)]
    automatic_sync: Option<AutomaticSyncFlag>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AutomaticSyncFlag {
    /// They are.
    On,
    /// They are not.
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeFlag {
    /// It waits until the upstream has been asked.
    Blocking,
    /// It gets what is cached, and the upstream is asked behind it.
    Background,
    /// It gets what is cached, and the upstream is never asked by itself.
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhenDeletedFlag {
    /// What is cached goes on being served.
    Keep,
    /// The tag is dropped here, too.
    Drop,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhenDeniedFlag {
    /// What is cached goes on being served.
    Keep,
    /// The pull is denied, too.
    Fail,
}

/// A limit in time, which may be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Ever,
    Of(Duration),
}

/// What differs for some tags; `None` where an empty text says that nothing does.
#[derive(Clone, Debug, PartialEq)]
struct Own(Option<TagWindow>);

impl Flags {
    /// Writes what is given into `rule`, and says into which fields.
    pub(super) fn write(self, rule: &mut Rule) -> Vec<&'static str> {
        let mut paths = Vec::new();
        let mut given = |path, is_given: bool| {
            if is_given {
                paths.push(path);
            }
        };
        given("window", self.window.is_some());
        given("mode", self.mode.is_some());
        given("immutable_tags", !self.immutable_tags.is_empty());
        given("max_stale", self.max_stale.is_some());
        given("when_deleted", self.when_deleted.is_some());
        given("when_denied", self.when_denied.is_some());
        given("tag_windows", !self.tag_windows.is_empty());
        given("tag_list_window", self.tag_list_window.is_some());
        given("referrers_window", self.referrers_window.is_some());
        given("automatic_sync", self.automatic_sync.is_some());

        rule.window = self.window.map(convert::duration);
        rule.mode = self.mode.map_or(Mode::Unspecified, Mode::from).into();
        rule.immutable_tags = self.immutable_tags.into_iter().filter(|pattern| !pattern.is_empty()).collect();
        rule.max_stale = match self.max_stale {
            Some(Limit::Of(length)) => Some(convert::duration(length)),
            Some(Limit::Ever) | None => None,
        };
        rule.when_deleted = match self.when_deleted {
            None => WhenDeleted::Unspecified,
            Some(WhenDeletedFlag::Keep) => WhenDeleted::Keep,
            Some(WhenDeletedFlag::Drop) => WhenDeleted::Drop,
        }
        .into();
        rule.when_denied = match self.when_denied {
            None => WhenDenied::Unspecified,
            Some(WhenDeniedFlag::Keep) => WhenDenied::Keep,
            Some(WhenDeniedFlag::Fail) => WhenDenied::Fail,
        }
        .into();
        rule.tag_windows = self.tag_windows.into_iter().filter_map(|own| own.0).collect();
        rule.tag_list_window = self.tag_list_window.map(convert::duration);
        rule.referrers_window = self.referrers_window.map(convert::duration);
        rule.automatic_sync = match self.automatic_sync {
            None => AutomaticSync::Unspecified,
            Some(AutomaticSyncFlag::On) => AutomaticSync::On,
            Some(AutomaticSyncFlag::Off) => AutomaticSync::Off,
        }
        .into();
        paths
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

/// What a list of rules says of it.
pub(super) fn row(rule: &Rule) -> Cells {
    vec![("WINDOW", shown(rule.window.as_ref())), ("MODE", mode(rule.mode()).to_owned())]
}

/// All else that a rule says of it.
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

/// A length of time as flags take it; nothing if it is absent.
pub(super) fn shown(length: Option<&prost_types::Duration>) -> String {
    length.and_then(convert::length).map(exact).unwrap_or_default()
}

/// A mode as flags take it.
pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Unspecified => "",
        Mode::Blocking => "blocking",
        Mode::Background => "background",
        Mode::Off => "off",
    }
}

/// What differs for some tags, as the flag takes it.
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
        assert_eq!(flags.write(&mut rule), ["window", "immutable_tags", "max_stale", "when_deleted"]);
        assert_eq!((shown(rule.window.as_ref()), rule.max_stale), ("0s".to_owned(), None));
        assert!(rule.immutable_tags.is_empty() && rule.when_deleted() == WhenDeleted::Drop);
        assert!(Flags::default().write(&mut Rule::default()).is_empty());
        assert_eq!(limit("7d"), Ok(Limit::Of(Duration::from_secs(604_800))));
        assert!(limit("long").unwrap_err().ends_with("or `ever`"));
    }
}
