//! Which failed requests had to fail: a pure function of what was struck when.
//!
//! Only what must fail is excused. A node that was killed takes its answers with it. What nobody holds cannot be had
//! while the upstream is scripted away, and what a node does not hold cannot be had without the bucket, which must be
//! said by the named error. Nothing excuses a request that failed because of Redis, Postgres, a control plane, other
//! nodes or a pause.

use std::time::{Duration, Instant};

use http::StatusCode;

use super::schedule::{Area, Fault, NodeFault};
use crate::reader::Cut;

/// An upstream that was away is tried by one request each 5 s.
const REMEMBERED_AWAY: Duration = Duration::from_secs(6);
/// How soon after its last byte content is in the bucket.
const STORED: Duration = Duration::from_secs(5);
/// Calls of the bucket that were on their way when it came back.
const BUCKET_BACK: Duration = Duration::from_secs(2);

/// A fault that was carried out.
#[derive(Clone, Debug)]
pub(super) struct Strike {
    pub(super) fault: Fault,
    /// Which node it struck; `None` for all, or none in particular.
    pub(super) node: Option<String>,
    pub(super) from: Instant,
    /// `None` while it lasts.
    pub(super) until: Option<Instant>,
}

/// Why a pull may need another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Excuse {
    /// The node that answered was killed meanwhile.
    NodeKilled,
    /// Nobody has the content for sure, and the upstream was scripted away or to send something else.
    UpstreamAway,
    /// The node does not reach the bucket; it said so by the named error.
    BucketAway,
    /// The node lost the bucket in the middle of an answer, which cannot become an error any more.
    BucketLost,
}

impl Strike {
    /// Whether it lasted, and `slack` more, at any moment from `began` to `ended`.
    fn meets(&self, began: Instant, ended: Instant, slack: Duration) -> bool {
        self.from <= ended && self.until.is_none_or(|until| began <= until + slack)
    }

    fn kills(&self) -> bool {
        matches!(self.fault, Fault::Node(_, NodeFault::Kill))
    }

    /// Whether it may have struck the node that gave an answer.
    fn is_of(&self, cut: &Cut) -> bool {
        let (struck, answered) = (self.node.as_deref(), cut.node());
        struck.is_none() || answered.is_none() || struck == answered
    }
}

/// What excuses that an answer was cut; `None` if nothing does. `kept` says whether the content is in the bucket for
/// sure.
pub(super) fn excuse(strikes: &[Strike], cut: &Cut, kept: bool) -> Option<Excuse> {
    let during = |slack: Duration, which: &dyn Fn(&Strike) -> bool| {
        strikes.iter().any(|strike| which(strike) && strike.meets(cut.asked, cut.ended, slack))
    };
    let is_answer = cut.status.is_some_and(|status| status.is_success());
    // A node says its errors with a code; what is without one, the load balancer said in place of a dead node.
    let is_said = !cut.code.is_empty() && cut.node().is_some();
    let is_named = is_said && cut.status == Some(StatusCode::SERVICE_UNAVAILABLE) && cut.code == "UNAVAILABLE";
    let bucket = |strike: &Strike| strike.fault.area() == Area::Store && strike.is_of(cut);
    if !is_said && during(Duration::ZERO, &|strike| strike.kills() && strike.is_of(cut)) {
        return Some(Excuse::NodeKilled);
    }
    if is_named && during(BUCKET_BACK, &bucket) {
        return Some(Excuse::BucketAway);
    }
    if is_answer && during(BUCKET_BACK, &bucket) {
        return Some(Excuse::BucketLost);
    }
    let upstream = |strike: &Strike| strike.fault.area() == Area::Upstream;
    (!kept && (is_said || is_answer) && during(REMEMBERED_AWAY, &upstream)).then_some(Excuse::UpstreamAway)
}

