//! Parses faults on the command line.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use entrepot_test_support::{Fault, images};

use crate::args::bytes;

/// The part of `--help` about faults.
pub(crate) const HELP: &str = "\
Faults; BYTES may be such as 64KiB or 8MiB:
  silence                  never answer
  delay:SECONDS            answer this much later
  hang-up                  close the connection without an answer
  stall-after:BYTES        stop in mid-body, and keep the connection
  cut-after:BYTES          close the connection in mid-body
  reset-after:BYTES        reset the connection in mid-body
  end-after:BYTES          end early as if that were all: no length, a proper end
  flip-bit[:BYTE]          one wrong bit, in this byte or in the middle
  length:+N, length:-N     declare more or fewer bytes than there are
  no-length                declare none: chunked
  no-ranges                send the whole, whatever range is asked for
  digest[:DIGEST]          a wrong Docker-Content-Digest
  no-digest                no Docker-Content-Digest
  html                     a web page with status 200
  status:CODE[:SECONDS]    an error, such as 429, and perhaps a Retry-After
  rate:BYTES               at most so many bytes each second
  redirect:URL             to this place (307)
  redirect-elsewhere       to the same path at the `elsewhere` origin
  redirect-private         to the same path at the `private` origin
  redirect-loop            to the same path, for ever
  expire-tokens            refuse from now on all tokens that were given out
  header:NAME:VALUE        one more header
  body:TEXT                another body

Tokens are given out at /token, so these make the token server fail and lie:
  --auth anonymous --fault '/token=status:503'
  --auth anonymous --fault '/token=body:{\"token\":\"a lie\"}'
A token that expires in mid-body, once:
  --auth anonymous --fault '/blobs/=expire-tokens*1' --fault '/blobs/=cut-after:1MiB*1'";

/// A fault for some requests.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) pattern: String,
    pub(crate) word: Word,
    pub(crate) times: usize,
}

/// A fault, which may need the addresses of the other origins.
#[derive(Clone, Debug)]
pub(crate) enum Word {
    Known(Fault),
    RedirectElsewhere,
    RedirectPrivate,
}

impl Word {
    pub(crate) fn fault(&self, elsewhere: &str, private: &str) -> Fault {
        match self {
            Self::Known(fault) => fault.clone(),
            Self::RedirectElsewhere => Fault::RedirectToOrigin(elsewhere.to_owned()),
            Self::RedirectPrivate => Fault::RedirectToOrigin(private.to_owned()),
        }
    }
}

pub(crate) fn planned(text: &str) -> Result<Planned> {
    let (pattern, rest) = text.split_once('=').context("want PATTERN=FAULT")?;
    let (word, times) = match rest.rsplit_once('*') {
        Some((word, times)) if !times.is_empty() && times.bytes().all(|byte| byte.is_ascii_digit()) => {
            (word, times.parse().context("too many times")?)
        }
        _ => (rest, usize::MAX),
    };
    let (name, args) = word.split_once(':').map_or((word, None), |(name, args)| (name, Some(args)));
    Ok(Planned { pattern: pattern.to_owned(), word: self::word(name, args)?, times })
}

fn word(name: &str, args: Option<&str>) -> Result<Word> {
    let needed = || args.with_context(|| format!("`{name}` needs an argument; see --help"));
    let at = || needed().and_then(bytes);
    let fault = match name {
        "delay" => Fault::Delay(Duration::try_from_secs_f64(number(needed()?)?).context("no time to wait")?),
        "stall-after" => Fault::StallAfter(at()?),
        "cut-after" => Fault::CutAfter(at()?),
        "reset-after" => Fault::ResetAfter(at()?),
        "end-after" => Fault::EndAfter(at()?),
        "flip-bit" => args.map(bytes).transpose()?.map_or(Fault::FlipBit, Fault::FlipBitAt),
        "length" => Fault::WrongLength(number(needed()?)?),
        "digest" => Fault::DigestHeader(args.map_or_else(|| images::sha256(b"something else"), str::to_owned)),
        "status" => status(needed()?)?,
        "rate" => Fault::Rate(at()?),
        "redirect" => Fault::Redirect(307, needed()?.to_owned()),
        "header" => {
            let (name, value) = needed()?.split_once(':').context("want header:NAME:VALUE")?;
            Fault::Header(name.to_ascii_lowercase(), value.trim().to_owned())
        }
        "body" => Fault::Body(needed()?.into()),
        _ => {
            ensure!(args.is_none(), "`{name}` is no fault that takes an argument; see --help");
            return plain(name);
        }
    };
    Ok(Word::Known(fault))
}

/// Faults without arguments.
fn plain(name: &str) -> Result<Word> {
    Ok(Word::Known(match name {
        "silence" => Fault::Silence,
        "hang-up" => Fault::HangUp,
        "no-length" => Fault::NoLength,
        "no-ranges" => Fault::NoRanges,
        "no-digest" => Fault::NoDigestHeader,
        "html" => Fault::Html,
        "expire-tokens" => Fault::ExpireTokens,
        // Only the query changes: the path stays, and meets the same fault again.
        "redirect-loop" => Fault::Redirect(307, "?again".to_owned()),
        "redirect-elsewhere" => return Ok(Word::RedirectElsewhere),
        "redirect-private" => return Ok(Word::RedirectPrivate),
        _ => return Err(anyhow!("`{name}` is no fault; see --help")),
    }))
}

fn status(args: &str) -> Result<Fault> {
    let (code, retry_after) = args.split_once(':').map_or((args, None), |(code, after)| (code, Some(after.to_owned())));
    let code: u16 = number(code)?;
    ensure!((200..=599).contains(&code), "{code} is no status of an answer");
    Ok(Fault::Status(code, retry_after))
}

fn number<T: FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| anyhow!("`{text}` is no number that fits here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_that_the_help_names_is_understood() {
        for line in HELP.lines().skip(1).take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().unwrap().split([':', '[', ',']).next().unwrap();
            let example = match name {
                "delay" => "delay:0.5",
                "stall-after" | "cut-after" | "reset-after" | "end-after" | "rate" => &format!("{name}:64KiB"),
                "length" => "length:-10",
                "status" => "status:429:7",
                "redirect" => "redirect:http://127.0.0.1:1/x",
                "header" => "header:ETag:\"a\"",
                "body" => "body:{\"token\":\"a=b*c\"}",
                plain => plain,
            };
            planned(&format!("GET /v2/=   {example}*2").replace("   ", ""))
                .unwrap_or_else(|e| panic!("{example}: {e}"));
        }
    }

    #[test]
    fn a_plan_is_a_pattern_a_fault_and_how_often() {
        let plan = planned("GET /v2/a/blobs/=cut-after:1MiB*5").unwrap();
        assert_eq!((plan.pattern.as_str(), plan.times), ("GET /v2/a/blobs/", 5));
        assert!(matches!(plan.word, Word::Known(Fault::CutAfter(1_048_576))), "{:?}", plan.word);
        assert_eq!(planned("/token=body:a*b").unwrap().times, usize::MAX);
        for wrong in ["silence", "a=silenc", "a=silence:1", "a=cut-after", "a=status:42", "a=delay:-1", "a=length:x"] {
            assert!(planned(wrong).is_err(), "{wrong}");
        }
    }
}
