//! entrepot-trust
