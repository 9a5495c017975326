//! Updates: which sent fields replace stored ones.

use entrepot_proto::convert::Violations;
use prost_types::FieldMask;

/// A field of the resource `R`.
pub(super) struct Field<R> {
    path: &'static str,
    /// Whether it is set in a message, for updates without a mask.
    is_set: fn(&R) -> bool,
    rule: Rule<R>,
}

enum Rule<R> {
    /// It can be changed.
    Mutable { copy: fn(&R, &mut R) },
    /// It cannot be changed; sending the stored value is fine.
    Immutable { is_same: fn(&R, &R) -> bool },
    /// Whatever is sent is ignored.
    OutputOnly,
}

impl<R> Field<R> {
    pub(super) const fn mutable(path: &'static str, is_set: fn(&R) -> bool, copy: fn(&R, &mut R)) -> Self {
        Self { path, is_set, rule: Rule::Mutable { copy } }
    }

    pub(super) const fn immutable(path: &'static str, is_set: fn(&R) -> bool, is_same: fn(&R, &R) -> bool) -> Self {
        Self { path, is_set, rule: Rule::Immutable { is_same } }
    }

    pub(super) const fn output_only(path: &'static str) -> Self {
        Self { path, is_set: |_| false, rule: Rule::OutputOnly }
    }
}

/// Copies the fields that the mask names from `sent` to `stored`: with the mask `*` all fields, and without a mask
/// those that are set.
///
/// # Errors
/// Names every unknown path, and every immutable field that would change.
pub(super) fn apply<R>(
    resource: &str,
    fields: &[Field<R>],
    mask: Option<&FieldMask>,
    sent: &R,
    stored: &mut R,
) -> Result<(), Violations> {
    let mut violations = Violations::default();
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    for path in paths.iter().filter(|path| *path != "*" && !fields.iter().any(|field| field.path == **path)) {
        let known: Vec<&str> = fields.iter().map(|field| field.path).collect();
        violations.add("update_mask", format!("names `{path}`, which is not a field; these are: {}", known.join(", ")));
    }
    let (all, absent) = (paths.iter().any(|path| path == "*"), paths.is_empty());
    for field in fields {
        let named = paths.iter().any(|path| path == field.path);
        let is_set = (field.is_set)(sent);
        match &field.rule {
            Rule::Mutable { copy } if named || all || (absent && is_set) => copy(sent, stored),
            Rule::Immutable { is_same } if (named || ((all || absent) && is_set)) && !is_same(sent, stored) => {
                violations.add(format!("{resource}.{}", field.path), "cannot be changed; create another one instead");
            }
            Rule::Mutable { .. } | Rule::Immutable { .. } | Rule::OutputOnly => {}
        }
    }
    violations.finish(Some(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Thing {
        kind: u8,
        size: u8,
        on: bool,
    }

    const FIELDS: &[Field<Thing>] = &[
        Field::immutable("kind", |thing| thing.kind != 0, |sent, stored| sent.kind == stored.kind),
        Field::mutable("size", |thing| thing.size != 0, |sent, stored| stored.size = sent.size),
        Field::mutable("on", |thing| thing.on, |sent, stored| stored.on = sent.on),
        Field::output_only("etag"),
    ];

    fn update(paths: Option<&[&str]>, sent: &Thing) -> Result<Thing, String> {
        let mut stored = Thing { kind: 1, size: 5, on: true };
        let mask = paths.map(|paths| FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
        apply("thing", FIELDS, mask.as_ref(), sent, &mut stored).map_err(|violations| violations.to_string())?;
        Ok(stored)
    }

    #[test]
    fn the_mask_says_what_changes_and_without_one_what_is_set() {
        let sent = Thing { kind: 1, size: 7, on: false };
        let changed = |size, on| Ok(Thing { kind: 1, size, on });
        assert_eq!(update(None, &sent), changed(7, true));
        assert_eq!(update(Some(&[]), &sent), changed(7, true));
        assert_eq!(update(Some(&["on"]), &sent), changed(5, false));
        assert_eq!(update(Some(&["*"]), &sent), changed(7, false));
        assert_eq!(update(Some(&["etag"]), &sent), changed(5, true));
    }

    #[test]
    fn unknown_paths_and_changes_of_what_stays_are_refused_together() {
        let sent = Thing { kind: 2, ..Thing::default() };
        let error = update(Some(&["kind", "colour"]), &sent).unwrap_err();
        assert!(error.contains("names `colour`") && error.contains("`thing.kind` cannot be changed"), "{error}");
        assert!(update(None, &sent).is_err());
        assert!(update(Some(&["kind"]), &Thing::default()).unwrap_err().contains("thing.kind"));
        assert!(update(Some(&["size"]), &sent).is_ok());
        assert!(update(Some(&["*"]), &Thing::default()).is_ok());
    }
}
