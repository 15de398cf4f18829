//! A real Nix store in a temporary directory, one for each test.

use narmesh_protocol::{HashPart, NarHash, StoreDir, StorePath};
use narmesh_store::{NarProgress, NarStream, NarStreamError, NixStore, OfferPolicy, PathInfo, StoreLocation};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;

/// Longest wait in tests: ten times the second that we promise to users.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Derivations that need only `/bin/sh` and basic tools.
const DERIVATIONS: &str = include_str!("derivations.nix");

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Its own store and state directory; logical and real directory are the same.
    Relocated,
    /// `local?root=…`, built in the sandbox.
    Chroot,
    /// Logical and real directory differ, and neither is `/nix/store`. Paths are only copied to it.
    Real,
}

pub(crate) struct TestNix {
    pub(crate) dir: TempDir,
    pub(crate) kind: Kind,
    pub(crate) location: StoreLocation,
}

impl TestNix {
    pub(crate) fn new(kind: Kind) -> Self {
        let dir = tempfile::Builder::new().prefix("narmesh-store-").tempdir().unwrap();
        let root = dir.path();
        // Other users must be able to reach it.
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for sub in ["etc", "home", "cache"] {
            fs::create_dir(root.join(sub)).unwrap();
        }
        let sandbox = match kind {
            Kind::Relocated | Kind::Real => "sandbox = false",
            Kind::Chroot => "sandbox = true\nsandbox-fallback = false\nsandbox-paths = /bin/sh=/bin/busybox",
        };
        let conf = format!("{sandbox}\nbuild-users-group =\nsubstituters =\nexperimental-features = nix-command\n");
        fs::write(root.join("etc/nix.conf"), conf).unwrap();
        fs::write(root.join("derivations.nix"), DERIVATIONS).unwrap();
        let location = match kind {
            Kind::Chroot => StoreLocation::chroot(&root.join("root")).unwrap(),
            Kind::Relocated => StoreLocation {
                store_dir: StoreDir::parse(root.join("store").to_str().unwrap()).unwrap(),
                real_dir: root.join("store"),
                state_dir: root.join("var"),
                log_dir: root.join("log"),
            },
            Kind::Real => StoreLocation {
                store_dir: StoreDir::parse("/narmesh/logical/store").unwrap(),
                real_dir: root.join("physical"),
                state_dir: root.join("var"),
                log_dir: root.join("log"),
            },
        };
        let nix = Self { dir, kind, location };
        nix.run("nix-store", &["--init"]);
        nix
    }

