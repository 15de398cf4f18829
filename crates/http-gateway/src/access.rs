//! Who may use a listener that asks for a token, and how often one may try.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use crate::rate::{Rate, RateBound};

/// Tells which tokens are good. It is asked on each request, so it must answer from memory, and the time that it takes must
/// not depend on the token.
pub trait Access: fmt::Debug + Send + Sync + 'static {
    /// What may be read with this token; `None` if it does not count now.
    fn admit(&self, token: &[u8]) -> Option<Reads>;
}

/// What a client may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reads {
    /// Everything that the listener gives.
    Everything,
    /// Of that, what comes from the own store.
    OwnStore,
}

/// Longest token, bytes.
const TOKEN_BYTES_MAX: usize = 512;

/// The token of a request: that of `Bearer`, or the password of `Basic`, which clients take from a netrc file. The user name
/// says nothing.
pub(crate) fn token_of(headers: &HeaderMap) -> Option<Vec<u8>> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    // Two of them would leave it to each program on the way which one counts.
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    let rest = rest.trim();
    // Longer than any token in either form, so it need not be decoded.
    if rest.len() > 2 * TOKEN_BYTES_MAX {
        return None;
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let both = STANDARD.decode(rest).ok()?;
    let colon = both.iter().position(|byte| *byte == b':')?;
    both.get(colon + 1..).map(<[u8]>::to_vec)
}

/// Wrong tokens that one client may send.
const TRIES: RateBound = RateBound { at_once: 10.0, per_s: 1.0 };
/// Clients of which wrong tokens are remembered. When there are more, those that tried longest ago are forgotten.
const CLIENTS_MAX: usize = 1_024;

/// How often each client has sent a wrong token. A client that did so too often is answered unread for a while, also if it
/// then sends a good one: or else it could go on trying.
#[derive(Debug, Default)]
pub(crate) struct Attempts(Mutex<BTreeMap<Option<IpAddr>, Rate>>);

impl Attempts {
    /// Whether the client may try a token now.
    pub(crate) fn may_try(&self, client: Option<IpAddr>, now: Instant) -> bool {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(&client).is_none_or(|tries| tries.permits(TRIES, now))
    }

    /// Notes that the client sent a wrong token.
    pub(crate) fn note_wrong(&self, client: Option<IpAddr>, now: Instant) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tries = table.get(&client).copied().unwrap_or_else(|| Rate::unused(TRIES, now));
        tries.count(TRIES, now);
        // Anybody can add to this table. The one whose last wrong token is longest ago has most of its tries back.
        if table.len() >= CLIENTS_MAX && !table.contains_key(&client) {
            let oldest = table.iter().min_by_key(|(_, tries)| tries.at()).map(|(client, _)| *client);
            if let Some(oldest) = oldest {
                table.remove(&oldest);
            }
        }
        table.insert(client, tries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    fn token(value: &str) -> Option<String> {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
        token_of(&headers).map(|token| String::from_utf8(token).unwrap())
    }

    #[test]
    fn token_is_read_from_either_scheme() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(token(&basic("user:abc")).as_deref(), Some("abc"));
        assert_eq!(token(&basic(":a:b")).as_deref(), Some("a:b"));
        for none in
            ["abc", "Bearer", "Digest abc", "Basic abc!", &basic("abc"), &format!("Bearer {}", "x".repeat(1_025))]
        {
            assert_eq!(token(none), None, "{none}");
        }
        let mut two = HeaderMap::new();
        two.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        two.append(AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        assert_eq!(token_of(&two), None);
        assert_eq!(token_of(&HeaderMap::new()), None);
    }

    #[test]
    fn wrong_tokens_are_bounded_for_each_client() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        let [one, other] = [1, 2].map(|last| Some(IpAddr::from(Ipv4Addr::new(192, 0, 2, last))));
        for _ in 0..10 {
            assert!(attempts.may_try(one, start));
            attempts.note_wrong(one, start);
        }
        assert!(!attempts.may_try(one, start) && attempts.may_try(other, start) && attempts.may_try(None, start));
        let later = start + Duration::from_secs(1);
        assert!(attempts.may_try(one, later));
        attempts.note_wrong(one, later);
        assert!(!attempts.may_try(one, later));
        for count in 0..5_000_u32 {
            attempts.note_wrong(Some(Ipv4Addr::from_bits(count).into()), later);
        }
        assert!(attempts.0.lock().unwrap().len() <= CLIENTS_MAX);
    }
}
