//! Requests to one HTTP cache: narinfos over HTTP/2 where there is one, bodies over connections of their own, redirects
//! followed by rules.

use crate::chain::Chains;
use crate::failure::{Failure, FailureKind};
use crate::reach::{Proxied, is_public_address, public_by_name};
use crate::settings::{Credentials, ProxyChoice, UpstreamSettings};
use data_encoding::BASE64;
use narmesh_protocol::{HashPart, circle};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, DATE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Proxy, Request, Response, StatusCode, Url};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

/// Redirects that are followed for one request; a cache in front of an object store needs one.
const REDIRECTS_MAX: usize = 5;
/// An idle connection is closed after this: before most servers do, so that a request rarely meets one that is closing
/// (nginx: 75 s, S3: some 20 s).
const IDLE_MAX: Duration = Duration::from_secs(15);
/// A connection with requests under way is asked for a sign of life this often, and given up without one.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A narinfo, or another small file: many at once on one connection.
    Text,
    /// A NAR: a connection of its own, so that a slow reader delays nobody else.
    Body,
}

/// The client of one cache.
#[derive(Debug)]
pub(crate) struct Http {
    base: Url,
    authorization: Option<HeaderValue>,
    texts: Client,
    bodies: Client,
    /// For redirects of a public host: names that lead to private addresses do not exist for it.
    redirected: Client,
    proxied: Proxied,
    chains: Chains,
}

impl Http {
    pub(crate) fn new(base: Url, settings: &UpstreamSettings, chains: Chains) -> Result<Self, Failure> {
        let made = || {
            Ok::<_, reqwest::Error>((
                client(settings, Purpose::Text, Resolver { only_public: false })?,
                client(settings, Purpose::Body, Resolver { only_public: false })?,
                client(settings, Purpose::Body, Resolver { only_public: true })?,
            ))
        };
        let (texts, bodies, redirected) = made().map_err(|error| Failure::of_error(&error))?;
        let authorization = settings.credentials.as_ref().map(authorization).transpose()?;
        let proxied = Proxied::of(&settings.proxy);
        Ok(Self { base, authorization, texts, bodies, redirected, proxied, chains })
    }

    /// Requests a file of the cache from byte `offset` on, and returns the final response, whatever its status. The file is of
    /// the path `part`, if of any.
    pub(crate) async fn get(
        &self,
        name: &str,
        part: Option<&HashPart>,
        offset: u64,
        purpose: Purpose,
    ) -> Result<Response, Failure> {
        let asking = self.chains.ask(part);
        let mut url = self.base.join(name).map_err(|error| Failure::new(FailureKind::BadNarInfo, error.to_string()))?;
        // A narinfo names the file, and nobody signed that: it must not send our credentials to another host.
        if url.origin() != self.base.origin() {
            return Err(Failure::new(FailureKind::BadNarInfo, format!("its URL leads to {}", host_of(&url))));
        }
        let (mut client, mut is_public) = (if purpose == Purpose::Text { &self.texts } else { &self.bodies }, false);
        // Followed here and not by the client, because each hop is looked at.
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(client, &url, &asking.via, offset).await?;
            // Before anything else of it is believed: this gateway asked itself.
            self.refuse_circle(&response)?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            is_public |= self.came_from_public(&response);
            url = next_hop(&response, is_public)?;
            // A proxy resolves the names that it is given, and may have a private address itself.
            client = if is_public && !self.proxied.is_used_for(&url) { &self.redirected } else { &self.bodies };
        }
        Err(Failure::new(FailureKind::Redirect, format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// Whether whoever answered is on the internet. Of a response that came through a proxy only the URL is known.
    fn came_from_public(&self, response: &Response) -> bool {
        if self.proxied.is_used_for(response.url()) {
            return public_by_name(response.url());
        }
        response.remote_addr().is_some_and(|address| is_public_address(address.ip()))
    }

    /// An answer of this very process is none, nor one of a daemon that would have to ask us.
    fn refuse_circle(&self, response: &Response) -> Result<(), Failure> {
        let id = response.headers().get(circle::ID).and_then(|id| id.to_str().ok());
        if id.is_some_and(|id| self.chains.is_own(id)) {
            return Err(Failure::new(FailureKind::LeadsBack, "its url leads back to this gateway"));
        }
        if response.headers().contains_key(circle::CIRCLE) {
            return Err(Failure::new(FailureKind::Circle, "it asks this gateway itself"));
        }
        Ok(())
    }

    async fn send(&self, client: &Client, url: &Url, via: &str, offset: u64) -> Result<Response, Failure> {
        let request = || -> Result<Request, Failure> {
            let mut headers = HeaderMap::new();
            // How a NAR is compressed is said in its narinfo; a server must not do it once more.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if offset > 0 {
                let range = HeaderValue::from_str(&format!("bytes={offset}-"));
                headers.insert(RANGE, range.map_err(|error| Failure::new(FailureKind::BadNar, error.to_string()))?);
            }
            if url.origin() == self.base.origin() {
                if let Some(authorization) = &self.authorization {
                    headers.insert(AUTHORIZATION, authorization.clone());
                }
                if let Ok(via) = HeaderValue::from_str(via) {
                    headers.insert(circle::VIA, via);
                }
            }
            client.get(url.clone()).headers(headers).build().map_err(|error| Failure::of_error(&error))
        };
        match client.execute(request()?).await {
            Ok(response) => Ok(response),
            Err(error) => match Failure::of_error(&error.without_url()) {
                // The server may have closed an idle connection just then: one more try, on another one.
                Failure { kind: FailureKind::Interrupted, .. } => {
                    client.execute(request()?).await.map_err(|error| Failure::of_error(&error.without_url()))
                }
                failure => Err(failure),
            },
        }
    }
}

/// How the cache answered, apart from success.
pub(crate) enum Refusal {
    /// It does not have the file.
    Absent,
    /// It gave no answer about the file.
    Failed(Failure),
}

/// What a status other than 200 and 206 means. An object store whose contents may not be listed says 403 of a file that
/// is not there, so Nix takes that as absent, too.
pub(crate) fn refusal_of(response: &Response) -> Refusal {
    let status = response.status();
    let retry_after = matches!(status.as_u16(), 429 | 503).then(|| retry_after(response.headers())).flatten();
    let kind = match status.as_u16() {
        403 | 404 | 410 => return Refusal::Absent,
        401 | 407 => FailureKind::Unauthorized,
        429 => FailureKind::RateLimited,
        // It says when it will answer.
        503 if retry_after.is_some() => FailureKind::RateLimited,
        500.. => FailureKind::ServerError,
        _ => FailureKind::UnexpectedStatus,
    };
    Refusal::Failed(Failure { kind, detail: format!("status {}", status.as_u16()), retry_after })
}

/// What `Retry-After` asks for: seconds, or a date (RFC 9110, 10.2.3), which is taken by the clock of the server where it
/// tells the time.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| Some(headers.get(name)?.to_str().ok()?.trim());
    let asked = text(RETRY_AFTER)?;
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(asked).ok()?;
    let now = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(SystemTime::now);
    Some(until.duration_since(now).unwrap_or_default())
}

