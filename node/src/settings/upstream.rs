//! `[[upstream]]`, checked.

use super::netrc::{Login, find_login};
use super::secrets::{SecretError, read_secret};
use super::{Count, NAME_FORM, SettingsError, check_patterns, check_public_keys, is_name, path_from, refused, within};
use crate::config::UpstreamConfig;
use crate::regular_file::read_text;
use narmesh_protocol::NamePattern;
use narmesh_upstream::{Credentials, Place, ProxyChoice};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most `[[upstream]]` entries.
pub const UPSTREAMS_MAX: usize = 64;
/// Largest file of certificates, bytes.
const CA_FILE_BYTES_MAX: u64 = 4 << 20;
/// Longest user name, bytes.
const USER_BYTES_MAX: usize = 256;

/// One checked `[[upstream]]` that is enabled.
#[derive(Clone, PartialEq, Debug)]
pub struct UpstreamSettings {
    /// All but what is in other files. Its name has 1 to 64 bytes without control characters.
    pub cache: narmesh_upstream::UpstreamSettings,
    /// Where its credentials are, if it needs any.
    pub credentials: Option<CredentialsFile>,
    /// A file of PEM certificates, beside those of the system.
    pub ca_file: Option<PathBuf>,
}

/// Where the credentials of a cache are.
#[derive(Clone, PartialEq, Debug)]
pub enum CredentialsFile {
    /// A file with a token.
    Token(PathBuf),
    /// A user name, and a file with the password.
    Password {
        /// The name.
        user: String,
        /// The file.
        file: PathBuf,
    },
    /// A netrc file, and the host whose entry counts.
    Netrc {
        /// The host of the cache.
        host: String,
        /// The file.
        file: PathBuf,
    },
}

impl UpstreamSettings {
    /// Reads the files that it names.
    pub fn read(&self) -> Result<narmesh_upstream::UpstreamSettings, SecretError> {
        let mut cache = self.cache.clone();
        // Which of several entries it is, only its name tells: those that are not enabled have been left out.
        let key = |field: &str| format!("{field} of [[upstream]] {:?}", self.cache.name);
        cache.credentials = self.credentials.as_ref().map(|file| file.read(key)).transpose()?;
        let certificates = self.ca_file.as_deref().map(|file| read_certificates(key("ca_file"), file)).transpose()?;
        cache.extra_certificates = certificates.unwrap_or_default();
        Ok(cache)
    }
}

impl CredentialsFile {
    /// `key` says what a field of this entry is called.
    fn read(&self, key: impl Fn(&str) -> String) -> Result<Credentials, SecretError> {
        Ok(match self {
            Self::Token(path) => Credentials::Token(read_line(key("token_file"), path)?),
            Self::Password { user, file } => {
                Credentials::User { user: user.clone(), password: read_line(key("password_file"), file)? }
            }
            Self::Netrc { host, file } => read_netrc(key("netrc_file"), host, file)?,
        })
    }
}

/// Reads a secret of one line.
fn read_line(key: String, path: &Path) -> Result<String, SecretError> {
    const ACCEPTED: &str = "a file with one line of text that only its owner may read";
    let text = read_secret(key.clone(), path, ACCEPTED)?.trim().to_owned();
    let why = match () {
        () if text.is_empty() => "it holds no text",
        () if text.contains('\n') => "it holds more than one line",
        () if text.chars().any(char::is_control) => "it holds a control character",
        () => return Ok(text),
    };
    Err(unusable(key, path, why, ACCEPTED))
}

fn read_netrc(key: String, host: &str, path: &Path) -> Result<Credentials, SecretError> {
    const ACCEPTED: &str = "a netrc file that only its owner may read, of at most 64 KiB, with login and password for the \
                            host of the cache";
    let login = find_login(&read_secret(key.clone(), path, ACCEPTED)?, host);
    // Either would break the header that they are put into.
    let is_usable = |login: &Login| is_user(&login.user) && !login.password.chars().any(char::is_control);
    let login = login.filter(is_usable).ok_or_else(|| {
        unusable(key, path, &format!("it holds no login and password for {host} that can be sent"), ACCEPTED)
    })?;
    Ok(Credentials::User { user: login.user, password: login.password })
}

