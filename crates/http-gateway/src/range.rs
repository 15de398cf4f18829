//! Parses the `Range` header as far as Nix and curl use it: one range in bytes.

use hyper::HeaderMap;
use hyper::header::{IF_RANGE, RANGE};

use crate::validators::Validators;

/// Which bytes of a body of `size` bytes a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// All of them, as 200: there is no range, several ranges, a malformed one, or one that depends
    /// on a validator that is not ours.
    Whole,
    /// These bytes, as 206; `first <= last < size`.
    Part { first: u64, last: u64 },
    /// None of the bytes exist: 416.
    Unsatisfiable,
}

/// Reads the range of a GET (RFC 9110, section 14.2) for what has these validators, if any.
pub(crate) fn parse_span(headers: &HeaderMap, size: u64, validators: Option<Validators>) -> Span {
    let mut values = headers.get_all(RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Span::Whole };
    if headers.contains_key(IF_RANGE) && !validators.is_some_and(|ours| ours.is_range_wanted(headers)) {
        return Span::Whole;
    }
    value.to_str().ok().and_then(|text| parse(text, size)).unwrap_or(Span::Whole)
}

/// Parses `bytes=N-`, `bytes=N-M` or `bytes=-K`; `None` for anything else.
fn parse(text: &str, size: u64) -> Option<Span> {
    let (unit, set) = text.split_once('=')?;
    // Several ranges would need a body of several parts; the header is ignored, as HTTP allows.
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return None;
    }
    let (from, to) = set.trim().split_once('-')?;
    let end = size.checked_sub(1);
    let span = match (parse_decimal(from), parse_decimal(to)) {
        (Some(Some(first)), Some(Some(last))) if first > last => return None,
        (Some(Some(first)), Some(last)) => match end {
            Some(end) if first <= end => Span::Part { first, last: last.unwrap_or(end).min(end) },
            Some(_) | None => Span::Unsatisfiable,
        },
        // The last bytes. A file without any has none to give.
        (Some(None), Some(Some(count))) => match end {
            Some(end) if count > 0 => Span::Part { first: size.saturating_sub(count), last: end },
            Some(_) | None => Span::Unsatisfiable,
        },
        (Some(None), Some(None)) | (None, _) | (_, None) => return None,
    };
    Some(span)
}

/// Parses a decimal number. `Some(None)` for an empty text, `None` for a text that is not a number; a number
/// beyond `u64` becomes `u64::MAX`.
fn parse_decimal(text: &str) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    // Parsing alone would take a sign, too.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn of(text: &str) -> Span {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_str(text).unwrap());
        parse_span(&headers, 1000, None)
    }

    #[test]
    fn single_range_gives_that_part() {
        assert_eq!(of("bytes=0-"), Span::Part { first: 0, last: 999 });
        assert_eq!(of("bytes=999-"), Span::Part { first: 999, last: 999 });
        assert_eq!(of("bytes=10-19"), Span::Part { first: 10, last: 19 });
        assert_eq!(of("Bytes=10-5000"), Span::Part { first: 10, last: 999 });
        assert_eq!(of("bytes=10-99999999999999999999999"), Span::Part { first: 10, last: 999 });
        assert_eq!(of("bytes=-1"), Span::Part { first: 999, last: 999 });
        assert_eq!(of("bytes=-5000"), Span::Part { first: 0, last: 999 });
    }

    #[test]
    fn range_beyond_the_end_is_unsatisfiable() {
        for text in ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(of(text), Span::Unsatisfiable, "{text}");
        }
    }

    #[test]
    fn other_ranges_get_the_whole_body() {
        for text in [
            "bytes=0-1,5-6",
            "bytes=5-4",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1",
            "chunks=1-2",
            "",
            "bytes=1--2",
        ] {
            assert_eq!(of(text), Span::Whole, "{text}");
        }
        assert_eq!(parse_span(&HeaderMap::new(), 1000, None), Span::Whole);
        let mut headers = HeaderMap::new();
        headers.append(RANGE, HeaderValue::from_static("bytes=1-"));
        headers.append(RANGE, HeaderValue::from_static("bytes=2-"));
        assert_eq!(parse_span(&headers, 1000, None), Span::Whole, "two headers");
        headers.remove(RANGE);
        headers.append(RANGE, HeaderValue::from_static("bytes=1-"));
        headers.append(IF_RANGE, HeaderValue::from_static("\"x\""));
        assert_eq!(parse_span(&headers, 1000, None), Span::Whole, "a validator that we never gave");
    }
}
