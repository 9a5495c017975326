//! The sections of the configuration that both planes read, and how both open the store that these sections name.
//!
//! Neither plane knows the other, and the store knows nothing about configuration. Without this crate each plane would
//! read the same sections in its own way, and one file could not serve both.

#![warn(missing_docs)]

pub mod account;
pub mod ca_file;
pub mod keys;
pub mod listener;
pub mod networks;
pub mod open_store;
pub mod process;
pub mod secret;
pub mod store;

pub use account::{AccountId, AccountSettings, Region};
pub use ca_file::ca_file;
pub use keys::{ControlKeys, NodeKeys};
pub use listener::ListenerSettings;
pub use networks::trusted_proxies;
pub use open_store::{OpenStoreError, open_store};
pub use process::{DrainSettings, OperationsSettings, TelemetrySettings};
pub use secret::{required_secret, secret};
pub use store::StoreSettings;
