//! What every Entrepot process needs: configuration, a clock, tasks that shutdown can wait for, readiness, listeners
//! with TLS, logs, metrics and traces, and the listener for operators.

pub mod allocator;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod forwarded;
pub mod health;
pub mod listen;
pub mod memory;
pub mod operations;
pub mod program;
pub mod retry;
pub mod tasks;
pub mod telemetry;
pub mod tls;

mod chain;

pub use chain::chain;
pub use clock::Clock;
pub use health::{Condition, Health};
pub use listen::Listener;
pub use program::{Drain, Program};
pub use retry::Backoff;
pub use tasks::Tasks;
pub use telemetry::{LogFormat, Metrics, Telemetry};
pub use tls::Tls;
