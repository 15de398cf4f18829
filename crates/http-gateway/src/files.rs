//! The endpoints of what a plain binary cache gives beside narinfos and NARs.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use hyper::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, StatusCode};
use narmesh_protocol::{HashPart, NarHash, NarUrl, StorePath};

use crate::GatewayError;
use crate::body::{StreamedBody, without_length};
use crate::content_type::content_type;
use crate::metrics::{Outcome, RequestKind};
use crate::nar_body::{BodyAborted, NarBody};
use crate::page;
use crate::range::{Span, parse_span};
use crate::routes::{Endpoint, set};
use crate::store_files::{EntryPath, StoreDirectory, StoreEntry, StoreFile};
use crate::substituter::Substituter;
use crate::validators::Validators;

const LOG_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const LISTING_TYPE: HeaderValue = HeaderValue::from_static("application/json");
const PAGE_TYPE: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const BZIP2: HeaderValue = HeaderValue::from_static("bzip2");

/// A file of a package is a stranger's document: shown in a browser it must not act as a page of this gateway, which could
/// ask it for everything.
const FILE_POLICY: HeaderValue = HeaderValue::from_static("sandbox");
/// The pages that we write ourselves need nothing but their own text.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'");

impl<S: Substituter> Endpoint<S> {
    pub(crate) async fn answer_log(&self, derivation: StorePath, head: &Parts) -> Result<Response, GatewayError> {
        let log = self.substituter.find_log(derivation, accepts_bzip2(&head.headers)).await?;
        let log = log.ok_or(GatewayError::NotFound)?;
        let length = log.size_bytes;
        let mut response = self.stream(RequestKind::Log, head, length, log.body).await?;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, LOG_TYPE);
        // The same URL has two bodies, and a proxy between must not give one for the other.
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        // A log holds whatever a build printed, and a browser must not take it for a page of ours.
        headers.insert(CONTENT_SECURITY_POLICY, FILE_POLICY);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if log.is_compressed {
            headers.insert(CONTENT_ENCODING, BZIP2);
        }
        Ok(response)
    }

    pub(crate) async fn answer_listing(&self, part: HashPart, head: &Parts) -> Result<Response, GatewayError> {
        let listing = self.substituter.list_tree(part).await?.ok_or(GatewayError::NotFound)?;
        let validators = Validators(listing.nar_hash);
        if validators.is_known(&head.headers) {
            return Ok(self.not_modified(RequestKind::Listing, validators));
        }
        let mut response = self.stream(RequestKind::Listing, head, None, listing.body).await?;
        response.headers_mut().insert(CONTENT_TYPE, LISTING_TYPE);
        validators.write(response.headers_mut());
        Ok(response)
    }

    pub(crate) async fn answer_entry(
        &self,
        part: HashPart,
        path: EntryPath,
        head: &Parts,
    ) -> Result<Response, GatewayError> {
        match self.substituter.find_entry(part, path.clone()).await?.ok_or(GatewayError::NotFound)? {
            StoreEntry::File(file) => self.answer_file(file, head).await,
            StoreEntry::Directory(directory) => self.answer_directory(part, &path, directory, head).await,
        }
    }

    async fn answer_file(&self, file: StoreFile, head: &Parts) -> Result<Response, GatewayError> {
        let validators = Validators(file.nar_hash);
        if validators.is_known(&head.headers) {
            return Ok(self.not_modified(RequestKind::Entry, validators));
        }
        let is_get = head.method == Method::GET;
        let span = if is_get { parse_span(&head.headers, file.size_bytes, Some(validators)) } else { Span::Whole };
        let (first, length) = match span {
            Span::Whole => (0, file.size_bytes),
            Span::Part { first, last } => (first, last.saturating_sub(first).saturating_add(1)),
            Span::Unsatisfiable => return Err(GatewayError::RangeNotSatisfiable { size: file.size_bytes }),
        };
        // An empty file has no first byte to begin at.
        let body = if length == 0 { futures::stream::empty().boxed() } else { (file.read_from)(first) };
        let mut response = self.stream(RequestKind::Entry, head, Some(length), body).await?;
        if let Span::Part { first, last } = span {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, CONTENT_RANGE, format_args!("bytes {first}-{last}/{}", file.size_bytes));
        }
        let headers = response.headers_mut();
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(CONTENT_TYPE, content_type(&file.name));
        // A file of a package is no page of ours, whatever is in it.
        headers.insert(CONTENT_SECURITY_POLICY, FILE_POLICY);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        validators.write(headers);
        Ok(response)
    }

    async fn answer_directory(
        &self,
        part: HashPart,
        path: &EntryPath,
        directory: StoreDirectory,
        head: &Parts,
    ) -> Result<Response, GatewayError> {
        let mut title = self.substituter.cache_info().store_dir.display(&directory.path);
        for name in path.names() {
            title.push('/');
            title.push_str(&String::from_utf8_lossy(name));
        }
        let page = page::render(&format!("/serve/{part}"), path, &title, directory);
        let mut response = self.stream(RequestKind::Entry, head, None, page).await?;
        response.headers_mut().insert(CONTENT_TYPE, PAGE_TYPE);
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, PAGE_POLICY);
        Ok(response)
    }

    /// The NAR that a URL of harmonia or nix-serve means, which do not name its size.
    pub(crate) async fn find_nar_url(
        &self,
        part: HashPart,
        nar_hash: NarHash,
        head: &Parts,
    ) -> Result<NarUrl, GatewayError> {
        let text = self.find_narinfo(part, head).await.ok_or(GatewayError::NotFound)?;
        let text = std::str::from_utf8(&text).map_err(|_| GatewayError::NotFound)?;
        let file = text.lines().find_map(|line| line.strip_prefix("URL: nar/")).ok_or(GatewayError::NotFound)?;
        let url = NarUrl::parse_file_name(file).ok().filter(|url| url.nar_hash == nar_hash);
        url.ok_or(GatewayError::NotFound)
    }

    /// A response with this body. Its first bytes are read before the head is sent, so that a body which cannot be read at all
    /// is an absent path, and so that one write sends both. For a HEAD nothing is read.
    async fn stream(
        &self,
        kind: RequestKind,
        head: &Parts,
        length: Option<u64>,
        mut body: NarBody,
    ) -> Result<Response, GatewayError> {
        let mut response = if head.method == Method::HEAD {
            self.listener.metrics.on_finished(kind, Outcome::Served);
            Response::new(without_length())
        } else {
            let first = match body.next().await {
                Some(Ok(first)) => first,
                Some(Err(BodyAborted)) => return Err(GatewayError::NotFound),
                None => Bytes::new(),
            };
            let metrics = std::sync::Arc::clone(&self.listener.metrics);
            Response::new(Body::new(StreamedBody::new(kind, first, body, length, metrics)))
        };
        if let Some(length) = length {
            set(&mut response, CONTENT_LENGTH, length);
        }
        Ok(response)
    }

    fn not_modified(&self, kind: RequestKind, validators: Validators) -> Response {
        self.listener.metrics.on_finished(kind, Outcome::Served);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        validators.write(response.headers_mut());
        response
    }
}

/// Whether the client unpacks bzip2 itself, as Nix does since 2.9.
fn accepts_bzip2(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    codings.any(|list| {
        list.split(',').any(|coding| {
            let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
            let weight = parameters.trim().strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
            name.trim().eq_ignore_ascii_case("bzip2") && weight.is_none_or(|weight| weight > 0.0)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bzip2_is_sent_only_to_clients_that_ask_for_it() {
        let accepts = |value: &str| {
            accepts_bzip2(&HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap())]))
        };
        assert!(accepts("zstd, br, gzip, deflate, bzip2, xz") && accepts("BZIP2;q=0.5"));
        for value in ["gzip", "", "*", "bzip2;q=0", "bzip2; q=0.0", "bzip22"] {
            assert!(!accepts(value), "{value}");
        }
        assert!(!accepts_bzip2(&HeaderMap::new()));
    }
}
