//! Rules for secrets that people choose: nothing that an attacker guesses in the first thousand attempts.

use std::collections::HashSet;
use std::sync::LazyLock;

use entrepot_domain::{AccessKeyId, Secret};

use super::{CHOSEN_MIN_CHARACTERS, SECRET_MAX_BYTES};

/// Common guesses, in lower case and without trailing digits.
static COMMON: LazyLock<HashSet<&'static str>> = LazyLock::new(|| include_str!("common.txt").lines().collect());

/// Why a chosen secret is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChosenSecretError {
    /// It is too short or too long.
    #[error("the secret must have at least {CHOSEN_MIN_CHARACTERS} characters and at most {SECRET_MAX_BYTES} bytes")]
    Length,
    #[error(
        "the secret is one that is guessed at once ({0}): choose another one, such as what `openssl rand -base64 24` gives"
    )]
    Guessable(Guessable),
}

/// Why a secret is easy to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Guessable {
    #[error("it is the key's id")]
    KeyId,
    /// It is a single character repeated.
    #[error("it is one repeated character")]
    Repeated,
    /// It is a part of the alphabet or of the digits, forwards or backwards.
    #[error("it is a plain run of characters")]
    Run,
    /// It is a common password, or a placeholder.
    #[error("it is a common password or a placeholder, perhaps with digits behind it")]
    Common,
}

/// Checks that a person may choose this secret for the key `id`.
///
/// # Errors
/// If it is too short, too long, or easy to guess.
pub fn check_chosen(id: &AccessKeyId, secret: &Secret<String>) -> Result<(), ChosenSecretError> {
    check_length(secret)?;
    guessable(id, secret.expose()).map_or(Ok(()), |why| Err(ChosenSecretError::Guessable(why)))
}

/// Checks the length of a chosen secret.
///
/// # Errors
/// If it is too short or too long.
pub fn check_length(secret: &Secret<String>) -> Result<(), ChosenSecretError> {
    let secret = secret.expose();
    let legal = secret.chars().count() >= CHOSEN_MIN_CHARACTERS && secret.len() <= SECRET_MAX_BYTES;
    if legal { Ok(()) } else { Err(ChosenSecretError::Length) }
}

fn guessable(id: &AccessKeyId, secret: &str) -> Option<Guessable> {
    let lower = secret.to_lowercase();
    let characters: Vec<u32> = lower.chars().map(u32::from).collect();
    if lower.eq_ignore_ascii_case(id.as_str()) {
        return Some(Guessable::KeyId);
    }
    if has_steps(&characters, |from, to| from == to) {
        return Some(Guessable::Repeated);
    }
    if has_steps(&characters, follows) || has_steps(&characters, |from, to| follows(to, from)) {
        return Some(Guessable::Run);
    }
    let word = lower.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '_', '.']);
    (COMMON.contains(lower.as_str()) || COMMON.contains(word)).then_some(Guessable::Common)
}

fn has_steps(characters: &[u32], is_step: impl Fn(u32, u32) -> bool) -> bool {
    characters.windows(2).all(|pair| is_step(pair[0], pair[1]))
}

/// Whether `to` comes right after `from`; after 9 comes 0, as on keyboards.
fn follows(from: u32, to: u32) -> bool {
    from.checked_add(1) == Some(to) || (from, to) == (u32::from('9'), u32::from('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &str, secret: &str) -> Result<(), ChosenSecretError> {
        check_chosen(&id.parse().unwrap(), &Secret::new(secret.to_owned()))
    }

    #[test]
    fn chosen_secrets_have_a_least_and_a_greatest_length() {
        for secret in ["1234567", "éééé", "k3=x9!p", &"xy".repeat(513)] {
            assert_eq!(check("admin", secret), Err(ChosenSecretError::Length), "{secret}");
        }
        assert_eq!(check("admin", "k3=x9!pq"), Ok(()));
        assert_eq!(check("admin", &"xy".repeat(512)), Ok(()));
    }

    #[test]
    fn what_is_guessed_at_once_is_refused() {
        for (secret, why) in [
            ("operator-key", Guessable::KeyId),
            ("Operator-Key", Guessable::KeyId),
            ("aaaaaaaa", Guessable::Repeated),
            ("00000000000", Guessable::Repeated),
            ("ééééééééé", Guessable::Repeated),
            ("12345678", Guessable::Run),
            ("1234567890", Guessable::Run),
            ("87654321", Guessable::Run),
            ("abcdefgh", Guessable::Run),
            ("StuVwXyz", Guessable::Run),
            ("hgfedcba", Guessable::Run),
            ("<secret>", Guessable::Common),
            ("<SECRET>", Guessable::Common),
            ("changeme", Guessable::Common),
            ("CHANGE-ME", Guessable::Common),
            ("change-me-2026", Guessable::Common),
            ("password", Guessable::Common),
            ("Password123", Guessable::Common),
            ("admin123456789", Guessable::Common),
            ("adminadmin", Guessable::Common),
            ("secretsecret", Guessable::Common),
            ("qwertyuiop", Guessable::Common),
            ("letmein1", Guessable::Common),
            ("entrepot", Guessable::Common),
            ("1q2w3e4r", Guessable::Common),
        ] {
            assert_eq!(check("operator-key", secret), Err(ChosenSecretError::Guessable(why)), "{secret}");
        }
    }

    #[test]
    fn what_people_think_up_is_taken() {
        for secret in
            ["correct horse", "correct-horse", "ziemlich langes Wort", "Bugs-7f3a-secret", "12345679", "p4ss-of-mine"]
        {
            assert_eq!(check("admin", secret), Ok(()), "{secret}");
        }
    }

    #[test]
    fn the_list_can_match() {
        for line in include_str!("common.txt").lines() {
            assert_eq!(line, line.trim().to_lowercase());
            assert!(!line.is_empty());
        }
    }
}
