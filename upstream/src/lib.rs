//! entrepot-upstream
