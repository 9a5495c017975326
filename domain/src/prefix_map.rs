//! A map in which the longest prefix that covers a name decides.

use std::collections::HashMap;
use std::sync::Arc;

use crate::name::{NamespacePrefix, RepositoryName};

/// Values by namespace prefix.
#[derive(Clone, Debug)]
pub struct PrefixMap<T> {
    by_prefix: HashMap<Box<str>, Arc<T>>,
}

impl<T> PrefixMap<T> {
    /// The value with the longest prefix that covers `name`.
    ///
    /// Costs one look-up per segment of the name, however many values there are.
    pub fn covering(&self, name: &RepositoryName) -> Option<&Arc<T>> {
        let name = name.as_str();
        let prefixes = name.rmatch_indices('/').map(|(end, _)| &name[..end]);
        prefixes.chain([NamespacePrefix::root().path()]).find_map(|prefix| self.by_prefix.get(prefix))
    }

    /// All values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.by_prefix.values()
    }
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self { by_prefix: HashMap::new() }
    }
}

impl<T> FromIterator<(NamespacePrefix, T)> for PrefixMap<T> {
    /// Of two values with one prefix the later one is kept; the control plane prevents such pairs.
    fn from_iter<I: IntoIterator<Item = (NamespacePrefix, T)>>(values: I) -> Self {
        let by_prefix = values.into_iter().map(|(prefix, value)| (prefix.path().into(), Arc::new(value)));
        Self { by_prefix: by_prefix.collect() }
    }
}
