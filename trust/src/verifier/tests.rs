use std::sync::atomic::{AtomicUsize, Ordering};

use entrepot_domain::Secret;
use futures_util::future::join_all;

use super::*;
use crate::access_key::{generate_secret, hash_chosen, hash_generated};

const HERE: [u8; 4] = [192, 0, 2, 7];
const SECRET: &str = "correct horse";

async fn chosen(secret: &str) -> AccessKeyHash {
    hash_chosen(&Secret::new(secret.to_owned())).await
}

/// Logs in from an address.
async fn login(
    verifier: &SecretVerifier,
    (key_id, secret): (&str, &str),
    from: [u8; 4],
    hash: Option<&AccessKeyHash>,
) -> Result<bool, NotChecked> {
    let (key_id, from) = (key_id.parse().unwrap(), Network::of(from.into()));
    verifier.verify(Login { key_id: &key_id, secret, from }, hash).await
}

fn is_too_many(result: Result<bool, NotChecked>) -> bool {
    matches!(result, Err(NotChecked::TooMany { .. }))
}

#[tokio::test(start_paused = true)]
async fn guessing_is_stopped_for_the_rest_of_a_minute_where_it_comes_from() {
    let (verifier, hash) = (SecretVerifier::new(), chosen(SECRET).await);
    for guess in 0..FAILURES {
        assert_eq!(login(&verifier, ("admin", &format!("guess {guess}")), HERE, Some(&hash)).await, Ok(false));
    }
    let refused = login(&verifier, ("admin", "one more"), HERE, Some(&hash)).await;
    let Err(NotChecked::TooMany { retry_after }) = refused else { panic!("{refused:?}") };
    assert!(retry_after <= WINDOW && retry_after > Duration::from_secs(30), "{retry_after:?}");
    // The same network is limited, too, and no other network; and another key has its own count.
    assert!(is_too_many(login(&verifier, ("Admin", SECRET), [192, 0, 2, 200], Some(&hash)).await));
    assert_eq!(login(&verifier, ("other", SECRET), HERE, Some(&hash)).await, Ok(true));
    assert_eq!(login(&verifier, ("admin", SECRET), [192, 0, 3, 7], Some(&hash)).await, Ok(true));
    tokio::time::advance(retry_after).await;
    assert_eq!(login(&verifier, ("admin", "yet one more"), HERE, Some(&hash)).await, Ok(false));
}