/// Whether this may be sent as the name of a user: a colon would end it.
fn is_user(name: &str) -> bool {
    (1..=USER_BYTES_MAX).contains(&name.len()) && !name.contains(|letter: char| letter == ':' || letter.is_control())
}

fn read_certificates(key: String, path: &Path) -> Result<Vec<u8>, SecretError> {
    const ACCEPTED: &str = "a file of PEM certificates (BEGIN CERTIFICATE), at most 4 MiB";
    let text = read_text(path, CA_FILE_BYTES_MAX).map_err(|source| SecretError::Read {
        key: key.clone().into(),
        path: path.to_owned(),
        source,
        accepted: ACCEPTED,
    })?;
    let Some(text) = text else { return Err(unusable(key, path, "it is larger than 4 MiB", ACCEPTED)) };
    let mut certificates = CertificateDer::pem_slice_iter(text.as_bytes());
    let why = match certificates.try_fold(0_usize, |count, read| read.map(|_| count + 1)) {
        Ok(0) => "it holds no certificate".to_owned(),
        Ok(_) => return Ok(text.into_bytes()),
        Err(error) => format!("a certificate in it cannot be read: {error}"),
    };
    Err(unusable(key, path, &why, ACCEPTED))
}

fn unusable(key: String, path: &Path, why: &str, accepted: &'static str) -> SecretError {
    SecretError::Unusable { key: key.into(), path: path.to_owned(), why: why.to_owned(), accepted }
}

/// Checks all entries; those that are not enabled are checked and left out.
pub(super) fn check(configs: &[UpstreamConfig], base: &Path) -> Result<Vec<UpstreamSettings>, SettingsError> {
    if configs.len() > UPSTREAMS_MAX {
        return Err(refused("upstream", Count(configs.len(), "entries"), "at most 64 [[upstream]]"));
    }
    let mut checked = Vec::new();
    for (index, config) in configs.iter().enumerate() {
        if let Some(first) = configs.iter().take(index).position(|known| known.name == config.name) {
            return Err(SettingsError::Duplicate {
                key: format!("upstream[{index}].name"),
                value: config.name.clone(),
                first: format!("upstream[{first}].name"),
                accepted: "one [[upstream]] per name",
            });
        }
        // Also of those that are not enabled, so that a mistake does not wait there until somebody enables it.
        let upstream = check_one(config, index, base)?;
        if config.enabled {
            checked.push(upstream);
        }
    }
    Ok(checked)
}

