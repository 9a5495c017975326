//! Types of values that keys can have in the file or in the environment.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::Value;
use url::Url;

use crate::telemetry::LogFormat;

/// A type of value that a key can have.
///
/// Its errors are fragments that say what the value must be. The reader puts the key before them and the value behind
/// them.
pub trait Setting: Sized {
    /// Reads the value from its spelling in the environment.
    ///
    /// # Errors
    /// What the value must be.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Reads the value from the file; it must be text, unless the type says otherwise.
    ///
    /// # Errors
    /// What the value must be.
    fn from_value(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| format!("must be text in quotes, and is {}", kind(value)))?;
        Self::from_text(text)
    }
}

/// The kind of a value, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "`true` or `false`",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

impl Setting for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Setting for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("must be a path".to_owned()) } else { Ok(Self::from(text)) }
    }
}

impl Setting for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be an IP address with a port, such as `0.0.0.0:5000` or `[::]:5000`".to_owned())
    }
}

impl Setting for Url {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error| format!("must be a URL, such as `https://registry.example` ({error})"))
    }
}

impl Setting for LogFormat {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: crate::telemetry::LogFormatError| error.to_string())
    }
}

impl Setting for bool {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "must be `true` or `false`".to_owned())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| format!("must be `true` or `false` without quotes, and is {}", kind(value)))
    }
}

impl Setting for f64 {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().ok().filter(|number: &Self| number.is_finite()).ok_or_else(|| "must be a number".to_owned())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        if value.is_float() || value.is_integer() {
            Self::from_text(&value.to_string())
        } else {
            Err(format!("must be a number without quotes, and is {}", kind(value)))
        }
    }
}

macro_rules! whole_numbers {
    ($($number:ty)*) => {$(
        impl Setting for $number {
            fn from_text(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| format!("must be a whole number from {} to {}", Self::MIN, Self::MAX))
            }

            fn from_value(value: &Value) -> Result<Self, String> {
                match value.as_integer() {
                    Some(number) => Self::from_text(&number.to_string()),
                    None => Err(format!("must be a whole number without quotes, and is {}", kind(value))),
                }
            }
        }
    )*};
}

whole_numbers!(u16 u32 u64 usize i64);

impl Setting for Duration {
    fn from_text(text: &str) -> Result<Self, String> {
        let read = amount(text).and_then(|(number, unit)| match unit {
            "ms" => Some(Self::from_millis(number)),
            "s" => Some(Self::from_secs(number)),
            "m" => number.checked_mul(60).map(Self::from_secs),
            "h" => number.checked_mul(60 * 60).map(Self::from_secs),
            "d" => number.checked_mul(24 * 60 * 60).map(Self::from_secs),
            _ => None,
        });
        read.ok_or_else(|| "must be a time with its unit (ms, s, m, h, d), such as `30s`".to_owned())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        Self::from_text(&text_or_number(value))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl Setting for ByteSize {
    fn from_text(text: &str) -> Result<Self, String> {
        let read = amount(text).and_then(|(number, unit)| {
            let factor = match unit {
                "" if number == 0 => 1,
                "B" => 1,
                "kB" => 1000,
                "MB" => 1000_u64.pow(2),
                "GB" => 1000_u64.pow(3),
                "TB" => 1000_u64.pow(4),
                "KiB" => 1024,
                "MiB" => 1024_u64.pow(2),
                "GiB" => 1024_u64.pow(3),
                "TiB" => 1024_u64.pow(4),
                _ => return None,
            };
            number.checked_mul(factor)
        });
        read.map(Self)
            .ok_or_else(|| "must be a size with its unit (B, KiB, MiB, GiB, TiB), such as `8MiB`, or `0`".to_owned())
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        Self::from_text(&text_or_number(value))
    }
}

/// Text, or a bare number as text, so that the message says that its unit is missing.
fn text_or_number(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Splits a text into a whole number and the rest.
fn amount(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// In the environment, commas separate the items of a list.
impl<T: Setting> Setting for Vec<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(T::from_text).collect()
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let Some(items) = value.as_array() else {
            return Err(format!("must be a list in [ ], and is {}", kind(value)));
        };
        items
            .iter()
            .enumerate()
            .map(|(at, item)| T::from_value(item).map_err(|what| format!("item {} of the list {what}", at + 1)))
            .collect()
    }
}

/// A value that is parsed from text, such as one of the domain's types. The type's error says what the value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<T>(pub T);

impl<T: FromStr<Err: fmt::Display>> Setting for Parsed<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: T::Err| error.to_string())
    }
}
