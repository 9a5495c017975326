//! Ends a child process with its parent, however the parent ends.
//!
//! The kernel sends the signal when the *thread* that started the child ends, so that thread must live as long as the
//! process. A change of the child's user clears the signal, so it is set after `Command` has made that change.

use std::io;
use std::process;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::process::Command;

/// Makes the process that `command` starts receive `signal` when the thread that starts it has ended.
#[expect(unsafe_code, reason = "what runs between fork and exec needs `pre_exec`, which is unsafe")]
pub(super) fn end_with_parent(command: &mut Command, signal: Signal) {
    let parent = i32::try_from(process::id()).ok().and_then(Pid::from_raw);
    let prepare = move || {
        set_parent_process_death_signal(Some(signal))?;
        // If the parent ended before this, no signal would ever come.
        if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed, and no allocation. `prepare` makes two
    // bare system calls (prctl and getppid) and builds an error that is not allocated.
    unsafe {
        command.pre_exec(prepare);
    }
}
