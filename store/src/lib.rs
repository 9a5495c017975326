//! entrepot-store
