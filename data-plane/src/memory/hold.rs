//! How long a node may rely on what it has read.

use std::sync::Arc;
use std::time::Duration;

use crate::moment::Moment;

/// How long a hold time must have been in the node's record before it is used: by then, all others have read it.
const KNOWN_AFTER: Duration = Duration::from_secs(30);
/// How old the node's own record may be while it holds anything: others count it as dead after 35 s.
const ANNOUNCED_FOR: Duration = Duration::from_secs(20);

/// How long a read record may be relied on. A writer waits for the nodes that it knows. So a node uses no hold time
/// that others may not know of, and none while others may count it as dead.
pub(crate) struct Hold {
    wanted: Arc<dyn Fn() -> Duration + Send + Sync>,
    kind: Kind,
}

enum Kind {
    /// Nobody could tell this node to forget anything.
    Never,
    /// This node is the only one.
    Alone,
    /// Others know about this node by its record.
    Announced(Option<Announced>),
}

/// The content of this node's record.
struct Announced {
    /// When the last write of it began.
    begun: Moment,
    /// The hold time in it, and since when.
    says: Duration,
    since: Moment,
    /// The hold time that was used before.
    before: Duration,
}

impl Hold {
    /// Never, since others cannot reach this node.
    pub(crate) fn never() -> Self {
        Self { wanted: Arc::new(|| Duration::ZERO), kind: Kind::Never }
    }

    /// Always as long as `wanted` returns, since this node is the only one.
    pub(crate) fn alone(wanted: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { wanted: Arc::new(wanted), kind: Kind::Alone }
    }

    /// As long as `wanted` returns, while others know this node by its record.
    pub(crate) fn announced_for(wanted: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { wanted: Arc::new(wanted), kind: Kind::Announced(None) }
    }

    pub(super) fn wanted(&self) -> Duration {
        match self.kind {
            Kind::Never => Duration::ZERO,
            Kind::Alone | Kind::Announced(_) => (self.wanted)(),
        }
    }

    /// How long a read record may be relied on now.
    pub(super) fn time_at(&self, now: Moment) -> Duration {
        match &self.kind {
            Kind::Never => Duration::ZERO,
            Kind::Alone => (self.wanted)(),
            Kind::Announced(None) => Duration::ZERO,
            Kind::Announced(Some(announced)) => announced.time_at(now).min((self.wanted)()),
        }
    }

    /// Notes that another node uses this one's record, so others may fail to tell this node what to forget.
    pub(super) fn doubled(&mut self) {
        if let Kind::Announced(announced) = &mut self.kind {
            *announced = None;
        }
    }

    pub(super) fn announced(&mut self, begun: Moment, now: Moment, says: Duration) {
        let Kind::Announced(announced) = &mut self.kind else { return };
        *announced = Some(match announced.take() {
            // Others may have removed the record of a node that was silent for this long.
            Some(old) if old.begun.age_at(now) >= ANNOUNCED_FOR => {
                Announced { begun, says, since: now, before: Duration::ZERO }
            }
            Some(old) if old.says == says => Announced { begun, ..old },
            Some(old) => Announced { begun, says, since: now, before: old.time_at(now) },
            None => Announced { begun, says, since: now, before: Duration::ZERO },
        });
    }
}

impl Announced {
    fn time_at(&self, now: Moment) -> Duration {
        if self.begun.age_at(now) >= ANNOUNCED_FOR {
            return Duration::ZERO;
        }
        // The shorter time of the two clocks counts, since either may be ahead.
        let since = self.since.monotonic_age_at(now);
        if since >= KNOWN_AFTER { self.says } else { self.before.min(self.says) }
    }
}
