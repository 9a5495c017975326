//! `Range` headers of clients: a part is never empty, and always inside the blob.

#![no_main]

use entrepot_domain::range::{Wanted, wanted};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &str)| {
    let (size_bytes, header) = input;
    for header in [header.to_owned(), format!("bytes={header}")] {
        if let Wanted::Part(part) = wanted(Some(&header), size_bytes) {
            assert!(part.start < part.end && part.end <= size_bytes, "{header:?} of {size_bytes}: {part:?}");
        }
    }
});
