//! What can happen next.

use super::*;

impl Setup {
    pub(super) fn node_actions(&self, world: &World, at: u8, may_fail: bool, actions: &mut Vec<Action>) {
        let node = &world.nodes[usize::from(at)];
        match node.effects.first() {
            Some(Effect::Look | Effect::Commit) if may_fail => {
                actions.extend([Action::Effect(at), Action::EffectFails(at)]);
            }
            Some(_) => actions.push(Action::Effect(at)),
            None => {}
        }
        if node.body.is_some() && node.effects.is_empty() && node.fill.room_bytes() > 0 {
            actions.push(Action::Fetch(at, false));
            if may_fail {
                actions.extend([Action::Fetch(at, true), Action::Break(at)]);
            }
        }
        if node.ahead.is_some() && node.effects.is_empty() {
            actions.push(Action::FetchAhead(at, false));
            if may_fail {
                actions.extend([Action::FetchAhead(at, true), Action::BreakAhead(at)]);
            }
            actions.push(Action::Unwant(at));
        }
        if node.store.is_some() && node.effects.is_empty() {
            actions.push(Action::Store(at));
        }
        if node.fill.phase() == Phase::Following && node.effects.is_empty() {
            self.follower_actions(world, at, may_fail, actions);
        }
        let waits = matches!(node.fill.phase(), Phase::Following | Phase::Committing);
        if self.late && node.fill.is_verified() && waits && !node.fill.is_late {
            actions.push(Action::Late(at));
        }
        for reader in 0..node.readers.len() as u8 {
            self.reader_actions(world, at, reader, actions);
        }
        let is_open = !matches!(node.fill.phase(), Phase::Finished(_));
        if is_open && node.effects.is_empty() && self.drain {
            // Followers are readers.
            if !node.is_read() && !world.is_followed(at) {
                actions.push(Action::Abandon(at));
            }
            if at == 0 && !node.draining {
                actions.push(Action::Drain(at));
            }
        }
        if is_open && may_fail && self.spool && node.effects.is_empty() {
            actions.push(Action::SpoolFails(at));
        }
        if may_fail && node.life == 0 && node.is_read() {
            actions.push(Action::Crash(at));
        }
    }

    pub(super) fn follower_actions(&self, world: &World, at: u8, may_fail: bool, actions: &mut Vec<Action>) {
        let node = &world.nodes[usize::from(at)];
        match world.leader(usize::from(at)) {
            Some(leader) => {
                if leader.fill.landed_bytes() > node.fill.landed_bytes() {
                    actions.push(Action::Peer(at, false));
                    if may_fail {
                        actions.push(Action::Peer(at, true));
                    }
                }
                let has_all = leader.fill.landed_bytes() == node.fill.landed_bytes();
                match leader.fill.phase() {
                    Phase::Finished(Outcome::Stored) if world.object.is_some() => actions.push(Action::LeaderEnds(at)),
                    Phase::Finished(Outcome::Uncached) if has_all => actions.push(Action::LeaderEnds(at)),
                    _ => {}
                }
                if may_fail {
                    actions.push(Action::LeaderLost(at));
                }
            }
            None => actions.push(Action::LeaderLost(at)),
        }
    }

    pub(super) fn reader_actions(&self, world: &World, at: u8, index: u8, actions: &mut Vec<Action>) {
        let node = &world.nodes[usize::from(at)];
        let reader = &node.readers[usize::from(index)];
        if reader.outcome != Reading::Open {
            return;
        }
        let next = u64::from(reader.at);
        let is_over = matches!(node.fill.phase(), Phase::Finished(_)) && node.effects.is_empty();
        if is_over || self.mutant.until(&node.fill, next) > next {
            actions.push(Action::Send(at, index));
        }
        if self.ranges && node.fill.phase() == Phase::Leading && next > node.fill.landed_bytes() && node.ahead.is_none()
        {
            actions.push(Action::Want(at, index));
        }
        if self.drain {
            actions.push(Action::HangUp(at, index));
        }
    }
}
