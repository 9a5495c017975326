//! Contains no code: the tests are the targets in the manifest.
