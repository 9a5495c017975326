//! Checks secrets without letting anybody starve the process with logins.
//!
//! A generated secret costs nothing to check. A chosen one costs a core for tens of milliseconds, so: few are checked
//! at once, each key has only so many failures a minute, concurrent checks of the same secret are one, and a secret
//! that was right is remembered. Whoever guesses at a key can thus lock out those who were not seen before, for up to
//! a minute at a time; generated secrets are never locked out.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::access_key::{AccessKeyHash, SECRET_MAX_BYTES, SLOW_HASHES};

/// How many failures a key has in each window before it must wait for the next one.
const FAILURES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// How long a check waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many secrets are remembered, and how long after they were last used.
const REMEMBERED: u64 = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(15 * 60);

/// Checks secrets within bounds. Clones share the bounds.
#[derive(Clone)]
pub struct SecretVerifier {
    /// Right secrets, by [`SecretVerifier::fingerprint`].
    right: moka::future::Cache<[u8; 32], ()>,
    attempts: Arc<Mutex<HashMap<String, Attempts>>>,
    turns: Arc<Semaphore>,
    /// Of this process alone: what is remembered is of no use to anybody who reads its memory later.
    fingerprint_key: Arc<hmac::Key>,
}

/// Attempts that have failed or are under way.
struct Attempts {
    since: Instant,
    count: u32,
}

/// Too many attempts: the secret was not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many attempts, try again in {} s", .retry_after.as_secs().max(1))]
pub struct TooMany {
    /// When to try again.
    pub retry_after: Duration,
}

/// Why a slow check did not find the secret right.
#[derive(Clone, Copy)]
enum Refusal {
    Wrong,
    TooMany(TooMany),
}

impl SecretVerifier {
    /// A verifier that remembers nothing yet.
    pub fn new() -> Self {
        let fingerprint_key = hmac::Key::generate(hmac::HMAC_SHA256, &aws_lc_rs::rand::SystemRandom::new());
        Self {
            right: moka::future::Cache::builder().max_capacity(REMEMBERED).time_to_idle(REMEMBERED_FOR).build(),
            attempts: Arc::default(),
            turns: Arc::new(Semaphore::new(SLOW_HASHES)),
            fingerprint_key: Arc::new(fingerprint_key.expect("the system has randomness")),
        }
    }

    /// Whether `secret` is the one of the key `key_id`, of which `hash` is kept. `key_id` is one that exists.
    ///
    /// # Errors
    /// If there were too many failures for this key, or too much is being checked already.
    pub async fn verify(&self, key_id: &str, secret: &str, hash: &AccessKeyHash) -> Result<bool, TooMany> {
        if secret.len() > SECRET_MAX_BYTES {
            return Ok(false);
        }
        if let AccessKeyHash::Sha256(_) = hash {
            return Ok(hash.matches(secret.as_bytes()));
        }
        let check = self.check_slowly(key_id, secret, hash);
        match self.right.try_get_with(self.fingerprint(key_id, secret, hash), check).await.map_err(|refusal| *refusal) {
            Ok(()) => Ok(true),
            Err(Refusal::Wrong) => Ok(false),
            Err(Refusal::TooMany(too_many)) => Err(too_many),
        }
    }

    async fn check_slowly(&self, key_id: &str, secret: &str, hash: &AccessKeyHash) -> Result<(), Refusal> {
        self.begin_attempt(key_id).map_err(Refusal::TooMany)?;
        let Ok(turn) = tokio::time::timeout(PATIENCE, Arc::clone(&self.turns).acquire_owned()).await else {
            self.forgive_attempt(key_id);
            return Err(Refusal::TooMany(TooMany { retry_after: Duration::from_secs(1) }));
        };
        let turn = turn.expect("the semaphore is never closed");
        let (secret, hash) = (zeroize::Zeroizing::new(secret.to_owned()), hash.clone());
        let right = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            hash.matches(secret.as_bytes())
        });
        // An attempt whose caller goes away here stays counted: it has cost as much as any other.
        if !right.await.expect("hashing does not panic") {
            return Err(Refusal::Wrong);
        }
        self.forgive_attempt(key_id);
        Ok(())
    }

    /// Counts an attempt before its outcome is known, so that many at once do not get past the limit.
    fn begin_attempt(&self, key_id: &str) -> Result<(), TooMany> {
        let now = Instant::now();
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.retain(|_, attempts| now.duration_since(attempts.since) < WINDOW);
        let own = attempts.entry(key_id.to_owned()).or_insert(Attempts { since: now, count: 0 });
        if own.count >= FAILURES {
            return Err(TooMany { retry_after: (own.since + WINDOW).duration_since(now) });
        }
        own.count += 1;
        Ok(())
    }

    fn forgive_attempt(&self, key_id: &str) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = attempts.get_mut(key_id) {
            own.count = own.count.saturating_sub(1);
        }
    }

    /// Identifies a key with a secret and the hash that it was checked against, so that a changed hash asks again.
    fn fingerprint(&self, key_id: &str, secret: &str, hash: &AccessKeyHash) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.fingerprint_key);
        for part in [key_id.as_bytes(), secret.as_bytes(), &hash.encode()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.sign().as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
    }
}

