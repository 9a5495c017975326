//! The fields of a resource that a command sets, and the update mask that names them.

use prost_types::FieldMask;

use crate::error::Error;

/// The paths of the fields that were set.
#[derive(Debug, Default)]
pub(super) struct Mask(Vec<String>);

impl Mask {
    /// Sets the field at `path` if there is a value for it.
    pub(super) fn set<T>(&mut self, path: &str, field: &mut T, value: Option<T>) {
        if let Some(value) = value {
            *field = value;
            self.0.push(path.to_owned());
        }
    }

    /// Sets the list at `path` if any text is given for it. Empty texts are dropped, so '' clears a list.
    pub(super) fn set_list(&mut self, path: &str, field: &mut Vec<String>, texts: Vec<String>) {
        let is_given = !texts.is_empty();
        let texts = texts.into_iter().filter(|text| !text.is_empty()).collect();
        self.set(path, field, is_given.then_some(texts));
    }

    /// The mask of an update by `entrepot <command> update`.
    ///
    /// # Errors
    /// If nothing was set.
    pub(super) fn finish(self, command: &str) -> Result<Option<FieldMask>, Error> {
        if self.0.is_empty() {
            return Err(Error::Usage(format!(
                "nothing to change: `entrepot {command} update --help` lists what can be changed"
            )));
        }
        Ok(Some(FieldMask { paths: self.0 }))
    }
}
