//! The secrets that a configuration names, read once from files that nobody else may read.

use super::{PeerSettings, Settings};
use crate::database_file::make_directory;
use crate::regular_file::{clear, open_to_read};
use crate::state_files::GATEWAY_KEY_FILE;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libp2p::PeerId;
use libp2p::identity::Keypair;
use narmesh_protocol::{NixPublicKey, NixSecretKey};
use narmesh_quorum::Mode;
use rand::TryRng as _;
use rand::rngs::SysRng;
use std::borrow::Cow;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest file with a secret, bytes.
const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;

/// The file of the node key: one line, `narmesh-node-key-1:` and the base64 of libp2p's protobuf form of an Ed25519 key pair.
#[derive(Debug)]
pub struct NodeKeyFile;

/// The two keys of this node; `Debug` shows no secret.
#[derive(Clone)]
pub struct Secrets {
    /// The node key, our identity on the mesh.
    pub keypair: Keypair,
    /// The builder key, which signs what was built here.
    pub builder_key: Option<NixSecretKey>,
}

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("{key} = {path:?} cannot be read: {source}; accepted: {accepted}")]
    Read {
        /// The configuration key.
        key: Cow<'static, str>,
        /// The file.
        path: PathBuf,
        /// The error of opening or reading the file.
        source: io::Error,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// Others may read the file.
    #[error("{key} = {path:?} has mode {mode:04o}; accepted: no access for group and others (chmod 600)")]
    Mode {
        /// The configuration key.
        key: Cow<'static, str>,
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no key. Its contents are not shown, because they may be part of a secret.
    #[error("{key} = {path:?} holds no key; accepted: {accepted}")]
    Form {
        /// The configuration key.
        key: Cow<'static, str>,
        /// The file.
        path: PathBuf,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// The file holds something that cannot be used.
    #[error("{key} = {path:?} cannot be used: {why}; accepted: {accepted}")]
    Unusable {
        /// The configuration key.
        key: Cow<'static, str>,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, in words.
        why: String,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// The gateway key cannot be made.
    #[error(
        "the gateway key {path:?}, which gateway.sign and quorum.mode = \"require\" need, cannot be made: {source}"
    )]
    Make {
        /// The file.
        path: PathBuf,
        /// The error of making the key or of writing its file.
        source: io::Error,
    },
    /// Our own allowlist contains this node.
    #[error("peer[{index}].peer_id = \"{peer_id}\" ({name:?}) is this node's own; accepted: other machines only")]
    OwnPeerId {
        /// The index of the `[[peer]]`, from 0.
        index: usize,
        /// The name of the `[[peer]]`.
        name: String,
        /// This node's peer id.
        peer_id: PeerId,
    },
}

impl NodeKeyFile {
    /// The first part of the line.
    pub const HEADER: &'static str = "narmesh-node-key-1:";
    const ACCEPTED: &'static str = "a file of one line, narmesh-node-key-1:<base64>, as `narmesh init` writes it";

    /// Writes a new file, readable to its owner only; an existing one is never overwritten.
    pub fn create(path: &Path, keypair: &Keypair) -> io::Result<()> {
        let encoded = keypair.to_protobuf_encoding().map_err(io::Error::other)?;
        write_secret(path, &format!("{}{}\n", Self::HEADER, STANDARD.encode(encoded)))
    }

    /// Reads the node key.
    pub fn read(path: &Path) -> Result<Keypair, SecretError> {
        const KEY: &str = "node.key_file";
        let text = read_secret(KEY, path, Self::ACCEPTED)?;
        let decoded = text.trim().strip_prefix(Self::HEADER).and_then(|encoded| STANDARD.decode(encoded).ok());
        let keypair = decoded.and_then(|bytes| Keypair::from_protobuf_encoding(&bytes).ok());
        keypair.filter(|keypair| keypair.clone().try_into_ed25519().is_ok()).ok_or_else(|| SecretError::Form {
            key: KEY.into(),
            path: path.to_owned(),
            accepted: Self::ACCEPTED,
        })
    }
}

/// Reads a builder key.
pub(crate) fn read_builder_key(path: &Path) -> Result<NixSecretKey, SecretError> {
    const KEY: &str = "trust.builder_key_file";
    const ACCEPTED: &str = "a file with a Nix secret key, name:base64 of 64 bytes, as `narmesh init` or \
                            `nix-store --generate-binary-cache-key` writes it";
    NixSecretKey::parse(read_secret(KEY, path, ACCEPTED)?.trim()).map_err(|_| SecretError::Form {
        key: KEY.into(),
        path: path.to_owned(),
        accepted: ACCEPTED,
    })
}

/// Writes a builder key in Nix's form; an existing file is never overwritten.
pub(crate) fn create_builder_key(path: &Path, key: &NixSecretKey) -> io::Result<()> {
    write_secret(path, &format!("{}\n", key.expose_secret()))
}

/// Where the gateway key is, if it was made.
pub(crate) fn gateway_key_file(state_dir: &Path) -> PathBuf {
    state_dir.join(GATEWAY_KEY_FILE)
}

/// The gateway key, if it was made, whatever the policy is now: see [`Settings::read_gateway_key`].
pub(crate) fn read_gateway_key(state_dir: &Path) -> Result<Option<NixSecretKey>, SecretError> {
    const KEY: &str = "gateway key";
    // A bad file is not moved aside: Nix trusts only this key, and the operator may have a copy to put back.
    const ACCEPTED: &str = "the file with the Nix secret key that the daemon made, or no file: then the daemon makes another \
                            key, which nix.conf has to trust (`narmesh id`)";
    let path = gateway_key_file(state_dir);
    let text = match read_secret(KEY, &path, ACCEPTED) {
        Ok(text) => text,
        Err(SecretError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let key = NixSecretKey::parse(text.trim());
    key.map(Some).map_err(|_| SecretError::Form { key: KEY.into(), path, accepted: ACCEPTED })
}

/// The mesh key, if this machine has one.
pub(crate) fn read_mesh_key(path: &Path) -> Result<Option<NixSecretKey>, SecretError> {
    const KEY: &str = "mesh key";
    const ACCEPTED: &str = "the file with the secret key that `narmesh mesh create` made, or no file";
    let text = match read_secret(KEY, path, ACCEPTED) {
        Ok(text) => text,
        Err(SecretError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let key = NixSecretKey::parse(text.trim());
    key.map(Some).map_err(|_| SecretError::Form { key: KEY.into(), path: path.to_owned(), accepted: ACCEPTED })
}

/// Writes a secret into a new file that only its owner may read.
pub(crate) fn create_secret(path: &Path, text: &str) -> io::Result<()> {
    write_secret(path, text)
}

/// How the name of each gateway key begins.
const GATEWAY_KEY_PREFIX: &str = "narmesh-gateway-";

/// Whether this name, or this public key as text, is that of a gateway key, of whatever machine.
pub(crate) fn is_gateway_key(name: &str) -> bool {
    name.starts_with(GATEWAY_KEY_PREFIX)
}

/// A new key of this name, from the randomness of the operating system.
pub(crate) fn new_nix_key(name: &str) -> io::Result<NixSecretKey> {
    let mut seed = [0; 32];
    SysRng.try_fill_bytes(&mut seed).map_err(io::Error::other)?;
    NixSecretKey::from_seed(name, &seed).map_err(io::Error::other)
}

/// Reads the gateway key, or makes it if it is missing. It is written whole or not at all, because Nix is told to trust
/// it and it must not change after that.
pub(super) fn make_gateway_key(state_dir: &Path) -> Result<NixSecretKey, SecretError> {
    if let Some(key) = read_gateway_key(state_dir)? {
        return Ok(key);
    }
    let path = gateway_key_file(state_dir);
    let failed = |source| SecretError::Make { path: path.clone(), source };
    let key = new_nix_key(&format!("{GATEWAY_KEY_PREFIX}{}", host_name())).map_err(failed)?;
    make_directory(state_dir).map_err(failed)?;
    let unfinished = state_dir.join(format!("{GATEWAY_KEY_FILE}.new"));
    // A process that was killed here may have left its unfinished file.
    clear(&unfinished).map_err(failed)?;
    write_secret(&unfinished, &format!("{}\n", key.expose_secret())).map_err(failed)?;
    std::fs::rename(&unfinished, &path).map_err(failed)?;
    // Without this, a power cut could undo the rename after Nix was told of the key.
    File::open(state_dir).and_then(|directory| directory.sync_all()).map_err(failed)?;
    Ok(key)
}

/// The host name as the kernel gives it, without characters that may not be in the name of a key; `node` if none are
/// left.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.chars().filter(|letter| letter.is_ascii_alphanumeric() || "-._".contains(*letter)).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Where systemd puts the credentials of a service (`LoadCredential=`): below a directory that only its user may enter.
const CREDENTIALS_DIR: &str = "/run/credentials";

/// The permissions that a file with a secret must not have. Since 254, systemd gives a credential to the user of its service by
/// an access control list, and then the mode shows the rights of that user as those of the group.
pub(crate) fn forbidden_bits(path: &Path) -> u32 {
    if path.starts_with(CREDENTIALS_DIR) { 0o037 } else { 0o077 }
}

pub(super) fn read_secret(
    key: impl Into<Cow<'static, str>>,
    path: &Path,
    accepted: &'static str,
) -> Result<String, SecretError> {
    let key = key.into();
    let read_error = |source| SecretError::Read { key: key.clone(), path: path.to_owned(), source, accepted };
    let file = open_to_read(path).map_err(read_error)?;
    // Of the file that was opened, not of its name, which may lead elsewhere a moment later.
    let mode = file.metadata().map_err(read_error)?.mode() & 0o7777;
    if mode & forbidden_bits(path) != 0 {
        return Err(SecretError::Mode { key: key.clone(), path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(SECRET_FILE_BYTES_MAX).read_to_string(&mut text).map_err(read_error)?;
    Ok(text)
}

impl Settings {
    /// The gateway key, if anything is signed with it and it was made. Otherwise nobody looks at its file, whatever lies
    /// there.
    pub(crate) fn read_gateway_key(&self) -> Result<Option<NixSecretKey>, SecretError> {
        if self.needs_gateway_key() { read_gateway_key(&self.node.state_dir) } else { Ok(None) }
    }

    /// The gateway key, made now if it is missing; `None` if nothing is signed with it.
    pub(crate) fn make_gateway_key(&self) -> Result<Option<NixSecretKey>, SecretError> {
        self.needs_gateway_key().then(|| make_gateway_key(&self.node.state_dir)).transpose()
    }

    /// Whether narinfos are signed with the gateway key: all of them, or those that a policy lets through.
    pub(crate) fn needs_gateway_key(&self) -> bool {
        self.gateway.sign || self.quorum.mode() == Mode::Require
    }

    /// The public half of the builder key, if there is one.
    pub fn read_builder_public_key(&self) -> Result<Option<NixPublicKey>, SecretError> {
        Ok(self.builder_key_file.as_deref().map(read_builder_key).transpose()?.map(|key| key.public()))
    }

    /// Reads the keys, and checks that this node is not in its own allowlist.
    pub fn read_secrets(&self) -> Result<Secrets, SecretError> {
        let secrets = Secrets {
            keypair: NodeKeyFile::read(&self.node.key_file)?,
            builder_key: self.builder_key_file.as_deref().map(read_builder_key).transpose()?,
        };
        let own = secrets.peer_id();
        let is_own = |(_, peer): &(usize, &PeerSettings)| peer.peer_id == own;
        match self.peers.iter().enumerate().find(is_own) {
            Some((index, peer)) => Err(SecretError::OwnPeerId { index, name: peer.name.clone(), peer_id: own }),
            None => Ok(secrets),
        }
    }
}

impl Secrets {
    /// This node's peer id.
    pub fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("peer_id", &self.peer_id()).field("builder_key", &self.builder_key).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_of_systemd_may_show_its_users_right_as_the_groups() {
        let forbidden = |path: &str| forbidden_bits(Path::new(path));
        assert_eq!(0o440 & forbidden("/run/credentials/narmesh.service/node.key"), 0);
        assert_ne!(0o444 & forbidden("/run/credentials/narmesh.service/node.key"), 0);
        assert_ne!(0o460 & forbidden("/run/credentials/narmesh.service/node.key"), 0);
        for path in ["/etc/narmesh/node.key", "/run/credentials-of-others/node.key"] {
            assert_ne!(0o440 & forbidden(path), 0, "{path}");
        }
    }
}
