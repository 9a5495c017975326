//! The store's records: where they are ([`layout`]), what they say, and how they are read and replaced. Both planes
//! write records through this crate alone.

pub use entrepot_store::layout;
pub use entrepot_store::records::*;