fn authorization(credentials: &Credentials) -> Result<HeaderValue, Failure> {
    let text = match credentials {
        Credentials::Token(token) => format!("Bearer {token}"),
        Credentials::User { user, password } => {
            format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
        }
    };
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Failure::new(FailureKind::Unauthorized, "the credentials contain control characters"))?;
    // So that no log of the HTTP client shows it.
    value.set_sensitive(true);
    Ok(value)
}

fn client(settings: &UpstreamSettings, purpose: Purpose, resolver: Resolver) -> Result<Client, reqwest::Error> {
    // reqwest takes the provider of the process; a second call changes nothing.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let builder = Client::builder()
        .user_agent(concat!("narmesh/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .referer(false)
        .connect_timeout(settings.connect_timeout)
        .read_timeout(settings.stall_timeout)
        .pool_idle_timeout(IDLE_MAX)
        .tcp_nodelay(true)
        .dns_resolver(resolver);
    let builder = match purpose {
        Purpose::Text => builder.http2_keep_alive_interval(KEEP_ALIVE).http2_keep_alive_timeout(KEEP_ALIVE),
        Purpose::Body => builder.http1_only(),
    };
    let builder = match &settings.proxy {
        ProxyChoice::Environment => builder,
        ProxyChoice::Direct => builder.no_proxy(),
        ProxyChoice::Url(proxy) => builder.proxy(Proxy::all(proxy.clone())?),
    };
    let certificates = Certificate::from_pem_bundle(&settings.extra_certificates)?;
    builder.tls_certs_merge(certificates).build()
}

/// Where a redirect leads, if it may be followed.
fn next_hop(response: &Response, is_public: bool) -> Result<Url, Failure> {
    let refuse = |why: String| Failure::new(FailureKind::Redirect, why);
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| refuse("a redirect without Location".to_owned()))?;
    let url = response.url().join(location).map_err(|error| refuse(error.to_string()))?;
    // Never from an encrypted connection to an open one.
    match (response.url().scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        (from, to) => return Err(refuse(format!("from {from} to {to}"))),
    }
    // A cache on the internet must not have us ask what only our own network reaches.
    if is_public && !public_by_name(&url) {
        return Err(refuse(format!("from a public address to {}", host_of(&url))));
    }
    Ok(url)
}

fn host_of(url: &Url) -> &str {
    url.host_str().unwrap_or("nowhere")
}

/// The system's resolver, whose failures can be told from others.
#[derive(Clone, Copy, Debug)]
struct Resolver {
    only_public: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let only_public = self.only_public;
        Box::pin(async move {
            let dns = |detail| io::Error::other(Failure::new(FailureKind::Dns, detail));
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found: Vec<SocketAddr> = found.map_err(|error| dns(format!("{}: {error}", name.as_str())))?.collect();
            if found.is_empty() {
                return Err(dns(format!("{}: no address", name.as_str())).into());
            }
            let usable: Vec<_> =
                found.into_iter().filter(|address| !only_public || is_public_address(address.ip())).collect();
            if usable.is_empty() {
                let why = format!("{} has only private addresses", name.as_str());
                return Err(io::Error::other(Failure::new(FailureKind::Redirect, why)).into());
            }
            Ok(Box::new(usable.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderName;

    #[test]
    fn retry_after_is_seconds_or_a_date_by_the_clock_of_the_server() {
        let asked = |fields: &[(HeaderName, &'static str)]| {
            let fields = fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            retry_after(&fields.collect())
        };
        let at = (RETRY_AFTER, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(asked(&[(RETRY_AFTER, " 7 ")]), Some(Duration::from_secs(7)));
        assert_eq!(asked(&[at.clone(), (DATE, "Sun, 06 Nov 1994 08:49:30 GMT")]), Some(Duration::from_secs(7)));
        assert_eq!(asked(&[at.clone(), (DATE, "Sun, 06 Nov 1994 08:50:00 GMT")]), Some(Duration::ZERO));
        assert_eq!(asked(&[at]), Some(Duration::ZERO), "long ago by our clock");
        for nothing in ["", "-1", "soon", "1.5", "99999999999999999999"] {
            assert_eq!(asked(&[(RETRY_AFTER, nothing)]), None, "{nothing}");
        }
        assert_eq!(asked(&[]), None);
    }
}
