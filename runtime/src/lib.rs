//! What any Entrepot process needs before its job: a clock, tasks that shutdown can wait for, readiness, logs and
//! metrics, and the listener that operators look at.

pub mod clock;
pub mod health;
pub mod listen;
pub mod operations;
pub mod tasks;
pub mod telemetry;

mod chain;

pub use chain::chain;
pub use clock::Clock;
pub use health::{Condition, Health};
pub use tasks::Tasks;
pub use telemetry::{LogFormat, Metrics};
