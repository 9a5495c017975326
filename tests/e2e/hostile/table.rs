//! The ways in which an upstream misbehaves, and how a pull must end for each.

use std::time::Duration;

use entrepot_test_support::{Auth, FakeUpstream, Fault, images};

/// The endings that are right for a fault, as text.
type Endings = &'static [&'static str];

const RIGHT: Endings = &["right"];
const AWAY: Endings = &["503 UNAVAILABLE"];
const BAD: Endings = &["502 UNKNOWN"];
const DENIED: Endings = &["403 DENIED"];
/// A large blob is being sent before anybody can notice; later clients get the error.
const CUT_OR_BAD: Endings = &["cut", "502 UNKNOWN"];
/// The rest is requested, and does not come, either.
const NO_END: Endings = &["cut", "502 UNKNOWN", "503 UNAVAILABLE"];
const CUT_OR_AWAY: Endings = &["cut", "503 UNAVAILABLE"];
/// A body that was cut but looks complete is noticed, or resumed.
const FOUND_OUT: Endings = &["right", "cut", "502 UNKNOWN"];
const HONEST: Endings = &["right", "cut", "502 UNKNOWN", "503 UNAVAILABLE"];

/// The kind of content that is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Larger than content that is verified completely before its first byte is sent.
    LargeBlob,
    SmallBlob,
    Manifest,
    Index,
}

pub(super) const KINDS: [Kind; 4] = [Kind::LargeBlob, Kind::SmallBlob, Kind::Manifest, Kind::Index];

/// A fault, and how pulls end that meet it.
pub(super) struct Row {
    pub(super) name: &'static str,
    large_blob: Endings,
    small_blob: Endings,
    manifest: Endings,
    pub(super) play: fn(&Scene),
}

impl Row {
    pub(super) fn endings(&self, kind: Kind) -> Endings {
        match kind {
            Kind::LargeBlob => self.large_blob,
            Kind::SmallBlob => self.small_blob,
            Kind::Manifest | Kind::Index => self.manifest,
        }
    }
}

/// A row whose endings are the same for all content.
const fn all(name: &'static str, endings: Endings, play: fn(&Scene)) -> Row {
    row(name, [endings, endings, endings], play)
}

/// A row with the endings for large blobs, small blobs, and manifests.
const fn row(name: &'static str, endings: [Endings; 3], play: fn(&Scene)) -> Row {
    let [large_blob, small_blob, manifest] = endings;
    Row { name, large_blob, small_blob, manifest, play }
}

/// An upstream with one piece of content, and the origins to which redirects lead.
pub(super) struct Scene {
    pub(super) upstream: FakeUpstream,
    /// Redirects to this one are allowed.
    pub(super) elsewhere: FakeUpstream,
    /// Redirects to this one are not allowed.
    pub(super) private: FakeUpstream,
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
}

impl Scene {
    fn gets(&self) -> String {
        format!("GET {}", self.path)
    }

    fn always(&self, fault: Fault) {
        self.upstream.script(self.gets(), fault);
    }

    fn times(&self, times: usize, fault: Fault) {
        self.upstream.script_times(self.gets(), fault, times);
    }

    /// Neither the answers nor any request tells the size.
    fn says_no_length(&self) {
        self.upstream.script(&self.path, Fault::NoLength);
        self.upstream.script(&self.path, Fault::NoRanges);
    }

    /// Everybody needs a token, and the token server has this fault.
    fn tokens(&self, fault: Fault) {
        self.upstream.set_auth(Auth::AnonymousToken);
        self.upstream.script("/token", fault);
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn middle(&self) -> u64 {
        self.size() / 2
    }
}

fn status(status: u16) -> Fault {
    Fault::Status(status, None)
}

fn header(name: &str, value: &str) -> Fault {
    Fault::Header(name.to_owned(), value.to_owned())
}

/// The upstream cannot answer, or refuses.
pub(super) const REFUSALS: &[Row] = &[
    all("429", AWAY, |s| s.always(status(429))),
    all("429 with a Retry-After", AWAY, |s| s.always(Fault::Status(429, Some("1".to_owned())))),
    all("a burst of 503", RIGHT, |s| s.times(2, status(503))),
    all("500", AWAY, |s| s.always(status(500))),
    all("502 with a Retry-After", AWAY, |s| s.always(Fault::Status(502, Some("1".to_owned())))),
    row("404", [&["404 BLOB_UNKNOWN"], &["404 BLOB_UNKNOWN"], &["404 MANIFEST_UNKNOWN"]], |s| s.always(status(404))),
    all("403", DENIED, |s| s.always(status(403))),
    all("401 without a challenge", DENIED, |s| s.always(status(401))),
    all("silence", AWAY, |s| s.always(Fault::Silence)),
    all("a late answer", RIGHT, |s| s.always(Fault::Delay(Duration::from_millis(300)))),
    all("hung up twice", RIGHT, |s| s.times(2, Fault::HangUp)),
    all("hung up", AWAY, |s| s.always(Fault::HangUp)),
];

/// The bytes do not arrive, or not all of them.
pub(super) const BROKEN_BODIES: &[Row] = &[
    all("a reset at the first byte", RIGHT, |s| s.times(1, Fault::ResetAfter(0))),
    all("a reset in the middle", RIGHT, |s| s.times(1, Fault::ResetAfter(s.middle()))),
    all("a reset at the last byte", RIGHT, |s| s.times(1, Fault::ResetAfter(s.size() - 1))),
    row("five cuts", [RIGHT, RIGHT, AWAY], |s| s.times(5, Fault::CutAfter(s.size() / 5))),
    row("cuts without end", [CUT_OR_AWAY, AWAY, AWAY], |s| s.always(Fault::CutAfter(0))),
    all("cuts, and no ranges", RIGHT, |s| {
        s.times(2, Fault::CutAfter(s.middle()));
        s.always(Fault::NoRanges);
    }),
    all("a cut without a length", RIGHT, |s| {
        s.times(1, Fault::CutAfter(s.middle()));
        s.always(Fault::NoLength);
    }),
    row("a cut, and another range", [FOUND_OUT, FOUND_OUT, RIGHT], |s| {
        s.times(1, Fault::CutAfter(s.middle()));
        s.always(header("content-range", "bytes 5-9/10"));
    }),
    row("a stall in the middle", [RIGHT, RIGHT, AWAY], |s| s.times(1, Fault::StallAfter(s.middle()))),
    row("stalls without end", [CUT_OR_AWAY, AWAY, AWAY], |s| s.always(Fault::StallAfter(0))),
    row("truncated with a proper end", [FOUND_OUT, FOUND_OUT, BAD], |s| s.always(Fault::EndAfter(s.middle()))),
    row("nothing with a proper end", [NO_END, NO_END, BAD], |s| s.always(Fault::EndAfter(0))),
    all("no length", RIGHT, |s| s.always(Fault::NoLength)),
    all("no length, and nobody says one", RIGHT, Scene::says_no_length),
    row("truncated, and nobody says the length", [CUT_OR_BAD, CUT_OR_BAD, BAD], |s| {
        s.says_no_length();
        s.always(Fault::EndAfter(s.middle()));
    }),
    row("too large a length", [CUT_OR_AWAY, AWAY, AWAY], |s| s.always(Fault::WrongLength(1000))),
    row("too small a length", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::WrongLength(-100))),
    all("a slow body", RIGHT, |s| s.always(Fault::Rate(s.size() * 20))),
];

