//! Checks secrets in such a way that nobody can overload the process with logins.
//!
//! Checking a generated secret costs nothing. Checking a chosen one costs a core for tens of milliseconds. Therefore
//! few of them are checked at once, each key has a limited number of failures per minute from each network, concurrent
//! checks of the same secret are done once, and correct secrets are remembered. An attacker who guesses at a key locks
//! out only itself and its own network, and clients that have logged in before need not wait behind it. Generated
//! secrets are never locked out.
//!
//! An unknown key id is treated like a known one, so that neither the answer nor its timing reveals which ids exist:
//! ids of the generated form like generated keys, all others like chosen ones.

mod turns;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use entrepot_domain::{AccessKeyId, Network};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::access_key::{AccessKeyHash, SECRET_MAX_BYTES};
use turns::{Rank, Turns};

/// How many failures a key has per window from each network, before that network must wait for the next window.
const FAILURES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// How many correct secrets are remembered, and for how long after their last use.
const REMEMBERED: u64 = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(15 * 60);
/// For how many pairs of a key and a network a login is remembered, and for how long.
const KNOWN: u64 = 10_000;
const KNOWN_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Checks secrets within limits. Clones share the limits.
#[derive(Clone)]
pub struct SecretVerifier {
    /// Correct secrets, and checks under way, by [`SecretVerifier::fingerprint`].
    right: moka::future::Cache<[u8; 32], ()>,
    attempts: Arc<Mutex<HashMap<Pair, Attempts>>>,
    /// The pairs that have logged in with a chosen secret.
    known: moka::sync::Cache<Pair, ()>,
    turns: Turns,
    /// Used in place of the hash of an unknown key.
    nobody: Arc<AccessKeyHash>,
    /// Private to this process, so that remembered fingerprints are useless to somebody who reads its memory later.
    fingerprint_key: Arc<hmac::Key>,
}

/// A login attempt.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    /// The claimed key.
    pub key_id: &'a AccessKeyId,
    pub secret: &'a str,
    /// The network that the attempt comes from.
    pub from: Network,
}

/// A key, and the network from which it is used.
type Pair = (AccessKeyId, Network);

/// Attempts that have failed or are under way.
struct Attempts {
    since: Instant,
    count: u32,
}

/// Why a secret was not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotChecked {
    /// There were too many failures with this key from that network.
    #[error("too many attempts, try again in {} s", .retry_after.as_secs().max(1))]
    TooMany {
        /// When to try again.
        retry_after: Duration,
    },
    /// Too many checks are under way.
    #[error("too many secrets are being checked, try again in 1 s")]
    Busy,
}

/// Why a slow check did not find the secret correct.
#[derive(Clone, Copy)]
enum Refusal {
    Wrong,
    NotChecked(NotChecked),
}

impl SecretVerifier {
    pub fn new() -> Self {
        let fingerprint_key = hmac::Key::generate(hmac::HMAC_SHA256, &aws_lc_rs::rand::SystemRandom::new());
        Self {
            right: moka::future::Cache::builder().max_capacity(REMEMBERED).time_to_idle(REMEMBERED_FOR).build(),
            attempts: Arc::default(),
            known: moka::sync::Cache::builder().max_capacity(KNOWN).time_to_idle(KNOWN_FOR).build(),
            turns: Turns::default(),
            nobody: Arc::new(AccessKeyHash::of_nobody()),
            fingerprint_key: Arc::new(fingerprint_key.expect("the system has randomness")),
        }
    }

