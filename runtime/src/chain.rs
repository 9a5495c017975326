//! Errors as one log line.

use std::error::Error;
use std::fmt;

/// `error` and all its sources, separated by `: `, for one log line.
pub fn chain(error: &dyn Error) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        let mut said = error.to_string();
        f.write_str(&said)?;
        let mut next = error.source();
        while let Some(source) = next {
            let text = source.to_string();
            // Some errors repeat their source's text in their own.
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            next = source.source();
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("could not connect")]
        Connect(#[source] std::io::Error),
        #[error("could not start")]
        Start(#[source] Box<Sample>),
        #[error("could not read: {0}")]
        Repeats(#[source] std::io::Error),
    }

    #[test]
    fn every_source_is_named_once() {
        let away = || std::io::Error::other("host is down");
        let nested = Sample::Start(Box::new(Sample::Connect(away())));
        assert_eq!(chain(&nested).to_string(), "could not start: could not connect: host is down");
        assert_eq!(chain(&Sample::Repeats(away())).to_string(), "could not read: host is down");
    }
}
