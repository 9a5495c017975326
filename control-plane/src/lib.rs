//! entrepot-control-plane
