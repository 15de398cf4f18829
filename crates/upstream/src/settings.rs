//! What is configured of a cache.

use narmesh_protocol::{NamePattern, TrustedKeys};
use reqwest::Url;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One cache.
#[derive(Clone, PartialEq, Debug)]
pub struct UpstreamSettings {
    /// Its name in `status`, metrics and logs.
    pub name: String,
    /// The URL or directory that it is asked at.
    pub place: Place,
    /// The keys that count for its narinfos, and for no others.
    pub trusted: TrustedKeys,
    /// Caches of a lower tier are asked first.
    pub tier: u8,
    /// If any are given, only paths whose names match one are taken from it.
    pub include: Vec<NamePattern>,
    /// Paths whose names match one are not taken from it.
    pub exclude: Vec<NamePattern>,
    /// What it wants to see before it answers.
    pub credentials: Option<Credentials>,
    /// Which proxy leads to it.
    pub proxy: ProxyChoice,
    /// PEM certificates that it may be certified by, beside those of the system.
    pub extra_certificates: Vec<u8>,
    /// How long a connection may take, TLS included.
    pub connect_timeout: Duration,
    /// How long nothing may come on a connection that is waited for.
    pub stall_timeout: Duration,
}

impl UpstreamSettings {
    /// Whether a path of this name may come from it.
    pub fn allows(&self, name: &str) -> bool {
        let any = |patterns: &[NamePattern]| patterns.iter().any(|pattern| pattern.matches(name));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }
}

/// Where a cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `http://` or `https://`, with a slash at its end.
    Http(Url),
    /// `file://`: a directory on this machine.
    Directory(PathBuf),
}

/// Why a URL is not the place of a cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Not a URL at all.
    #[error("{0}")]
    Url(String),
    /// Another scheme.
    #[error("scheme {0:?}; accepted: https, http, file")]
    Scheme(String),
    /// The URL contains a user or a password.
    #[error("a URL must not contain credentials; accepted: `token_file`, `netrc_file`, or `user` and `password_file`")]
    Credentials,
    /// A `file://` URL that names no absolute directory on this machine.
    #[error("a file URL must be file:///absolute/directory")]
    Directory,
}

impl Place {
    /// Parses the URL of a cache. Its query is dropped: Nix puts settings of its own there, such as `?priority=30`.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let mut url = Url::parse(text).map_err(|error| PlaceError::Url(error.to_string()))?;
        // Credentials have keys of their own; a URL is shown in `status` and in the log.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(PlaceError::Credentials);
        }
        url.set_query(None);
        url.set_fragment(None);
        match url.scheme() {
            "http" | "https" => {
                // Without it, joining a file name would replace the last part of the path.
                if !url.path().ends_with('/') {
                    url.set_path(&format!("{}/", url.path()));
                }
                Ok(Self::Http(url))
            }
            "file" => url.to_file_path().map(Self::Directory).map_err(|()| PlaceError::Directory),
            scheme => Err(PlaceError::Scheme(scheme.to_owned())),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => f.write_str(url.as_str().trim_end_matches('/')),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// What a cache wants to see before it answers.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// `Authorization: Bearer`.
    Token(String),
    /// `Authorization: Basic`.
    User {
        /// The user name of HTTP's basic authentication.
        user: String,
        /// The password of that user.
        password: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(hidden)",
            Self::User { .. } => "User(hidden)",
        })
    }
}

/// Which proxy leads to a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyChoice {
    /// `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` of the environment.
    #[default]
    Environment,
    /// None, whatever the environment says.
    Direct,
    /// This one.
    Url(Url),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_what_nix_calls_substituters() {
        let place = |text| Place::parse(text).map(|place| place.to_string());
        assert_eq!(place("https://cache.nixos.org?priority=40").unwrap(), "https://cache.nixos.org");
        assert_eq!(place("http://nix.example/team").unwrap(), "http://nix.example/team");
        assert_eq!(place("file:///srv/cache").unwrap(), "file:///srv/cache");
        assert_eq!(place("s3://bucket").unwrap_err(), PlaceError::Scheme("s3".to_owned()));
        assert_eq!(place("https://me:secret@cache.example").unwrap_err(), PlaceError::Credentials);
        assert!(matches!(place("cache.example"), Err(PlaceError::Url(_))));
    }

    #[test]
    fn credentials_are_never_printed() {
        let debug = format!("{:?}", Credentials::Token("very-secret".to_owned()));
        assert!(!debug.contains("secret"), "{debug}");
    }
}
