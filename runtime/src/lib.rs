//! entrepot-runtime
