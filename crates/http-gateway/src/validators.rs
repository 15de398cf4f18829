//! `ETag` and `Last-Modified`, and the requests that depend on them (RFC 9110, section 13).

use std::fmt;

use hyper::HeaderMap;
use hyper::header::{ETAG, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED};
use narmesh_protocol::NarHash;

/// Nix sets the times of all files in a store to 1 s.
const MODIFIED: HeaderValue = HeaderValue::from_static("Thu, 01 Jan 1970 00:00:01 GMT");

/// What tells whether a client's copy is still the one that it would get: the NarHash of the store path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validators(pub(crate) NarHash);

impl fmt::Display for Validators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.nix32())
    }
}

impl Validators {
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        headers.insert(ETAG, self.etag());
        headers.insert(LAST_MODIFIED, MODIFIED);
    }

    fn etag(self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("nix32 in quotes is a header value")
    }

    /// Whether the client has this very file, so that it is not sent again.
    pub(crate) fn is_known(self, headers: &HeaderMap) -> bool {
        let etag = self.to_string();
        let mut named = headers.get_all(IF_NONE_MATCH).iter().peekable();
        if named.peek().is_none() {
            // The only date that we ever gave: later ones would be true, too, but no client has a reason to send one.
            return headers.get(IF_MODIFIED_SINCE).is_some_and(|date| date == MODIFIED);
        }
        let is_ours = |tag: &str| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag;
        named.any(|value| value.to_str().is_ok_and(|list| list.split(',').map(str::trim).any(is_ours)))
    }

    /// Whether a `Range` counts: it does unless `If-Range` names something else.
    pub(crate) fn is_range_wanted(self, headers: &HeaderMap) -> bool {
        headers.get(IF_RANGE).is_none_or(|wanted| *wanted == self.etag() || *wanted == MODIFIED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: hyper::header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn only_our_own_validators_count() {
        let ours = Validators(NarHash([7; 32]));
        let etag = ours.to_string();
        for value in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
            assert!(ours.is_known(&headers(IF_NONE_MATCH, &value)), "{value}");
        }
        for value in ["\"x\"", "", "x", etag.trim_matches('"')] {
            assert!(!ours.is_known(&headers(IF_NONE_MATCH, value)), "{value}");
        }
        assert!(!ours.is_known(&HeaderMap::new()));
        let date = MODIFIED.to_str().unwrap().to_owned();
        assert!(ours.is_known(&headers(IF_MODIFIED_SINCE, &date)));
        let mut both = headers(IF_MODIFIED_SINCE, &date);
        both.insert(IF_NONE_MATCH, HeaderValue::from_static("\"x\""));
        assert!(!ours.is_known(&both), "the tag decides");

        assert!(ours.is_range_wanted(&HeaderMap::new()));
        assert!(ours.is_range_wanted(&headers(IF_RANGE, &etag)) && ours.is_range_wanted(&headers(IF_RANGE, &date)));
        assert!(
            !ours.is_range_wanted(&headers(IF_RANGE, &format!("W/{etag}"))),
            "a weak tag is not enough for a range"
        );
    }
}
