//! The privileges of `up` when root has started it.

use std::io;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use tracing::warn;

/// What is kept: giving the database's folder to the user that runs Postgres, running Postgres as that user, and
/// stopping it.
const KEPT: CapabilitySet =
    CapabilitySet::CHOWN.union(CapabilitySet::SETUID).union(CapabilitySet::SETGID).union(CapabilitySet::KILL);

/// Gives up all of root's capabilities except [`KEPT`], for this thread and all threads that it starts later. Other
/// users have none that matter.
pub(crate) fn drop_most_privileges() {
    let reduced = capabilities(None).and_then(|has| {
        let kept = CapabilitySets {
            effective: has.effective & KEPT,
            permitted: has.permitted & KEPT,
            inheritable: has.inheritable & KEPT,
        };
        set_capabilities(None, kept)
    });
    if let Err(error) = reduced {
        warn!("the capabilities of this process stay as they are: {error}");
    }
}

/// Makes this thread, and everything that it starts, run as another user for good.
pub(crate) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}
