//! Where a Nix store lies: its logical directory, its real directory and its state.

use narmesh_protocol::{StoreDir, StorePath, StorePathError};
use std::fmt;
use std::path::{Path, PathBuf};

/// The logical directory of Nix's own store.
const DEFAULT_STORE_DIR: &str = "/nix/store";
/// The database in its directory.
pub(crate) const DATABASE_FILE: &str = "db.sqlite";

/// The three directories of one Nix store. They differ in chroot stores and in relocated ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreLocation {
    /// The directory that paths and fingerprints name.
    pub store_dir: StoreDir,
    /// The directory in which the files lie.
    pub real_dir: PathBuf,
    /// Nix's state directory, which holds `db/db.sqlite` and `daemon-socket/socket`.
    pub state_dir: PathBuf,
}

/// What a store's place lacks, so that it reads as an empty store. Nix may still make it, or a disk may still be mounted there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreGap {
    /// The directory in which the files would lie is not there.
    NoDirectory(PathBuf),
    /// There is no database, or what lies there is no file.
    NoDatabase(PathBuf),
    /// There is a file, but no database of Nix, and why not.
    NotNix(PathBuf, String),
}

impl fmt::Display for StoreGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDirectory(path) => write!(f, "there is no directory {}", path.display()),
            Self::NoDatabase(path) => write!(f, "there is no Nix database {}", path.display()),
            Self::NotNix(path, why) => write!(f, "{} is no Nix database: {why}", path.display()),
        }
    }
}

impl StoreLocation {
    /// What is not there, as far as the file system tells.
    pub(crate) fn gap(&self) -> Option<StoreGap> {
        let database = self.database_dir().join(DATABASE_FILE);
        if !self.real_dir.is_dir() {
            Some(StoreGap::NoDirectory(self.real_dir.clone()))
        } else if !database.is_file() {
            Some(StoreGap::NoDatabase(database))
        } else {
            None
        }
    }

    /// The store of this machine: `/nix/store` and `/nix/var/nix`.
    pub fn system() -> Result<Self, StorePathError> {
        Self::chroot(Path::new("/"))
    }

    /// The store that Nix calls `local?root=<root>`.
    pub fn chroot(root: &Path) -> Result<Self, StorePathError> {
        let store_dir = StoreDir::parse(DEFAULT_STORE_DIR)?;
        Ok(Self { store_dir, real_dir: root.join("nix/store"), state_dir: root.join("nix/var/nix") })
    }

    /// The directory that holds the database.
    pub fn database_dir(&self) -> PathBuf {
        self.state_dir.join("db")
    }

    /// Where the Nix daemon listens.
    pub fn daemon_socket(&self) -> PathBuf {
        self.state_dir.join("daemon-socket/socket")
    }

    /// The file or directory that is this path's root on disk.
    pub fn real_path(&self, path: &StorePath) -> PathBuf {
        self.real_dir.join(path.to_string())
    }
}