#[tokio::test]
async fn while_fifty_networks_guess_the_owner_gets_in_at_the_first_try() {
    let (verifier, hash) = (SecretVerifier::new(), chosen(SECRET).await);
    let (guesses, is_in) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let guess = async |network: u8| {
        for guess in 0..20 {
            if is_in.load(Ordering::Relaxed) > 0 && guess > 2 {
                return;
            }
            let _ = login(&verifier, ("admin", &format!("{network}-{guess}")), [127, network, 0, 1], Some(&hash)).await;
            guesses.fetch_add(1, Ordering::Relaxed);
        }
    };
    let owner = async {
        while guesses.load(Ordering::Relaxed) < 70 {
            tokio::task::yield_now().await;
        }
        let result = login(&verifier, ("admin", SECRET), HERE, Some(&hash)).await;
        is_in.store(1, Ordering::Relaxed);
        result
    };
    let (result, _) = tokio::join!(owner, join_all((0..50).map(guess)));
    assert_eq!(result, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn ids_that_nobody_has_are_as_slow_and_as_bounded_as_others() {
    let (verifier, hash) = (SecretVerifier::new(), chosen(SECRET).await);
    for (from, hash) in [(HERE, Some(&hash)), ([192, 0, 3, 7], None)] {
        let mut results = Vec::new();
        for guess in 0..FAILURES + 2 {
            results.push(login(&verifier, ("admin", &format!("guess {guess}")), from, hash).await);
        }
        assert!(results[..FAILURES as usize].iter().all(|result| *result == Ok(false)), "{results:?}");
        assert!(results[FAILURES as usize..].iter().all(|result| is_too_many(*result)), "{results:?}");
    }
    // Ids of the generated form cost nothing, whether they exist or not.
    for _ in 0..3 * FAILURES {
        assert_eq!(login(&verifier, ("AKABCDEFGHIJKLMNOP27", "guess"), HERE, None).await, Ok(false));
    }
    assert!(verifier.attempts.lock().keys().all(|(id, _)| !id.is_of_generated_form()));
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_was_right_is_remembered_through_an_attack() {
    let (verifier, hash) = (SecretVerifier::new(), chosen(SECRET).await);
    assert_eq!(login(&verifier, ("admin", SECRET), HERE, Some(&hash)).await, Ok(true));
    let guesses: Vec<String> = (0..3 * FAILURES).map(|guess| format!("guess {guess}")).collect();
    let results = join_all(guesses.iter().map(|guess| login(&verifier, ("admin", guess), HERE, Some(&hash)))).await;
    let looked_at = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(looked_at, FAILURES as usize);
    for from in [HERE, [198, 51, 100, 7]] {
        assert_eq!(login(&verifier, ("admin", SECRET), from, Some(&hash)).await, Ok(true));
    }
    // Once the secret is changed, the old one is wrong, remembered or not.
    let changed = chosen("battery staple").await;
    tokio::time::advance(WINDOW).await;
    assert_eq!(login(&verifier, ("admin", SECRET), HERE, Some(&changed)).await, Ok(false));
}

#[tokio::test]
async fn a_crowd_with_the_right_secret_all_get_in() {
    let (verifier, hash) = (SecretVerifier::new(), chosen(SECRET).await);
    let crowd = (0..50).map(|_| login(&verifier, ("admin", SECRET), HERE, Some(&hash)));
    assert!(join_all(crowd).await.into_iter().all(|result| result == Ok(true)));
    assert!(verifier.attempts.lock().is_empty());
}

#[tokio::test]
async fn generated_secrets_are_never_locked_out() {
    let (verifier, secret) = (SecretVerifier::new(), generate_secret());
    let (hash, id) = (hash_generated(&secret), "AKABCDEFGHIJKLMNOP27");
    for _ in 0..3 * FAILURES {
        assert_eq!(login(&verifier, (id, "guess"), HERE, Some(&hash)).await, Ok(false));
    }
    assert_eq!(login(&verifier, (id, secret.expose()), HERE, Some(&hash)).await, Ok(true));
}

#[tokio::test(start_paused = true)]
async fn when_all_turns_are_taken_the_wait_has_an_end_but_for_who_has_logged_in_before() {
    let (verifier, hash) = (SecretVerifier::new(), chosen(SECRET).await);
    let taken = verifier.turns.take(Rank::Stranger { failures: 0 }).await.unwrap();
    let refused = login(&verifier, ("admin", SECRET), HERE, Some(&hash)).await.unwrap_err();
    assert_eq!(refused.to_string(), "too many secrets are being checked, try again in 1 s");
    assert!(verifier.attempts.lock().is_empty());
    drop(taken);
    assert_eq!(login(&verifier, ("admin", SECRET), HERE, Some(&hash)).await, Ok(true));
    let _taken = verifier.turns.take(Rank::Stranger { failures: 0 }).await.unwrap();
    assert_eq!(login(&verifier, ("admin", "a typing error"), HERE, Some(&hash)).await, Ok(false));
}

#[tokio::test]
async fn huge_secrets_are_not_hashed() {
    let (verifier, hash) = (SecretVerifier::new(), chosen(SECRET).await);
    let huge = "x".repeat(SECRET_MAX_BYTES + 1);
    assert_eq!(login(&verifier, ("admin", &huge), HERE, Some(&hash)).await, Ok(false));
    assert!(verifier.attempts.lock().is_empty());
}