/// The bytes arrive, but are wrong.
pub(super) const LIES: &[Row] = &[
    row("a flipped bit at the beginning", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::FlipBitAt(0))),
    row("a flipped bit in the middle", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::FlipBit)),
    row("a flipped bit at the end", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::FlipBitAt(u64::MAX))),
    row("a flipped bit, and nobody says the length", [CUT_OR_BAD, CUT_OR_BAD, BAD], |s| {
        s.says_no_length();
        s.always(Fault::FlipBit);
    }),
    row("other bytes of the same size", [CUT_OR_BAD, BAD, BAD], |s| {
        s.always(Fault::Body(images::random_bytes(99, s.bytes.len())));
    }),
    row("more bytes", [CUT_OR_BAD, BAD, BAD], |s| s.always(Fault::Body([&s.bytes[..], &s.bytes[..]].concat()))),
    // The digest of the bytes counts, not what the upstream says about them.
    all("a wrong digest header", RIGHT, |s| s.always(Fault::DigestHeader(images::sha256(b"another")))),
    all("no digest header", RIGHT, |s| s.always(Fault::NoDigestHeader)),
    all("a web page", BAD, |s| s.always(Fault::Html)),
    all("an encoding", BAD, |s| s.always(header("content-encoding", "gzip"))),
];

/// Other servers are needed for an answer.
pub(super) const DETOURS: &[Row] = &[
    all("a redirect elsewhere", RIGHT, |s| {
        s.upstream.set_auth(Auth::AnonymousToken);
        s.always(Fault::RedirectToOrigin(s.elsewhere.url()));
    }),
    all("a redirect elsewhere that breaks off", RIGHT, |s| {
        s.upstream.set_auth(Auth::AnonymousToken);
        s.always(Fault::RedirectToOrigin(s.elsewhere.url()));
        s.elsewhere.script_times(s.gets(), Fault::CutAfter(s.middle()), 1);
    }),
    all("a redirect to a private address", BAD, |s| s.always(Fault::RedirectToOrigin(s.private.url()))),
    all("a redirect to a metadata service", BAD, |s| {
        s.always(Fault::Redirect(302, "http://169.254.169.254/latest/meta-data/".to_owned()));
    }),
    all("a redirect to itself", BAD, |s| s.always(Fault::Redirect(307, "?again".to_owned()))),
    all("tokens", RIGHT, |s| s.upstream.set_auth(Auth::AnonymousToken)),
    all("a token server that fails", AWAY, |s| s.tokens(status(503))),
    all("a token server that is silent", AWAY, |s| s.tokens(Fault::Silence)),
    all("a token server that throttles", AWAY, |s| s.tokens(Fault::Status(429, Some("1".to_owned())))),
    all("a token server with a web page", BAD, |s| s.tokens(Fault::Html)),
    all("a token server that lies", DENIED, |s| s.tokens(Fault::Body(br#"{"token":"a-lie"}"#.to_vec()))),
    all("a token server that leads away", BAD, |s| s.tokens(Fault::RedirectToOrigin(s.private.url()))),
    all("a token that expires in mid-body", RIGHT, |s| {
        s.upstream.set_auth(Auth::AnonymousToken);
        s.times(1, Fault::ExpireTokens);
        s.times(1, Fault::CutAfter(s.middle()));
    }),
    all("whatever a seed decides", HONEST, |s| s.upstream.chaos(s.size(), 40)),
];