    /// Whether the login's secret matches `hash`, the hash of its key; `None` means that the key does not exist. The
    /// check then takes as long, and counts as much, as if it did.
    ///
    /// # Errors
    /// If there were too many failures for this key from there, or too many checks are under way.
    pub async fn verify(&self, login: Login<'_>, hash: Option<&AccessKeyHash>) -> Result<bool, NotChecked> {
        let Login { key_id, secret, from } = login;
        if secret.len() > SECRET_MAX_BYTES {
            return Ok(false);
        }
        let hash = match hash {
            Some(hash @ AccessKeyHash::Sha256(_)) => return Ok(hash.matches(secret.as_bytes())),
            None if key_id.is_of_generated_form() => {
                return Ok(AccessKeyHash::Sha256([0; 32]).matches(secret.as_bytes()));
            }
            Some(hash @ AccessKeyHash::Argon2id(_)) => hash,
            None => &self.nobody,
        };
        let pair = (key_id.clone(), from);
        let remembered = self.fingerprint(login, hash, None);
        if self.right.get(&remembered).await.is_some() {
            self.known.insert(pair, ());
            return Ok(true);
        }
        let check = self.check_slowly(&pair, secret, hash);
        // Concurrent attempts are merged only within one network; those of another network are separate.
        let under_way = self.fingerprint(login, hash, Some(from));
        match self.right.try_get_with(under_way, check).await.map_err(|refusal| *refusal) {
            Ok(()) => {
                self.right.insert(remembered, ()).await;
                self.known.insert(pair, ());
                Ok(true)
            }
            Err(Refusal::Wrong) => Ok(false),
            Err(Refusal::NotChecked(why)) => Err(why),
        }
    }

    async fn check_slowly(&self, pair: &Pair, secret: &str, hash: &AccessKeyHash) -> Result<(), Refusal> {
        let failures = self.begin_attempt(pair).map_err(Refusal::NotChecked)?;
        let rank = if self.known.contains_key(pair) { Rank::Known } else { Rank::Stranger { failures } };
        let Some(turn) = self.turns.take(rank).await else {
            self.forgive_attempt(pair);
            return Err(Refusal::NotChecked(NotChecked::Busy));
        };
        let (secret, hash) = (zeroize::Zeroizing::new(secret.to_owned()), hash.clone());
        let right = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            hash.matches(secret.as_bytes())
        });
        // If the caller goes away here, the attempt stays counted: it has cost as much as any other.
        if !right.await.expect("hashing does not panic") {
            return Err(Refusal::Wrong);
        }
        self.forgive_attempt(pair);
        Ok(())
    }

    /// Counts an attempt before its outcome is known, so that many at once cannot exceed the limit. Returns how many
    /// there were before it.
    fn begin_attempt(&self, pair: &Pair) -> Result<u32, NotChecked> {
        let now = Instant::now();
        let mut attempts = self.attempts.lock();
        attempts.retain(|_, attempts| now.duration_since(attempts.since) < WINDOW);
        let own = attempts.entry(pair.clone()).or_insert(Attempts { since: now, count: 0 });
        if own.count >= FAILURES {
            return Err(NotChecked::TooMany { retry_after: (own.since + WINDOW).duration_since(now) });
        }
        own.count += 1;
        Ok(own.count - 1)
    }

    /// Takes an attempt back. A pair without attempts is not kept, so memory is limited by what was hashed.
    fn forgive_attempt(&self, pair: &Pair) {
        if let Entry::Occupied(mut own) = self.attempts.lock().entry(pair.clone()) {
            own.get_mut().count = own.get().count.saturating_sub(1);
            if own.get().count == 0 {
                own.remove();
            }
        }
    }

    /// Identifies a key with a secret, the hash that it was checked against, and optionally a network. A changed hash
    /// is therefore checked again.
    fn fingerprint(&self, login: Login<'_>, hash: &AccessKeyHash, from: Option<Network>) -> [u8; 32] {
        let from = from.map(|from| from.to_string()).unwrap_or_default();
        let mut context = hmac::Context::with_key(&self.fingerprint_key);
        for part in [login.key_id.as_str().as_bytes(), login.secret.as_bytes(), &hash.encode(), from.as_bytes()] {
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

impl fmt::Debug for Login<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}, …, {})", self.key_id, self.from)
    }
}

#[cfg(test)]
mod tests;