impl Default for SecretVerifier {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SecretVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretVerifier(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_key::{generate_secret, hash_chosen, hash_generated};
    use entrepot_domain::Secret;
    use futures_util::future::join_all;

    async fn chosen(secret: &str) -> AccessKeyHash {
        hash_chosen(&Secret::new(secret.to_owned())).await
    }

    #[tokio::test(start_paused = true)]
    async fn guessing_is_stopped_for_the_rest_of_a_minute() {
        let (verifier, hash) = (SecretVerifier::new(), chosen("correct horse").await);
        for guess in 0..FAILURES {
            assert_eq!(verifier.verify("admin", &format!("guess {guess}"), &hash).await, Ok(false));
        }
        let refused = verifier.verify("admin", "one more", &hash).await.unwrap_err();
        assert!(refused.retry_after <= WINDOW && refused.retry_after > Duration::from_secs(30), "{refused:?}");
        assert!(verifier.verify("admin", "correct horse", &hash).await.is_err());
        // Another key has its own count.
        assert_eq!(verifier.verify("other", "correct horse", &hash).await, Ok(true));
        tokio::time::advance(refused.retry_after).await;
        assert_eq!(verifier.verify("admin", "correct horse", &hash).await, Ok(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_was_right_is_remembered_through_an_attack() {
        let (verifier, hash) = (SecretVerifier::new(), chosen("correct horse").await);
        assert_eq!(verifier.verify("admin", "correct horse", &hash).await, Ok(true));
        let guesses: Vec<String> = (0..3 * FAILURES).map(|guess| format!("guess {guess}")).collect();
        let results = join_all(guesses.iter().map(|guess| verifier.verify("admin", guess, &hash))).await;
        let looked_at = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(looked_at, FAILURES as usize);
        assert_eq!(verifier.verify("admin", "correct horse", &hash).await, Ok(true));
        // Once the secret is another one, the old one is wrong, remembered or not.
        let changed = chosen("battery staple").await;
        tokio::time::advance(WINDOW).await;
        assert_eq!(verifier.verify("admin", "correct horse", &changed).await, Ok(false));
    }

    #[tokio::test]
    async fn a_crowd_with_the_right_secret_all_get_in() {
        let (verifier, hash) = (SecretVerifier::new(), chosen("correct horse").await);
        let crowd = (0..50).map(|_| verifier.verify("admin", "correct horse", &hash));
        assert!(join_all(crowd).await.into_iter().all(|result| result == Ok(true)));
        let attempts = verifier.attempts.lock().unwrap();
        assert_eq!(attempts["admin"].count, 0);
    }

    #[tokio::test]
    async fn generated_secrets_are_never_locked_out() {
        let (verifier, secret) = (SecretVerifier::new(), generate_secret());
        let hash = hash_generated(&secret);
        for _ in 0..3 * FAILURES {
            assert_eq!(verifier.verify("ak1", "guess", &hash).await, Ok(false));
        }
        assert_eq!(verifier.verify("ak1", secret.expose(), &hash).await, Ok(true));
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_turns_are_taken_the_wait_has_an_end() {
        let (verifier, hash) = (SecretVerifier::new(), chosen("correct horse").await);
        let _turns = verifier.turns.acquire_many(2).await.unwrap();
        let refused = verifier.verify("admin", "correct horse", &hash).await.unwrap_err();
        assert_eq!(refused.to_string(), "too many attempts, try again in 1 s");
        assert_eq!(verifier.attempts.lock().unwrap()["admin"].count, 0);
    }

    #[tokio::test]
    async fn huge_secrets_are_not_hashed() {
        let (verifier, hash) = (SecretVerifier::new(), chosen("correct horse").await);
        assert_eq!(verifier.verify("admin", &"x".repeat(SECRET_MAX_BYTES + 1), &hash).await, Ok(false));
        assert!(verifier.attempts.lock().unwrap().is_empty());
    }
}
