//! SHA-256 in the fastest code that this machine has: `sha2` where the processor has instructions for it, otherwise
//! whichever of `sha2` and AWS-LC is measured to be faster.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};
use sha2::Digest as _;

/// How many bytes are hashed to compare the two.
const SAMPLE_BYTES: usize = 64 * 1024;
/// How often, of which the fastest counts: a process may be interrupted.
const SAMPLES: usize = 5;

/// Code that computes SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Sha2,
    AwsLc,
}

/// A hash of what was taken so far, with the methods of `sha2::Digest`.
#[derive(Clone)]
pub(super) enum Sha256 {
    Sha2(sha2::Sha256),
    // Boxed because it is much larger than the other one.
    AwsLc(Box<Context>),
}

impl Sha256 {
    pub(super) fn new() -> Self {
        Self::of(Code::fastest())
    }

    fn of(code: Code) -> Self {
        match code {
            Code::Sha2 => Self::Sha2(sha2::Sha256::new()),
            Code::AwsLc => Self::AwsLc(Box::new(Context::new(&SHA256))),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha2(hash) => hash.update(bytes),
            Self::AwsLc(hash) => hash.update(bytes),
        }
    }

    pub(super) fn finalize(self) -> Vec<u8> {
        match self {
            Self::Sha2(hash) => hash.finalize().to_vec(),
            Self::AwsLc(hash) => hash.finish().as_ref().to_vec(),
        }
    }
}

impl Code {
    /// The faster one, which is found out once.
    fn fastest() -> Self {
        static FASTEST: OnceLock<Code> = OnceLock::new();
        *FASTEST.get_or_init(|| {
            if has_instructions() || Self::Sha2.sample() <= Self::AwsLc.sample() { Self::Sha2 } else { Self::AwsLc }
        })
    }

    /// How long it takes to hash the sample.
    fn sample(self) -> Duration {
        let sample = vec![0x5a; SAMPLE_BYTES];
        let times = (0..SAMPLES).map(|_| {
            let began = Instant::now();
            let mut hash = Sha256::of(self);
            hash.update(&sample);
            std::hint::black_box(hash.finalize());
            began.elapsed()
        });
        times.min().unwrap_or_default()
    }
}

/// Whether the processor has instructions for SHA-256, which `sha2` uses.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn has_instructions() -> bool {
    std::arch::is_x86_feature_detected!("sha")
}

/// Whether the processor has instructions for SHA-256, which `sha2` uses.
#[cfg(target_arch = "aarch64")]
fn has_instructions() -> bool {
    std::arch::is_aarch64_feature_detected!("sha2")
}

/// Whether the processor has instructions for SHA-256, which `sha2` uses.
#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn has_instructions() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_codes_compute_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400) {
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let [one, other] = [Code::Sha2, Code::AwsLc].map(|code| {
                let mut hash = Sha256::of(code);
                hash.update(head);
                let mut copy = hash.clone();
                hash.update(tail);
                copy.update(tail);
                (hash.finalize(), copy.finalize())
            });
            prop_assert_eq!(&one.0, &one.1);
            prop_assert_eq!(one, other);
        }
    }

    #[test]
    fn with_instructions_for_it_sha2_is_taken() {
        let [sha2, aws_lc] = [Code::Sha2, Code::AwsLc].map(Code::sample);
        println!("measured: {SAMPLE_BYTES} bytes take {sha2:?} with sha2 and {aws_lc:?} with AWS-LC");
        assert!(!has_instructions() || Code::fastest() == Code::Sha2);
    }
}
