//! entrepot-data-plane
