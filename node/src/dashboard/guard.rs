//! What is refused before anything is looked at: requests by another host name, which a page gets here by a name server of
//! its own; requests that a page of another site made the browser send; and all methods that could change something.

use hyper::header::{COOKIE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{Method, StatusCode};
use std::net::SocketAddr;

use super::sessions;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request is refused, if it is.
pub(super) fn refuse(method: &Method, headers: &HeaderMap, address: SocketAddr) -> Option<(StatusCode, &'static str)> {
    if method != Method::GET && method != Method::HEAD {
        return Some((StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered"));
    }
    let own = address.to_string();
    let text = |name: &HeaderName| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    if text(&HOST).count() != 1 || text(&HOST).any(|host| host != own) {
        return Some((StatusCode::FORBIDDEN, "the dashboard is reached by its address only"));
    }
    let is_foreign = text(&ORIGIN).any(|origin| origin.strip_prefix("http://") != Some(&own))
        || text(&SEC_FETCH_SITE).any(|site| site != "same-origin" && site != "none");
    is_foreign.then_some((StatusCode::FORBIDDEN, "a page of another site sent this request"))
}

/// The values of our cookie: the browser may have others of the same name, for other paths.
pub(super) fn cookies(headers: &HeaderMap) -> Vec<&str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == sessions::COOKIE).map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_own_address_and_the_own_site_are_admitted() {
        let address = "127.0.0.1:8000".parse().unwrap();
        let status =
            |method: Method, lines: &[(&str, &str)]| refuse(&method, &headers(lines), address).map(|why| why.0);
        let own = ("host", "127.0.0.1:8000");
        assert_eq!(status(Method::GET, &[own]), None);
        assert_eq!(status(Method::HEAD, &[own, ("sec-fetch-site", "same-origin")]), None);
        assert_eq!(status(Method::GET, &[own, ("sec-fetch-site", "none"), ("origin", "http://127.0.0.1:8000")]), None);
        assert_eq!(status(Method::POST, &[own]), Some(StatusCode::METHOD_NOT_ALLOWED));
        let foreign: [&[(&str, &str)]; 9] = [
            &[],
            &[own, own],
            &[("host", "127.0.0.1")],
            &[("host", "127.0.0.1:8001")],
            &[("host", "localhost:8000")],
            &[("host", "rebound.example:8000")],
            &[own, ("origin", "null")],
            &[own, ("origin", "http://evil.example")],
            &[own, ("sec-fetch-site", "same-site")],
        ];
        for lines in foreign {
            assert_eq!(status(Method::GET, lines), Some(StatusCode::FORBIDDEN), "{lines:?}");
        }
    }

    #[test]
    fn cookies_of_the_same_name_are_all_found() {
        let headers = headers(&[("cookie", "a=b; narmesh=1"), ("cookie", "narmesh=2;narmeshx=3")]);
        assert_eq!(cookies(&headers), ["1", "2"]);
    }
}
