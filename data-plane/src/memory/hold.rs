//! For how long a node may believe what it has read.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use entrepot_runtime::Clock;
use tokio::time::Instant;

/// How long a record must have said a hold time before that is used: by then, all others have read it.
const KNOWN_AFTER: Duration = Duration::from_secs(30);
/// How old a node's own record may be while it holds: others count it dead after 35 s.
const ANNOUNCED_FOR: Duration = Duration::from_secs(20);

/// An instant by both clocks: either may stand still while the other goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    monotonic: Instant,
    wall: DateTime<Utc>,
}

impl Moment {
    pub(super) fn now(clock: &Clock) -> Self {
        Self { monotonic: Instant::now(), wall: clock.now() }
    }

    /// How long ago this was: what the clock says that says more.
    pub(crate) fn age_at(self, now: Self) -> Duration {
        let wall = (now.wall - self.wall).to_std().unwrap_or_default();
        now.monotonic.saturating_duration_since(self.monotonic).max(wall)
    }
}

/// How long what was read is believed. A writer waits for the nodes that it knows of, so a node uses no hold time that
/// others may not know of, and none when others may count it dead.
pub(crate) struct Hold {
    wanted: Arc<dyn Fn() -> Duration + Send + Sync>,
    kind: Kind,
}

enum Kind {
    /// Nobody could tell this node to forget anything.
    Never,
    /// This node is the only one.
    Alone,
    /// Others know of this node by its record.
    Announced(Option<Announced>),
}

/// What this node's record says.
struct Announced {
    /// When the last one was begun to be written.
    begun: Moment,
    /// The hold time that it says, and since when.
    says: Duration,
    since: Moment,
    /// What was used before that.
    before: Duration,
}

impl Hold {
    /// Never, since others do not reach this node.
    pub(crate) fn never() -> Self {
        Self { wanted: Arc::new(|| Duration::ZERO), kind: Kind::Never }
    }

    /// Always for as long as `wanted` says, since this node is the only one.
    pub(crate) fn alone(wanted: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { wanted: Arc::new(wanted), kind: Kind::Alone }
    }

    /// As long as `wanted` says, while others know this node by its record.
    pub(crate) fn announced_for(wanted: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { wanted: Arc::new(wanted), kind: Kind::Announced(None) }
    }

    pub(super) fn wanted(&self) -> Duration {
        match self.kind {
            Kind::Never => Duration::ZERO,
            Kind::Alone | Kind::Announced(_) => (self.wanted)(),
        }
    }

    /// How long what was read is believed now.
    pub(super) fn time_at(&self, now: Moment) -> Duration {
        match &self.kind {
            Kind::Never => Duration::ZERO,
            Kind::Alone => (self.wanted)(),
            Kind::Announced(None) => Duration::ZERO,
            Kind::Announced(Some(announced)) => announced.time_at(now).min((self.wanted)()),
        }
    }

    pub(super) fn announced(&mut self, begun: Moment, now: Moment, says: Duration) {
        let Kind::Announced(announced) = &mut self.kind else { return };
        *announced = Some(match announced.take() {
            // Others may have removed the record of a node that was silent for so long.
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
        // By the clock that says less: neither may be ahead.
        let since = now.monotonic.saturating_duration_since(self.since.monotonic);
        if since >= KNOWN_AFTER { self.says } else { self.before.min(self.says) }
    }
}
