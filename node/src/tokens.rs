//! The file of tokens that listeners accept: one line each, with the name, the SHA-256 of the token, and perhaps what may be
//! read with it and until when.
//!
//! narmesh chooses the tokens: 32 random bytes each. That is why a plain digest of them is enough: a slow one would only
//! help against guessing what people choose.

use crate::regular_file::{lock, read_text, replace, with_suffix};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use narmesh_http_gateway::Reads;
use rand::TryRng;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use subtle::ConstantTimeEq;

/// Largest such file, bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Most tokens in a file. Each request is compared with all of them.
pub(crate) const TOKENS_MAX: usize = 1_024;
/// Longest name of a token, bytes.
const NAME_BYTES_MAX: usize = 64;
/// How a token begins, so that one that was published by mistake is recognised.
const TOKEN_PREFIX: &str = "narmesh-token-";
const DIGEST_PREFIX: &str = "sha256:";
/// The word of a token that is for the own store alone.
const OWN_STORE: &str = "own-store";
const HEADER: &str =
    "# Tokens for the gateway's listeners, changed by `narmesh token`. The tokens themselves are nowhere.\n";

/// One token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Token {
    /// Its name, which is also the user name for clients that need one.
    pub(crate) name: String,
    digest: [u8; 32],
    /// What its clients may read.
    pub(crate) reads: Reads,
    /// When it ends to count.
    pub(crate) until: Option<Timestamp>,
}

/// All tokens of a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tokens(Vec<Token>);

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokensError {
    /// The file cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of reading or writing it.
        source: io::Error,
    },
    /// The file is larger than any that narmesh writes.
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes, so it holds no tokens", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line has another form.
    #[error("{path}: line {line} is refused; accepted: NAME sha256:<64 hex digits> [own-store] [until <time with a zone>], a name and digest of its own on each line", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
    },
    /// There is no room for one more.
    #[error("there are {TOKENS_MAX} tokens already; revoke some")]
    TooMany,
}

/// Whether the text may be the name of a token.
pub(crate) fn is_token_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl Tokens {
    /// Reads a file; one that is not there holds no tokens.
    pub(crate) fn read(path: &Path) -> Result<Self, TokensError> {
        match read_text(path, FILE_BYTES_MAX) {
            Ok(Some(text)) => Self::parse(&text).map_err(|line| TokensError::Line { path: path.to_owned(), line }),
            Ok(None) => Err(TokensError::TooLarge { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(TokensError::Io { path: path.to_owned(), source }),
        }
    }

    /// Parses the text of a file; the error is the number of a line.
    fn parse(text: &str) -> Result<Self, usize> {
        let mut tokens: Vec<Token> = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let token = parse_line(text).ok_or(line)?;
            // A name that stands twice would leave it open which of the two `revoke` means, and a digest that does, what may
            // be read with its token and until when.
            let is_same = |known: &Token| known.name == token.name || known.digest == token.digest;
            if tokens.len() == TOKENS_MAX || tokens.iter().any(is_same) {
                return Err(line);
            }
            tokens.push(token);
        }
        Ok(Self(tokens))
    }

    /// The tokens in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.iter()
    }

    /// What may be read with this secret at this time; `None` if it is that of no token that counts. How long it takes depends
    /// on the number of tokens alone.
    pub(crate) fn admit(&self, secret: &[u8], now: Timestamp) -> Option<Reads> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        let counts = |token: &Token| token.until.is_none_or(|until| now < until);
        // All are compared, also after one that is the same.
        self.0.iter().fold(None, |found, token| {
            if bool::from(token.digest.ct_eq(&digest)) & counts(token) { Some(token.reads) } else { found }
        })
    }

    /// Adds a token, in place of one of the same name, and returns its secret, which is kept nowhere.
    pub(crate) fn add(&mut self, name: &str, reads: Reads, until: Option<Timestamp>) -> Result<String, TokensError> {
        self.revoke(name);
        if self.0.len() == TOKENS_MAX {
            return Err(TokensError::TooMany);
        }
        let mut secret = [0; 32];
        let no_randomness = |error: rand::rngs::SysError| io::Error::other(error);
        rand::rngs::SysRng
            .try_fill_bytes(&mut secret)
            .map_err(|error| TokensError::Io { path: "/dev/urandom".into(), source: no_randomness(error) })?;
        let secret = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
        self.0.push(Token { name: name.to_owned(), digest: Sha256::digest(&secret).into(), reads, until });
        Ok(secret)
    }

    /// Removes the token of this name; `false` if there is none.
    pub(crate) fn revoke(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|token| token.name != name);
        self.0.len() < before
    }

    /// Changes what is in a file, and returns what `change` returns. Others who change it at the same time wait, so that no change
    /// of theirs is lost. If `change` fails, nothing is written.
    pub(crate) fn change<T>(path: &Path, change: impl FnOnce(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        // A file of its own, because the file of the tokens is replaced by each change.
        let path_of_lock = with_suffix(path, ".lock");
        let file = lock(&path_of_lock).map_err(|source| TokensError::Io { path: path_of_lock, source })?;
        let mut tokens = Self::read(path)?;
        let changed = change(&mut tokens)?;
        tokens.write(path)?;
        // Dropping the file releases the lock.
        drop(file);
        Ok(changed)
    }

    /// Writes the file anew, in one step.
    fn write(&self, path: &Path) -> Result<(), TokensError> {
        // The daemon reads it as another user. Digests of 32 random bytes tell nothing.
        let readable = |file: &fs::File| file.set_permissions(fs::Permissions::from_mode(0o644));
        let written = replace(path, self.render().as_bytes(), readable);
        written.map_err(|source| TokensError::Io { path: path.to_owned(), source })
    }

    fn render(&self) -> String {
        let mut text = HEADER.to_owned();
        for Token { name, digest, reads, until } in &self.0 {
            write!(text, "{name} {DIGEST_PREFIX}").expect("a String takes everything");
            for byte in digest {
                write!(text, "{byte:02x}").expect("a String takes everything");
            }
            if *reads == Reads::OwnStore {
                write!(text, " {OWN_STORE}").expect("a String takes everything");
            }
            if let Some(until) = until {
                write!(text, " until {until}").expect("a String takes everything");
            }
            text.push('\n');
        }
        text
    }
}

