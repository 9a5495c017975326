//! Reads the header `Link`, which names the next page of a list. Source: RFC 8288, §3 and appendix B.2.

use http::header::{HeaderMap, LINK};

use crate::scan::Scan;

/// A `Link` that seems to name a next page but cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// The address of the next page, which may be relative to that of the current page; `None` if there is none.
///
/// # Errors
/// If an unreadable part may name the next page. Ignoring it would cut the list short.
pub(crate) fn next(headers: &HeaderMap) -> Result<Option<String>, Unreadable> {
    for value in headers.get_all(LINK) {
        if let Some(target) = next_in(value.as_bytes())? {
            return Ok(Some(target));
        }
    }
    Ok(None)
}

fn next_in(value: &[u8]) -> Result<Option<String>, Unreadable> {
    let mut scan = Scan::new(value);
    loop {
        scan.take_while(|byte| b" \t,".contains(&byte));
        if scan.peek().is_none() {
            return Ok(None);
        }
        let link = scan.left();
        let read = target(&mut scan).and_then(|target| Some((target, is_next(&mut scan)?)));
        scan.skip_to(b",");
        let link = &link[..link.len() - scan.left().len()];
        match read {
            Some((target, true)) => return Ok(Some(target)),
            None if link.windows(4).any(|word| word.eq_ignore_ascii_case(b"next")) => return Err(Unreadable),
            Some((_, false)) | None => {}
        }
    }
}

/// The address at the beginning of a link. Bytes outside ASCII are percent-encoded.
fn target(scan: &mut Scan<'_>) -> Option<String> {
    if !scan.eat(b'<') {
        return None;
    }
    let target = scan.take_while(|byte| byte != b'>');
    scan.eat(b'>').then(|| address(target))
}

/// Any bytes, as the text of an address.
pub(crate) fn address(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, byte| {
        match byte.is_ascii() {
            true => text.push(char::from(*byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
        text
    })
}

/// Whether the parameters of a link say that it leads to the next page of this one; `None` if they cannot be read. This
/// moves past the parameters. If there are several `rel`, the first one counts; each may name several relations. A link
/// with an `anchor` is about another page.
fn is_next(scan: &mut Scan<'_>) -> Option<bool> {
    let (mut relations, mut is_of_another) = (None, false);
    loop {
        scan.take_while(|byte| b" \t;".contains(&byte));
        let name = scan.token();
        if name.is_empty() {
            break;
        }
        let value = scan.value().ok()?;
        is_of_another |= name.eq_ignore_ascii_case(b"anchor") && value.as_ref().is_some_and(|value| !value.is_empty());
        if name.eq_ignore_ascii_case(b"rel") && relations.is_none() {
            relations = value;
        }
    }
    if scan.peek().is_some_and(|byte| byte != b',') {
        return None;
    }
    let relations = relations.unwrap_or_default();
    let mut relations = relations.split(u8::is_ascii_whitespace);
    Some(relations.any(|relation| relation.eq_ignore_ascii_case(b"next")) && !is_of_another)
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(links: &[&[u8]]) -> Result<Option<String>, Unreadable> {
        next(&links.iter().map(|link| (LINK, HeaderValue::from_bytes(link).unwrap())).collect())
    }

    #[test]
    fn the_next_page_is_found_however_its_link_is_written() {
        let lines: &[&[&[u8]]] = &[
            &[b"</b>; rel=\"next\""],
            &[b"</b>;rel=next"],
            &[b"</b> ; title=\"more\"; REL = \"NEXT\" ;"],
            &[b"</b>; rel=\"last next\""],
            &[b"</b>; rel=next; rel=first"],
            &[b"</b>; title=\"a, <c>; rel=\\\"next\\\"\"; rel=\"next\""],
            &[b"</b>; crossorigin; rel=next"],
            &[b"</a>; rel=\"first\",</b>; rel=\"next\""],
            &[b"</a>; rel=\"first\" , , </b>; rel=\"next\", </c>; rel=\"next\""],
            &[b"</a>; rel=\"prev\"", b"</b>; rel=\"next\""],
            &[b"</a>; title=\"next\"; rel=first, </b>; title=\"\xe9\"; rel=next"],
            &[b"</a>; rel=first; rel=next, </b>; rel=next"],
            &[b"</c>; rel=next; anchor=\"/other\", </b>; rel=next"],
            &[b"nonsense, \"</c>; rel=x\", </b>; rel=next"],
        ];
        for links in lines {
            let shown = links.iter().map(|link| String::from_utf8_lossy(link)).collect::<Vec<_>>();
            assert_eq!(read(links).unwrap().as_deref(), Some("/b"), "{shown:?}");
        }
        assert_eq!(read(&[b"</b?last=a,b>; rel=next"]).unwrap().as_deref(), Some("/b?last=a,b"));
        assert_eq!(read(&[b"</b?last=\xc3\xa9>; rel=next"]).unwrap().as_deref(), Some("/b?last=%C3%A9"));
    }

    #[test]
    fn what_is_no_next_page_is_none_and_what_may_be_one_is_an_error() {
        let none: &[&[&[u8]]] = &[
            &[],
            &[b""],
            &[b"</x>; rel=\"last\""],
            &[b"</x>"],
            &[b"nonsense"],
            &[b"<>"],
            &[b"</next>; rel=prev"],
            &[b"</x>; rel=nextish"],
            &[b"</x>; title=\"rel=next\""],
        ];
        for links in none {
            assert_eq!(read(links), Ok(None), "{links:?}");
        }
        for unreadable in [
            &b"/v2/a/tags/list?last=x; rel=\"next\""[..],
            b"</v2/a/tags/list; rel=next",
            b"</x>; rel=\"next",
            b"</x>; =; rel=next",
        ] {
            assert_eq!(read(&[unreadable]), Err(Unreadable), "{}", String::from_utf8_lossy(unreadable));
        }
    }

    proptest! {
        #[test]
        fn any_value_is_read_or_refused_and_an_address_is_ascii(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..4)) {
            let values = values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok());
            if let Ok(Some(target)) = next(&values.map(|value| (LINK, value)).collect()) {
                prop_assert!(target.is_ascii());
            }
        }

        #[test]
        fn a_next_page_is_found_behind_any_other_links(title in "[ -~]{0,20}", before in 0..4_usize, gap in " {0,2}") {
            let title = title.replace('\\', r"\\").replace('"', "\\\"");
            let other = format!("</a>; title=\"{title}\"; rel=\"first\",{gap}");
            let line = other.repeat(before) + "</b>; rel=next";
            prop_assert_eq!(read(&[line.as_bytes()]), Ok(Some("/b".to_owned())));
        }
    }
}
