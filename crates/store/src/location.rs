//! Where a Nix store lies: its logical directory, its real directory and its state directory.

use narmesh_protocol::{StoreDir, StorePath, StorePathError};
use std::fmt;
use std::path::{Path, PathBuf};

/// The logical directory of Nix's default store.
const DEFAULT_STORE_DIR: &str = "/nix/store";
/// File name of the database in its directory.
pub(crate) const DATABASE_FILE: &str = "db.sqlite";

/// The three directories of one Nix store. They differ in chroot stores and in relocated ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreLocation {
    /// The logical store directory, which appears in paths and fingerprints.
    pub store_dir: StoreDir,
    /// The directory in which the files actually lie.
    pub real_dir: PathBuf,
    /// Nix's state directory, which holds `db/db.sqlite` and `daemon-socket/socket`.
    pub state_dir: PathBuf,
    /// Nix's log directory, which holds `drvs`.
    pub log_dir: PathBuf,
}

/// What is missing at a store's location, so that it reads as an empty store. Nix may create it
/// later, or a disk may be mounted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreGap {
    /// The directory for the files does not exist.
    NoDirectory(PathBuf),
    /// The database does not exist, or is not a regular file.
    NoDatabase(PathBuf),
    /// The file is not a Nix database, for the reason given.
    NotNix(PathBuf, String),
}

impl fmt::Display for StoreGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDirectory(path) => write!(f, "there is no directory {}", path.display()),
            Self::NoDatabase(path) => write!(f, "there is no Nix database {}", path.display()),
            Self::NotNix(path, why) => write!(f, "{} is not a Nix database: {why}", path.display()),
        }
    }
}

impl StoreLocation {
    /// What is missing, as far as the file system shows.
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
        Ok(Self {
            store_dir,
            real_dir: root.join("nix/store"),
            state_dir: root.join("nix/var/nix"),
            log_dir: root.join("nix/var/log/nix"),
        })
    }

    /// The directory that holds the database.
    pub fn database_dir(&self) -> PathBuf {
        self.state_dir.join("db")
    }

    /// The socket on which the Nix daemon listens.
    pub fn daemon_socket(&self) -> PathBuf {
        self.state_dir.join("daemon-socket/socket")
    }

    /// The file or directory on disk for this store path.
    pub fn real_path(&self, path: &StorePath) -> PathBuf {
        self.real_dir.join(path.to_string())
    }
}
