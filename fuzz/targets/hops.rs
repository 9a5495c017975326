//! `Via` in requests: a request that has come through a registry is never accepted there again.

#![no_main]

use entrepot_domain::Hops;
use entrepot_domain::hops::Loop;
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

const OWN: Uuid = Uuid::from_u128(11);

fuzz_target!(|values: Vec<&[u8]>| {
    let hops = Hops::read(values);
    let sent = hops.and(OWN).to_string();
    let again = Hops::read([sent.as_bytes()]).check(OWN);
    assert!(again.is_err(), "{sent}");
    // Only a request that has come too far to be examined completely may be refused for that reason.
    assert!(again == Err(Loop::Returned) || hops.check(OWN) == Err(Loop::TooLong));
});
