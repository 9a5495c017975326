//! The account and region of this registry, in the words of AWS. They are part of the names that clients use.

use entrepot_runtime::config::{Reader, Reported, Setting};

/// The length of an account's id.
const ID_DIGITS: usize = 12;
/// The longest name of a region.
const REGION_MAX_BYTES: usize = 32;

/// `[account]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountSettings {
    /// The account.
    pub id: AccountId,
    /// The region.
    pub region: Region,
}

/// The id of an account: twelve digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountId(String);

/// The name of a region, such as `us-east-1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region(String);

impl AccountSettings {
    /// Reads the section.
    ///
    /// # Errors
    /// If something in it is wrong; the reader keeps the mistakes.
    pub fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section("account");
        let (id, region) = (section.get("id", "000000000000"), section.get("region", "us-east-1"));
        Ok(Self { id: id?, region: region? })
    }
}

impl AccountId {
    /// The digits as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Region {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for AccountId {
    fn from_text(text: &str) -> Result<Self, String> {
        let legal = text.len() == ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
        if legal { Ok(Self(text.to_owned())) } else { Err(format!("must be {ID_DIGITS} digits in quotes")) }
    }
}

impl Setting for Region {
    fn from_text(text: &str) -> Result<Self, String> {
        let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let legal = (1..=REGION_MAX_BYTES).contains(&text.len())
            && text.bytes().all(is_part)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if legal { Ok(Self(text.to_owned())) } else { Err("must be a region, such as `us-east-1`".to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_twelve_digits_and_a_region_is_a_name() {
        assert_eq!(
            AccountId::from_text("012345678901").map(|id| id.as_str().to_owned()),
            Ok("012345678901".to_owned())
        );
        for text in ["", "12345678901", "1234567890123", "12345678901a", "１２３４"] {
            assert!(AccountId::from_text(text).is_err(), "{text}");
        }
        assert_eq!(Region::from_text("eu-central-1").map(|region| region.as_str().len()), Ok(12));
        for text in ["", "EU", "-a", "a-", "a.b", &"a".repeat(33)] {
            assert!(Region::from_text(text).is_err(), "{text}");
        }
    }
}