/// Whether content is in the bucket for sure that was pulled whole from `began` to `ended`: whether neither the bucket
/// was away nor a node was killed until it must have been stored.
pub(super) fn is_kept(strikes: &[Strike], (began, ended): (Instant, Instant)) -> bool {
    let mut may_lose = strikes.iter().filter(|strike| strike.fault.area() == Area::Store || strike.kills());
    !may_lose.any(|strike| strike.meets(began, ended + STORED, BUCKET_BACK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::schedule::{ControlFault, LinkFault, RedisFault, UpstreamFault};

    const SECOND: Duration = Duration::from_secs(1);

    fn strike(fault: Fault, node: Option<&str>, now: Instant) -> Strike {
        Strike { fault, node: node.map(str::to_owned), from: now, until: Some(now + 3 * SECOND) }
    }

    fn cut(node: Option<&str>, status: Option<u16>, code: &str, now: Instant) -> Cut {
        Cut {
            asked: now + SECOND,
            ended: now + 2 * SECOND,
            request_id: node.map(|node| format!("{node}-0123")),
            status: status.map(|status| StatusCode::from_u16(status).unwrap()),
            code: code.to_owned(),
            wrong: false,
            problem: String::new(),
        }
    }

    #[test]
    fn a_node_that_is_killed_excuses_what_it_answered_and_nothing_else() {
        let now = Instant::now();
        let strikes = [strike(Fault::Node(0, NodeFault::Kill), Some("node-1"), now)];
        assert_eq!(excuse(&strikes, &cut(Some("node-1"), Some(200), "", now), true), Some(Excuse::NodeKilled));
        assert_eq!(excuse(&strikes, &cut(None, Some(503), "", now), true), Some(Excuse::NodeKilled));
        assert_eq!(excuse(&strikes, &cut(None, None, "", now), true), Some(Excuse::NodeKilled));
        assert_eq!(excuse(&strikes, &cut(Some("node-2"), Some(200), "", now), true), None);
        assert_eq!(excuse(&strikes, &cut(Some("node-1"), Some(503), "UNAVAILABLE", now), true), None);
        assert_eq!(excuse(&strikes, &cut(Some("node-1"), Some(200), "", now + 4 * SECOND), true), None);
    }

    #[test]
    fn the_bucket_away_excuses_the_named_error_of_a_node_that_does_not_reach_it() {
        let now = Instant::now();
        let strikes = [strike(Fault::Store(Some(0), LinkFault::Stall), Some("node-1"), now)];
        let said = |node, status, code| excuse(&strikes, &cut(Some(node), Some(status), code, now), true);
        assert_eq!(said("node-1", 503, "UNAVAILABLE"), Some(Excuse::BucketAway));
        assert_eq!(said("node-1", 200, ""), Some(Excuse::BucketLost));
        assert_eq!(said("node-1", 502, "UNKNOWN"), None);
        assert_eq!(said("node-1", 404, "BLOB_UNKNOWN"), None);
        assert_eq!(said("node-2", 503, "UNAVAILABLE"), None);
        let of_all = [strike(Fault::Store(None, LinkFault::Stall), None, now)];
        let named = cut(Some("node-2"), Some(503), "UNAVAILABLE", now);
        assert_eq!(excuse(&of_all, &named, true), Some(Excuse::BucketAway));
    }

    #[test]
    fn the_upstream_away_excuses_what_nobody_has_for_sure() {
        let now = Instant::now();
        let strikes = [strike(Fault::Upstream(UpstreamFault::Away), None, now)];
        let said = cut(Some("node-1"), Some(503), "UNAVAILABLE", now);
        assert_eq!(excuse(&strikes, &said, false), Some(Excuse::UpstreamAway));
        assert_eq!(excuse(&strikes, &said, true), None);
        assert_eq!(excuse(&strikes, &cut(None, None, "", now), false), None);
    }

    #[test]
    fn nothing_else_excuses_anything() {
        let now = Instant::now();
        let others = [
            Fault::Node(0, NodeFault::Pause),
            Fault::Redis(RedisFault::Restart),
            Fault::Control(ControlFault::Postgres),
            Fault::Peer(0, LinkFault::Cut),
        ];
        let strikes: Vec<_> = others.into_iter().map(|fault| strike(fault, None, now)).collect();
        for cut in [cut(Some("node-1"), Some(200), "", now), cut(Some("node-1"), Some(503), "UNAVAILABLE", now)] {
            assert_eq!(excuse(&strikes, &cut, false), None);
        }
        assert_eq!(excuse(&strikes, &cut(None, None, "", now), false), None);
    }

    #[test]
    fn content_is_kept_if_nothing_that_may_lose_it_met_its_pull() {
        let now = Instant::now();
        let kill = [strike(Fault::Node(0, NodeFault::Kill), Some("node-1"), now + 10 * SECOND)];
        assert!(is_kept(&kill, (now, now + SECOND)));
        assert!(!is_kept(&kill, (now, now + 6 * SECOND)), "it may not have been stored");
        assert!(is_kept(&kill, (now + 16 * SECOND, now + 17 * SECOND)));
        let redis = [strike(Fault::Redis(RedisFault::Flush), None, now)];
        assert!(is_kept(&redis, (now, now + SECOND)));
    }
}
