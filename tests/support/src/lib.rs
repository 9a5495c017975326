//! entrepot-test-support
