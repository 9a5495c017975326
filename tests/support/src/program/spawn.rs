//! Starts processes from a thread that lives as long as this process: a parent-death signal is sent when the thread
//! that started the child ends, and a test's thread does not live long.

use std::io;
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

type Order = (Command, Sender<io::Result<Child>>);

static ORDERS: LazyLock<Sender<Order>> = LazyLock::new(|| {
    let (sender, orders) = channel::<Order>();
    let work = move || {
        for (mut command, answer) in orders {
            // The caller may have ended with its test.
            let _ = answer.send(command.spawn());
        }
    };
    thread::Builder::new().name("spawner".to_owned()).spawn(work).expect("a thread can be started");
    sender
});

/// Starts a process.
pub(super) fn spawn(command: Command) -> io::Result<Child> {
    let (answer, started) = channel();
    ORDERS.send((command, answer)).expect("the spawner lives as long as the process");
    started.recv().expect("the spawner answers")
}