    /// Runs a Nix command on this store and returns its output; the test fails if the command does.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_run(program, arguments);
        assert!(output.status.success(), "{program} {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    pub(crate) fn try_run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap_or_else(|error| {
            panic!("these tests need real Nix, and `{program}` cannot be run ({error}): apt-get install nix-bin")
        })
    }

    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let root = self.dir.path();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_remove("NIX_PATH")
            .env_remove("NIX_REMOTE")
            .env("HOME", root.join("home"))
            .env("XDG_CACHE_HOME", root.join("cache"))
            .env("NIX_CONF_DIR", root.join("etc"));
        match self.kind {
            Kind::Relocated => {
                command.env("NIX_STORE_DIR", &self.location.real_dir);
                command.env("NIX_STATE_DIR", &self.location.state_dir).env("NIX_LOG_DIR", root.join("log"));
            }
            Kind::Chroot => {
                command.args(["--store", &format!("local?root={}", root.join("root").display())]);
            }
            Kind::Real => {
                command.env("NIX_STORE_DIR", self.location.store_dir.as_str());
                command.args(["--store", &self.url()]);
            }
        }
        command
    }

    /// The URL of the store, for `nix copy`.
    pub(crate) fn url(&self) -> String {
        let root = self.dir.path().display();
        match self.kind {
            Kind::Chroot => format!("local?root={root}/root"),
            Kind::Relocated => format!("local?real={root}/store&state={root}/var&log={root}/log"),
            Kind::Real => format!("local?real={root}/physical&state={root}/var&log={root}/log"),
        }
    }

    /// Builds an attribute of `derivations.nix` and returns its first output.
    pub(crate) fn build(&self, attribute: &str) -> StorePath {
        let file = self.dir.path().join("derivations.nix");
        let out = self.run("nix-build", &[file.to_str().unwrap(), "-A", attribute, "--no-out-link"]);
        self.parse(out.lines().next().unwrap())
    }

    pub(crate) fn parse(&self, full: &str) -> StorePath {
        self.location.store_dir.parse_path(full).unwrap_or_else(|error| panic!("{full}: {error}"))
    }

    pub(crate) fn full(&self, path: &StorePath) -> String {
        self.location.store_dir.display(path)
    }

    pub(crate) fn open(&self) -> Arc<NixStore> {
        NixStore::open(self.location.clone()).unwrap()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.location.database_dir().join("db.sqlite")
    }

    /// The NAR as Nix makes it.
    pub(crate) fn dump(&self, path: &StorePath) -> Vec<u8> {
        let real = self.location.real_path(path);
        let output = self.try_run_plain("nix-store", &["--dump".as_ref(), real.as_os_str()]);
        assert!(output.status.success());
        output.stdout
    }

    /// Runs a command without `--store`, for commands that only read files.
    fn try_run_plain(&self, program: &str, arguments: &[&OsStr]) -> Output {
        let root = self.dir.path();
        Command::new(program)
            .args(arguments)
            .env("NIX_CONF_DIR", root.join("etc"))
            .env("HOME", root.join("home"))
            .env("NIX_STORE_DIR", root.join("unused/store"))
            .env("NIX_STATE_DIR", root.join("unused/var"))
            .output()
            .unwrap()
    }
}

impl Drop for TestNix {
    fn drop(&mut self) {
        // Nix makes its directories read-only.
        let status = Command::new("chmod").args(["-R", "u+w"]).arg(self.dir.path()).status();
        assert!(status.is_ok());
    }
}

/// A policy without any key that offers as much as possible.
pub(crate) fn open_policy() -> OfferPolicy {
    OfferPolicy {
        is_serving: true,
        trusted: narmesh_protocol::TrustedKeys::default(),
        builder_key: None,
        sign_remote_builds: false,
        include: vec!["*".to_owned()],
        exclude: Vec::new(),
        withhold_defaults: true,
        derivations: false,
        paths_max: 200_000,
    }
}

pub(crate) fn info(store: &NixStore, part: &HashPart) -> PathInfo {
    store.read_path_info(part).unwrap().unwrap_or_else(|| panic!("{part} is not valid"))
}

/// Reads a whole stream in pieces of about `piece_bytes`.
pub(crate) fn read_all(mut stream: NarStream, piece_bytes: usize) -> Result<Vec<u8>, NarStreamError> {
    let mut all = Vec::new();
    let mut piece = Vec::with_capacity(piece_bytes);
    loop {
        piece.clear();
        let progress = stream.fill(&mut piece, piece_bytes)?;
        all.extend_from_slice(&piece);
        if progress == NarProgress::Complete {
            return Ok(all);
        }
        assert!(!piece.is_empty(), "no progress");
        assert!(piece.len() <= piece_bytes + 8192, "{} bytes for {piece_bytes}", piece.len());
    }
}

/// Calls `check` until it is true; for conditions that nothing reports.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

/// Waits until a path that was just built counts as settled.
pub(crate) fn wait_until_settled(path: &Path) {
    let changed = || {
        let newest = Command::new("find").arg(path).args(["-printf", "%C@\n"]).output().unwrap();
        let newest = String::from_utf8(newest.stdout).unwrap();
        newest.lines().map(|line| line.parse::<f64>().unwrap()).fold(0.0, f64::max)
    };
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    while now() < changed() + 3.1 {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// SHA-256 of a NAR.
pub(crate) fn nar_hash(nar: &[u8]) -> NarHash {
    use sha2::Digest as _;
    NarHash(sha2::Sha256::digest(nar).into())
}

/// Makes a file or directory in the store writable, which nobody should do outside of tests.
pub(crate) fn make_writable(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, mode).unwrap();
}
