//! Filters of lists: `field = value` terms joined by `AND`, where a value is `"text"`, `true` or `false`.

use entrepot_proto::convert::Violations;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) field: String,
    pub(super) value: Value,
    /// Where it begins, in characters counted from 1.
    pub(super) position: usize,
}

/// The value that a field is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Flag(bool),
}

/// The longest filter.
const LIMIT: usize = 4096;

/// Parses a filter; an empty one has no terms.
pub(super) fn parse(filter: &str) -> Result<Vec<Term>, Violations> {
    if filter.len() > LIMIT {
        return Err(Violations::one("filter", format!("must have at most {LIMIT} bytes")));
    }
    let mut parser = Parser { text: filter.chars().collect(), at: 0 };
    parser.terms().map_err(|what| wrong(parser.at + 1, what))
}

impl Term {
    /// The violation for a filter with an invalid term.
    pub(super) fn wrong(&self, what: impl std::fmt::Display) -> Violations {
        wrong(self.position, what)
    }
}

fn wrong(position: usize, what: impl std::fmt::Display) -> Violations {
    Violations::one("filter", format!("at character {position}: {what}"))
}

struct Parser {
    text: Vec<char>,
    at: usize,
}

impl Parser {
    fn terms(&mut self) -> Result<Vec<Term>, &'static str> {
        let mut terms: Vec<Term> = Vec::new();
        self.skip_blanks();
        while self.at < self.text.len() {
            if !terms.is_empty() {
                let begin = self.at;
                if self.word() != "AND" {
                    self.at = begin;
                    return Err("terms are joined by `AND`");
                }
                self.skip_blanks();
            }
            terms.push(self.term()?);
            self.skip_blanks();
        }
        Ok(terms)
    }

    fn term(&mut self) -> Result<Term, &'static str> {
        let position = self.at + 1;
        let field = self.word();
        if field.is_empty() {
            return Err("a term such as `field = \"value\"` is expected");
        }
        self.skip_blanks();
        if self.text.get(self.at) != Some(&'=') {
            return Err("`=` is expected");
        }
        self.at += 1;
        self.skip_blanks();
        Ok(Term { field, value: self.value()?, position })
    }

    fn value(&mut self) -> Result<Value, &'static str> {
        if self.text.get(self.at) == Some(&'"') {
            return self.quoted().map(Value::Text);
        }
        let begin = self.at;
        match self.word().as_str() {
            "true" => Ok(Value::Flag(true)),
            "false" => Ok(Value::Flag(false)),
            _ => {
                self.at = begin;
                Err("a value is `\"text\"` in double quotes, `true` or `false`")
            }
        }
    }

    fn quoted(&mut self) -> Result<String, &'static str> {
        let mut text = String::new();
        self.at += 1;
        while let Some(&c) = self.text.get(self.at) {
            self.at += 1;
            match c {
                '"' => return Ok(text),
                '\\' => {
                    let escaped = self.text.get(self.at).filter(|c| matches!(c, '"' | '\\'));
                    text.push(*escaped.ok_or("only `\\\"` and `\\\\` can be escaped")?);
                    self.at += 1;
                }
                c => text.push(c),
            }
        }
        Err("the closing double quote is missing")
    }

    fn word(&mut self) -> String {
        let word: String =
            self.text[self.at..].iter().take_while(|c| c.is_ascii_alphanumeric() || **c == '_').collect();
        self.at += word.len();
        word
    }

    fn skip_blanks(&mut self) {
        self.at += self.text[self.at..].iter().take_while(|c| c.is_whitespace()).count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_read_in_order_with_their_positions() {
        let terms = parse(r#" prefix = "hub/" AND cached=true"#).unwrap();
        let expected = [("prefix", Value::Text("hub/".into()), 2), ("cached", Value::Flag(true), 22)];
        let expected = expected.map(|(field, value, position)| Term { field: field.into(), value, position });
        assert_eq!(terms, expected);
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse(r#"a = "q\"\\""#).unwrap()[0].value, Value::Text("q\"\\".into()));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (filter, said) in [
            ("x", "at character 2: `=` is expected"),
            ("x = y", "at character 5: a value is"),
            (r#"x = "y"#, "at character 7: the closing double quote"),
            ("a = true b = true", "at character 10: terms are joined by `AND`"),
            ("a = true AND", "at character 13: a term such as"),
            ("a = true OR b = true", "at character 10"),
            (r#"a = "\n""#, "only `\\\"` and"),
            ("= true", "at character 1"),
        ] {
            let error = parse(filter).unwrap_err().to_string();
            assert!(error.contains(said), "{filter}: {error}");
        }
        assert!(parse(&"x".repeat(5000)).is_err());
    }
}
