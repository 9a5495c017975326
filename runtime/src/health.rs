//! Readiness: named conditions that must all hold before a load balancer should send requests here.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// All conditions of a process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Each condition, with the reason if it does not hold.
    conditions: BTreeMap<&'static str, Option<String>>,
    /// Notes for operators about conditions that hold.
    remarks: BTreeMap<&'static str, String>,
    draining: bool,
}

impl Health {
    /// Ready, since there are no conditions yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition, which does not hold until [`Condition::ready`] is called.
    pub fn condition(&self, name: &'static str) -> Condition {
        let condition = Condition { name, health: self.clone() };
        condition.not_ready("starting");
        condition
    }

    /// Whether every condition holds and nothing is being shut down.
    pub fn is_ready(&self) -> bool {
        let state = self.lock();
        !state.draining && state.conditions.values().all(Option::is_none)
    }

    /// The conditions that do not hold, with their reasons.
    pub fn not_ready(&self) -> Vec<(&'static str, String)> {
        let state = self.lock();
        let draining = state.draining.then(|| ("draining", "shutting down".to_owned()));
        let failing = state.conditions.iter().filter_map(|(name, why)| Some((*name, why.clone()?)));
        draining.into_iter().chain(failing).collect()
    }

    /// Notes for operators about conditions that hold.
    pub fn remarks(&self) -> Vec<(&'static str, String)> {
        self.lock().remarks.iter().map(|(name, remark)| (*name, remark.clone())).collect()
    }

    /// Makes this not ready for good. It is the first step of a shutdown, so that load balancers stop sending requests
    /// before any is refused.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

/// One condition. The code that knows whether it holds keeps this.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    health: Health,
}

impl Condition {
    /// The condition holds.
    pub fn ready(&self) {
        let mut state = self.health.lock();
        state.conditions.insert(self.name, None);
        state.remarks.remove(self.name);
    }

    /// The condition holds, with a note for operators.
    pub fn ready_but(&self, remark: impl Into<String>) {
        let mut state = self.health.lock();
        state.conditions.insert(self.name, None);
        state.remarks.insert(self.name, remark.into());
    }

    /// The condition does not hold, for this reason, which operators will read.
    pub fn not_ready(&self, why: impl Into<String>) {
        let mut state = self.health.lock();
        state.conditions.insert(self.name, Some(why.into()));
        state.remarks.remove(self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_every_condition_holds() {
        let health = Health::new();
        let (snapshot, store) = (health.condition("snapshot"), health.condition("store"));
        assert_eq!(health.not_ready(), [("snapshot", "starting".to_owned()), ("store", "starting".to_owned())]);
        snapshot.ready();
        assert!(!health.is_ready());
        store.ready();
        assert!(health.is_ready() && health.not_ready().is_empty());
        store.ready_but("the disk is nearly full");
        assert!(health.is_ready());
        assert_eq!(health.remarks(), [("store", "the disk is nearly full".to_owned())]);
        store.not_ready("the disk is full");
        assert!(health.remarks().is_empty());
        assert_eq!(health.not_ready(), [("store", "the disk is full".to_owned())]);
    }

    #[test]
    fn draining_is_for_good() {
        let health = Health::new();
        assert!(health.is_ready());
        health.drain();
        health.condition("store").ready();
        assert_eq!(health.not_ready(), [("draining", "shutting down".to_owned())]);
    }
}
