//! Images for the load: always new ones, and those of a while ago.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use entrepot_test_support::{FakeUpstream, images};
use parking_lot::Mutex;

use super::strikes::Field;
use crate::dice::Dice;
use crate::reader::Wanted;

/// How many images can be pulled again.
const WINDOW: usize = 300;
/// Every so many images has a large layer.
const LARGE_EVERY: u64 = 150;
const LARGE: usize = 20 << 20;
/// How large the others are.
const SMALLEST: usize = 50 << 10;
const LARGEST: usize = 300 << 10;

/// All images that can be pulled.
pub(super) struct Library {
    upstream: Arc<FakeUpstream>,
    dice: Mutex<Dice>,
    /// Layers are pieces of it with a number in front.
    bytes: Vec<u8>,
    images: Mutex<Vec<Arc<Published>>>,
    /// The last one with a large layer, for many to pull at once.
    large: Mutex<Option<Arc<Published>>>,
    next: AtomicU64,
}

/// An image.
pub(super) struct Published {
    repository: String,
    /// What it consists of: the manifest, then all blobs.
    pub(super) parts: Vec<Wanted>,
    /// When it was pulled whole, from when to when; a pull that nothing disturbed, if there was one.
    pulled: Mutex<Option<(Instant, Instant)>>,
}

impl Published {
    /// Whether it is certainly in the bucket.
    pub(super) fn is_kept(&self, field: &Field) -> bool {
        self.pulled.lock().is_some_and(|pulled| field.is_kept(pulled))
    }

    /// Notes a pull that began then and has ended.
    pub(super) fn was_pulled(&self, began: Instant, field: &Field) {
        let mut pulled = self.pulled.lock();
        if !pulled.is_some_and(|pulled| field.is_kept(pulled)) {
            *pulled = Some((began, Instant::now()));
        }
    }
}

impl Library {
    pub(super) fn new(upstream: Arc<FakeUpstream>, seed: u64) -> Self {
        Self {
            upstream,
            dice: Mutex::new(Dice(seed)),
            bytes: images::random_bytes(seed, LARGE),
            images: Mutex::default(),
            large: Mutex::default(),
            next: AtomicU64::default(),
        }
    }

    /// An image to pull: a new one, one of a while ago, or the large one that others are pulling.
    pub(super) fn any(&self) -> Arc<Published> {
        let (kind, number) = {
            let mut dice = self.dice.lock();
            (dice.below(100).unwrap_or_default(), dice.below(WINDOW).unwrap_or_default())
        };
        let known = match kind {
            0..32 => None,
            32 => self.large.lock().clone(),
            _ => {
                let images = self.images.lock();
                number.checked_rem(images.len()).map(|number| images[number].clone())
            }
        };
        known.unwrap_or_else(|| self.publish())
    }

    /// A new image.
    pub(super) fn publish(&self) -> Arc<Published> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let is_large = number % LARGE_EVERY == LARGE_EVERY - 1;
        let sizes = {
            let mut dice = self.dice.lock();
            [(); 2].map(|()| SMALLEST + dice.below(LARGEST - SMALLEST).unwrap_or_default())
        };
        let sizes = if is_large { [LARGE, sizes[1]] } else { sizes };
        let layers = [0, 1].map(|layer| self.layer(2 * number + layer, sizes[layer as usize]));
        let repository = format!("app-{number}");
        let image = self.upstream.publish_image(&repository, "v1", &layers);
        let path = |what: &str| format!("/v2/demo/{repository}/{what}");
        let wanted = |digest: &str, bytes: Vec<u8>| Wanted {
            path: path(&format!("blobs/{digest}")),
            digest: digest.to_owned(),
            bytes: Bytes::from(bytes),
        };
        let manifest =
            Wanted { path: path("manifests/v1"), digest: image.manifest.clone(), bytes: image.manifest_bytes.clone() };
        let mut parts = vec![manifest, wanted(&image.config, images::config("linux/amd64", &layers))];
        parts.extend(image.layers.iter().zip(layers).map(|(digest, layer)| wanted(digest, layer)));
        let published = Arc::new(Published { repository, parts, pulled: Mutex::default() });
        if is_large {
            *self.large.lock() = Some(published.clone());
        }
        self.shelve(published.clone());
        published
    }

    /// Keeps an image, and forgets the oldest that nobody is pulling.
    fn shelve(&self, published: Arc<Published>) {
        let mut images = self.images.lock();
        images.push(published);
        if images.len() <= WINDOW {
            return;
        }
        // One is that of the shelf.
        if let Some(old) = images.iter().position(|image| Arc::strong_count(image) == 1) {
            let old = images.remove(old);
            for part in &old.parts {
                self.upstream.remove(&old.repository, &part.digest);
            }
            self.upstream.remove(&old.repository, "v1");
        }
    }

    fn layer(&self, number: u64, size: usize) -> Vec<u8> {
        let mut layer = self.bytes[..size].to_vec();
        layer[..8].copy_from_slice(&number.to_le_bytes());
        layer
    }
}
