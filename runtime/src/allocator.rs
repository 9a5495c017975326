//! jemalloc's own threads. They give back what a peak has taken, within seconds, also when nothing is allocated any more.

use tracing::warn;

/// Starts these threads. They have the capabilities that the calling thread has now.
pub fn give_back_in_background() {
    if let Err(error) = tikv_jemalloc_ctl::background_thread::write(true) {
        warn!("memory that is free goes back to the system only when more is taken: {error}");
    }
}