fn parse_line(text: &str) -> Option<Token> {
    let mut words = text.split_ascii_whitespace();
    let name = words.next().filter(|name| is_token_name(name))?.to_owned();
    let digits = words.next()?.strip_prefix(DIGEST_PREFIX)?.as_bytes();
    let mut digest = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    let mut word = words.next();
    let reads = if word == Some(OWN_STORE) { Reads::OwnStore } else { Reads::Everything };
    if reads == Reads::OwnStore {
        word = words.next();
    }
    let until = match word {
        None => None,
        Some("until") => Some(words.next()?.parse().ok()?),
        Some(_) => return None,
    };
    words.next().is_none().then_some(Token { name, digest, reads, until })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn tokens_come_back_from_their_file_and_their_secrets_are_not_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        assert_eq!(Tokens::read(&file).unwrap(), Tokens::default());
        let mut tokens = Tokens::default();
        let always = tokens.add("ci", Reads::Everything, None).unwrap();
        let ends = tokens.add("guest.1", Reads::OwnStore, Some(at("2027-01-01T00:00:00Z"))).unwrap();
        tokens.write(&file).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains(&always) && !text.contains(&always[TOKEN_PREFIX.len()..]), "{text}");
        let read = Tokens::read(&file).unwrap();
        assert_eq!(read, tokens);
        let (before, after) = (at("2026-12-31T23:59:59Z"), at("2027-01-01T00:00:00Z"));
        assert_eq!(read.admit(always.as_bytes(), after), Some(Reads::Everything));
        assert_eq!(read.admit(ends.as_bytes(), before), Some(Reads::OwnStore));
        assert_eq!(read.admit(ends.as_bytes(), after), None, "its time is over");
        for wrong in ["", "ci", &always[1..], &format!("{always}x"), &ends.to_uppercase()] {
            assert_eq!(read.admit(wrong.as_bytes(), before), None, "{wrong}");
        }
        let again = tokens.add("ci", Reads::Everything, None).unwrap();
        assert_eq!(tokens.admit(again.as_bytes(), before), Some(Reads::Everything));
        assert_eq!(tokens.admit(always.as_bytes(), before), None);
        assert!(tokens.revoke("ci") && !tokens.revoke("ci"));
        assert_eq!(tokens.admit(again.as_bytes(), before), None);
    }

    #[test]
    fn no_change_is_lost_when_many_come_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens");
        Tokens::change(&file, |tokens| Ok(tokens.add("old", Reads::Everything, None)?)).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    for count in 0..8 {
                        Tokens::change(file, |tokens| {
                            Ok(tokens.add(&format!("{thread}-{count}"), Reads::Everything, None)?)
                        })
                        .unwrap();
                    }
                });
            }
            scope.spawn(|| Tokens::change(&file, |tokens| Ok(tokens.revoke("old"))).unwrap());
        });
        let tokens = Tokens::read(&file).unwrap();
        assert_eq!(tokens.iter().count(), 64);
        assert!(tokens.iter().all(|token| token.name != "old"));
        Tokens::change(&file, |tokens| -> anyhow::Result<()> {
            tokens.revoke("0-0");
            anyhow::bail!("not that one")
        })
        .unwrap_err();
        assert_eq!(Tokens::read(&file).unwrap(), tokens);
    }

    #[test]
    fn line_of_another_form_is_refused_with_its_number() {
        let digest = "0".repeat(64);
        let good = format!(
            "# a\n\na sha256:{} until 2027-01-01T00:00:00Z\nb sha256:{}\nc sha256:{digest} own-store\n",
            "1".repeat(64),
            "2".repeat(64)
        );
        assert_eq!(Tokens::parse(&good).unwrap().iter().count(), 3);
        for bad in [
            "a".to_owned(),
            format!("a {digest}"),
            format!("a sha256:{}", &digest[1..]),
            format!("a sha256:+{}", &digest[1..]),
            format!("a\u{e4} sha256:{digest}"),
            format!("{} sha256:{digest}", "a".repeat(65)),
            format!("a sha256:{digest} until"),
            format!("a sha256:{digest} until soon"),
            format!("a sha256:{digest} until 2027-01-01T00:00:00"),
            format!("a sha256:{digest} own-store own-store"),
            format!("a sha256:{digest} until 2027-01-01T00:00:00Z own-store"),
            format!("a sha256:{digest} from 2027-01-01T00:00:00Z"),
            format!("a sha256:{digest} until 2027-01-01T00:00:00Z x"),
            format!("b sha256:{digest}"),
            // The same token under another name could be one that reads more.
            format!("c sha256:{}", "1".repeat(64)),
        ] {
            let text = format!("b sha256:{} own-store\n{bad}\n", "1".repeat(64));
            assert_eq!(Tokens::parse(&text), Err(2), "{bad}");
        }
        let many: String = (0..=TOKENS_MAX).map(|count| format!("{count} sha256:{count:064x}\n")).collect();
        assert_eq!(Tokens::parse(&many), Err(TOKENS_MAX + 1));
    }
}