fn check_one(config: &UpstreamConfig, index: usize, base: &Path) -> Result<UpstreamSettings, SettingsError> {
    let key = |field: &str| format!("upstream[{index}].{field}");
    if !is_name(&config.name) {
        return Err(refused(key("name"), &config.name, NAME_FORM));
    }
    let place = Place::parse(&config.url).map_err(|_| {
        refused(
            key("url"),
            // A password in the URL must not reach a log.
            config.url.split_once('@').map_or(config.url.as_str(), |_| "(a URL with credentials)"),
            "https://HOST/PATH, http://HOST/PATH or file:///DIRECTORY, without user and password",
        )
    })?;
    let file =
        |field: &str, path: &Option<PathBuf>| path.as_ref().map(|path| path_from(base, &key(field), path)).transpose();
    let files = (file("token_file", &config.token_file)?, file("netrc_file", &config.netrc_file)?);
    let credentials = match (files, &config.user, file("password_file", &config.password_file)?) {
        ((None, None), None, None) => None,
        ((Some(path), None), None, None) => Some(CredentialsFile::Token(path)),
        ((None, Some(file)), None, None) => match &place {
            // A netrc file has entries for hosts, so the host of the URL says which one is meant.
            Place::Http(url) => url.host_str().map(|host| CredentialsFile::Netrc { host: host.to_owned(), file }),
            Place::Directory(_) => {
                return Err(refused(key("netrc_file"), &file, "no netrc_file where url is file:///DIRECTORY"));
            }
        },
        ((None, None), Some(user), Some(file)) => Some(CredentialsFile::Password { user: user.clone(), file }),
        (_, user, _) => {
            let accepted = "`token_file` alone, `netrc_file` alone, or `user` and `password_file` together";
            return Err(refused(key("user"), user.as_deref().unwrap_or_default(), accepted));
        }
    };
    // A colon would end the user name in the header.
    if let Some(user) = config.user.as_ref().filter(|user| !is_user(user)) {
        return Err(refused(key("user"), user, "1 to 256 bytes without colons and control characters"));
    }
    let proxy = match config.proxy.as_deref() {
        None => ProxyChoice::Environment,
        Some("none") => ProxyChoice::Direct,
        Some(url) => match Place::parse(url) {
            Ok(Place::Http(url)) => ProxyChoice::Url(url),
            Ok(Place::Directory(_)) | Err(_) => {
                return Err(refused(key("proxy"), url, "http://HOST:PORT, https://HOST:PORT or \"none\""));
            }
        },
    };
    let tier = within(&key("tier"), config.tier, (0, u32::from(u8::MAX)))?;
    let milliseconds = |field: &str, value, bounds| within(&key(field), value, bounds).map(Duration::from_millis);
    check_patterns(&key("include"), &config.include)?;
    check_patterns(&key("exclude"), &config.exclude)?;
    let patterns = |texts: &[String]| texts.iter().map(|text| NamePattern::new(text)).collect();
    let cache = narmesh_upstream::UpstreamSettings {
        name: config.name.clone(),
        place,
        trusted: check_public_keys(&key("public_keys"), &config.public_keys)?,
        tier: u8::try_from(tier).unwrap_or(u8::MAX),
        include: patterns(&config.include),
        exclude: patterns(&config.exclude),
        credentials: None,
        proxy,
        extra_certificates: Vec::new(),
        connect_timeout: milliseconds("connect_timeout_ms", config.connect_timeout_ms, (100, 60_000))?,
        stall_timeout: milliseconds("stall_timeout_ms", config.stall_timeout_ms, (100, 600_000))?,
    };
    Ok(UpstreamSettings { cache, credentials, ca_file: file("ca_file", &config.ca_file)? })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::settings::Settings;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn refusal_of_a_file_says_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let pem = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        let two_lines = "a\nb\n";
        for (field, content, why) in [
            ("ca_file", String::new(), "it holds no certificate"),
            ("ca_file", pem("PRIVATE KEY", "AAAA"), "it holds no certificate"),
            ("ca_file", pem("CERTIFICATE", "!"), "a certificate in it cannot be read"),
            ("ca_file", "x".repeat((4 << 20) + 1), "it is larger than 4 MiB"),
            ("token_file", "\n".to_owned(), "it holds no text"),
            ("token_file", two_lines.to_owned(), "it holds more than one line"),
            ("token_file", "a\u{7f}".to_owned(), "it holds a control character"),
            (
                "netrc_file",
                "machine other login a password b".to_owned(),
                "it holds no login and password for c.example",
            ),
        ] {
            let (file, path) = (dir.path().join("narmesh.toml"), dir.path().join("x"));
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let text = format!("[[upstream]]\nname = 'c'\nurl = 'https://c.example'\n{field} = 'x'");
            let settings = Settings::check(Config::parse(&text, &file).unwrap(), &file).unwrap();
            let said = settings.upstreams[0].read().unwrap_err().to_string();
            assert!(said.starts_with(&format!("{field} of [[upstream]] \"c\" = ")) && said.contains(why), "{said}");
            assert!(said.contains("; accepted: ") && !said.contains("holds no key"), "{said}");
        }
    }
}
