//! Principals and their permission sets.

use entrepot_domain::Action;

use crate::v1 as wire;

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PermissionSet {
    /// Everything.
    Administrator,
    /// Pulling, and reading what can be pulled.
    Puller,
}

impl PermissionSet {
    /// The permitted actions on repositories.
    pub fn actions(self) -> &'static [Action] {
        match self {
            Self::Administrator | Self::Puller => &[Action::Pull, Action::Create, Action::Fill],
        }
    }

    /// The name in snapshots and in the database: that in `entrepot.v1.PermissionSet` without its prefix.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Administrator => "ADMINISTRATOR",
            Self::Puller => "PULLER",
        }
    }

    /// The set with this name in snapshots and in the database.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Administrator, Self::Puller].into_iter().find(|set| set.as_str() == name)
    }

    /// Reads the wire's form.
    ///
    /// # Errors
    /// The valid values.
    pub fn read(wire: i32) -> Result<Self, &'static str> {
        match wire::PermissionSet::try_from(wire) {
            Ok(wire::PermissionSet::Administrator) => Ok(Self::Administrator),
            Ok(wire::PermissionSet::Puller) => Ok(Self::Puller),
            Ok(wire::PermissionSet::Unspecified) | Err(_) => {
                Err("must be PERMISSION_SET_ADMINISTRATOR or PERMISSION_SET_PULLER")
            }
        }
    }

    /// The form on the wire.
    pub fn to_wire(self) -> wire::PermissionSet {
        match self {
            Self::Administrator => wire::PermissionSet::Administrator,
            Self::Puller => wire::PermissionSet::Puller,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back() {
        for set in [PermissionSet::Administrator, PermissionSet::Puller] {
            assert_eq!(PermissionSet::from_name(set.as_str()), Some(set));
            assert_eq!(PermissionSet::read(set.to_wire().into()), Ok(set));
        }
        assert_eq!(PermissionSet::from_name("ROOT"), None);
        assert!(PermissionSet::read(0).is_err() && PermissionSet::read(9).is_err());
    }
}
