//! Real Nix stores, driven by real clients.

mod client;
mod held;
mod narinfo_text;
mod version;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binary::repository_root;
use crate::config::StorePlace;
use crate::process::{Finished, finish};

pub use client::{nix_client_environment, nix_homes, with_gateway};
pub use narinfo_text::{NarInfoText, hash_part};
pub use version::NixVersion;

/// The `nix.conf` of a client of chroot stores. Such a store can only build inside the sandbox, where a static shell is the
/// whole system.
pub const CHROOT_NIX_CONF: &str = "\
experimental-features = nix-command
substituters =
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh=/bin/busybox
build-users-group =
require-sigs = true
";

/// The `nix.conf` for a relocated store, whose builder needs neither root nor namespaces.
const NIX_CONF_RELOCATED: &str = "\
experimental-features = nix-command
substituters =
sandbox = false
build-users-group =
require-sigs = true
";

/// One store with a client configuration and a narinfo disk cache of its own.
#[derive(Debug, Clone)]
pub struct NixStoreFixture {
    dir: PathBuf,
    place: StorePlace,
    /// The value of `--store`; `None` where environment variables describe the store.
    store_url: Option<String>,
    environment: Vec<(String, PathBuf)>,
    version: NixVersion,
    run_under: Vec<String>,
}

/// One row of `ValidPaths` in Nix's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRow {
    /// The full store path.
    pub path: String,
    /// NarHash: `sha256:` and hexadecimal digits.
    pub nar_hash: String,
    /// NarSize, in bytes.
    pub nar_size: u64,
    /// Whether it was built here.
    pub ultimate: bool,
    /// Signatures as `name:base64`, in the order of the database.
    pub signatures: Vec<String>,
    /// The content address, empty without one.
    pub content_address: String,
    /// The store paths that it refers to, itself included if it refers to itself.
    pub references: BTreeSet<String>,
}

impl NixStoreFixture {
    /// A chroot store under `dir`: logically `/nix/store`, really `dir/root/nix/store`. It builds as root or with user
    /// namespaces.
    ///
    /// # Panics
    /// When the directories cannot be made.
    #[must_use]
    pub fn chroot(dir: &Path) -> Self {
        let root = dir.join("root");
        Self::make(
            dir,
            CHROOT_NIX_CONF,
            StorePlace::Root(root.clone()),
            Some(format!("local?root={}", root.display())),
            &[],
        )
    }

    /// A store whose logical place is `store_dir`, which is also where it really is; any user can build in it.
    ///
    /// # Panics
    /// As [`NixStoreFixture::chroot`].
    #[must_use]
    pub fn relocated_builder(dir: &Path, store_dir: &Path) -> Self {
        let state_dir = dir.join("var");
        let place = StorePlace::Relocated {
            store_dir: store_dir.to_owned(),
            real_dir: store_dir.to_owned(),
            state_dir: state_dir.clone(),
        };
        let places = [("NIX_STORE_DIR", store_dir.to_owned()), ("NIX_STATE_DIR", state_dir)];
        Self::make(dir, NIX_CONF_RELOCATED, place, None, &places)
    }

    /// A store whose logical place is `store_dir` and which really lies in `dir`; it substitutes and does not build.
    ///
    /// # Panics
    /// As [`NixStoreFixture::chroot`].
    #[must_use]
    pub fn relocated_client(dir: &Path, store_dir: &Path) -> Self {
        let (real_dir, state_dir) = (dir.join("store"), dir.join("var"));
        let url = format!("local?real={}&state={}&log={}/log", real_dir.display(), state_dir.display(), dir.display());
        let place = StorePlace::Relocated { store_dir: store_dir.to_owned(), real_dir, state_dir: state_dir.clone() };
        let places = [("NIX_STORE_DIR", store_dir.to_owned()), ("NIX_STATE_DIR", state_dir)];
        Self::make(dir, NIX_CONF_RELOCATED, place, Some(url), &places)
    }

    fn make(
        dir: &Path,
        nix_conf: &str,
        place: StorePlace,
        store_url: Option<String>,
        places: &[(&str, PathBuf)],
    ) -> Self {
        let (home, conf_dir) = (dir.join("home"), dir.join("etc"));
        for needed in [&home, &conf_dir] {
            fs::create_dir_all(needed).expect("a directory in the story's own");
        }
        fs::write(conf_dir.join("nix.conf"), nix_conf).expect("a file in the story's own directory");
        let mut environment = Vec::from(nix_homes(dir));
        environment.push(("NIX_LOG_DIR".to_owned(), dir.join("log")));
        environment.extend(places.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let version = NixVersion::from_environment();
        let fixture = Self { dir: dir.to_owned(), place, store_url, environment, version, run_under: Vec::new() };
        // Opens the store, which makes its database.
        fixture.query(&["--dump-db"]);
        fixture
    }

    /// From now on, this command starts every Nix of this store; it gets Nix's own command as further arguments.
    pub fn run_nix_under(&mut self, command: &[&str]) {
        self.run_under = command.iter().map(|word| (*word).to_owned()).collect();
    }

    /// From now on, this version of Nix drives the store.
    pub fn use_nix(&mut self, version: NixVersion) {
        self.version = version;
    }

    /// The version that drives it.
    #[must_use]
    pub fn nix_version(&self) -> NixVersion {
        self.version
    }

    /// Where the daemon of this store finds it.
    #[must_use]
    pub fn place(&self) -> StorePlace {
        self.place.clone()
    }

    /// Builds `attribute` of `fixtures/pkgs.nix` from source and returns its output paths.
    ///
    /// # Panics
    /// When the build fails.
    #[track_caller]
    pub fn build(&self, attribute: &str) -> Vec<String> {
        self.build_tagged(attribute, "0")
    }

    /// Builds the one output of `attribute`.
    ///
    /// # Panics
    /// When the build fails, or makes more than one path.
    #[track_caller]
    pub fn build_one(&self, attribute: &str) -> String {
        only(self.build(attribute))
    }

    /// Builds the path `fresh` of this tag: a new path for a new tag.
    ///
    /// # Panics
    /// When the build fails.
    #[track_caller]
    pub fn build_fresh(&self, tag: &str) -> String {
        only(self.build_tagged("fresh", tag))
    }

    /// Builds `attribute` with a tag of the caller's choice.
    ///
    /// # Panics
    /// When the build fails.
    #[track_caller]
    pub fn build_tagged(&self, attribute: &str, tag: &str) -> Vec<String> {
        let mut command = self.nix("nix-build");
        command.arg(packages()).args(["-A", attribute, "--argstr", "tag", tag, "--no-out-link"]);
        lines(&finish(&mut command).expect_success(&format!("nix-build -A {attribute}")))
    }

    /// As [`Self::build_one`], but Nix has another chroot store build it, as on a remote builder, and copies the result back.
    ///
    /// # Panics
    /// As [`Self::build_one`].
    #[track_caller]
    pub fn build_one_on(&self, builder: &Self, attribute: &str) -> String {
        let StorePlace::Root(root) = &builder.place else { panic!("a chroot store") };
        let builders = format!("local?root={} x86_64-linux,aarch64-linux - 1", root.display());
        let mut command = self.nix("nix-build");
        command.arg(packages()).args(["-A", attribute, "--no-out-link", "--max-jobs", "0", "--builders", &builders]);
        only(lines(&finish(&mut command).expect_success("nix-build on a remote builder")))
    }

    /// Writes the derivation of `attribute` into the store, builds nothing, and returns its path.
    ///
    /// # Panics
    /// When Nix refuses.
    #[track_caller]
    pub fn instantiate(&self, attribute: &str) -> String {
        let mut command = self.nix("nix-instantiate");
        command.arg(packages()).args(["-A", attribute]);
        let said = finish(&mut command).expect_success(&format!("nix-instantiate -A {attribute}"));
        said.split('!').next().unwrap_or_default().to_owned()
    }

    /// Copies `path` with all that it refers to from another chroot store, as if it had been substituted.
    ///
    /// # Panics
    /// When Nix refuses.
    #[track_caller]
    pub fn take_from(&self, other: &Self, path: &str) {
        let StorePlace::Root(root) = &other.place else { panic!("a chroot store") };
        let from = format!("local?root={}", root.display());
        let mut copy = self.nix("nix");
        copy.args(["--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", "--from", &from, path]);
        finish(&mut copy).expect_success("nix copy");
    }

    /// Registers `count` paths as built here, in the database alone: quick, and enough for a daemon to advertise them.
    ///
    /// # Panics
    /// When the database cannot be written.
    #[track_caller]
    pub fn register(&self, count: usize) {
        if count == 0 {
            return;
        }
        self.sql(&format!(
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < {count}) \
             insert into ValidPaths (path, hash, registrationTime, narSize, ultimate) \
             select printf('/nix/store/%032d-registered', i), 'sha256:' || printf('%064d', i), 1, 1000, 1 from n"
        ));
    }

    /// `nix-build` of `attribute` with the gateway as the only substituter and no `fallback`: what a user does.
    pub fn nix_build(&self, attribute: &str, gateway: SocketAddr, trusted_public_keys: &[String]) -> Finished {
        finish(&mut self.nix_build_command(attribute, gateway, trusted_public_keys))
    }

    /// The command of [`NixStoreFixture::nix_build`], not yet started.
    #[must_use]
    pub fn nix_build_command(&self, attribute: &str, gateway: SocketAddr, trusted_public_keys: &[String]) -> Command {
        let mut command = self.nix("nix-build");
        command.arg(packages()).args(["-A", attribute, "--no-out-link"]);
        with_gateway(&mut command, gateway, trusted_public_keys);
        command
    }

    /// `nix-store --realise` of a bare path with the gateway as the only substituter; nothing can be built.
    pub fn realise(&self, paths: &[String], gateway: SocketAddr, trusted_public_keys: &[String]) -> Finished {
        let mut command = self.nix("nix-store");
        command.arg("--realise").args(paths).args(["--option", "max-jobs", "0"]);
        finish(with_gateway(&mut command, gateway, trusted_public_keys))
    }

    /// `nix copy --from` the gateway, of `paths` with all that they refer to.
    pub fn copy(&self, paths: &[String], gateway: SocketAddr, trusted_public_keys: &[String]) -> Finished {
        let mut command = self.nix("nix");
        command.args(["--extra-experimental-features", "nix-command", "copy", "--from", &format!("http://{gateway}")]);
        finish(with_gateway(command.args(paths), gateway, trusted_public_keys))
    }

    /// The derivations that valid paths were built from.
    ///
    /// # Panics
    /// When they are not known.
    #[track_caller]
    #[must_use]
    pub fn derivations(&self, paths: &[&String]) -> Vec<String> {
        let mut command = self.nix("nix-store");
        lines(&finish(command.args(["--query", "--deriver"]).args(paths)).expect_success("nix-store --query --deriver"))
    }

    /// Deletes valid paths from database and disk, even if others refer to them.
    ///
    /// # Panics
    /// When Nix refuses.
    #[track_caller]
    pub fn delete(&self, paths: &[String]) {
        let mut command = self.nix("nix-store");
        command.args(["--delete", "--ignore-liveness"]).args(paths);
        finish(&mut command).expect_success("nix-store --delete");
    }

    /// Rehashes every file of the store against the database.
    ///
    /// # Panics
    /// When anything differs.
    #[track_caller]
    pub fn verify_contents(&self) {
        let mut command = self.nix("nix-store");
        command.args(["--verify", "--check-contents"]);
        let checked = finish(&mut command);
        assert!(!checked.stderr.contains("was modified"), "{}", checked.stderr);
        checked.expect_success("nix-store --verify --check-contents");
    }

    /// Whether `path` is valid here.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.row(path).is_some()
    }

    /// The database's row of `path`.
    ///
    /// # Panics
    /// When the database cannot be read.
    #[track_caller]
    #[must_use]
    pub fn row(&self, path: &str) -> Option<PathRow> {
        let fields = "path, hash, narSize, coalesce(ultimate, 0), coalesce(sigs, ''), coalesce(ca, '')";
        let found = self.sql(&format!("select {fields} from ValidPaths where path = '{path}'"));
        let row = found.lines().next()?;
        let mut fields = row.split('|').map(str::to_owned);
        let mut field = || fields.next().expect("six columns");
        let (path, nar_hash, nar_size, ultimate, signatures, content_address) =
            (field(), field(), field(), field(), field(), field());
        let of_path = "join ValidPaths p on p.id = r.referrer join ValidPaths t on t.id = r.reference";
        let references = self.sql(&format!("select t.path from Refs r {of_path} where p.path = '{path}'"));
        Some(PathRow {
            nar_size: nar_size.parse().expect("a number"),
            ultimate: ultimate == "1",
            signatures: signatures.split_whitespace().map(str::to_owned).collect(),
            references: references.lines().map(str::to_owned).collect(),
            path,
            nar_hash,
            content_address,
        })
    }

    /// Every valid path that is not a derivation.
    ///
    /// # Panics
    /// When the database cannot be read.
    #[track_caller]
    #[must_use]
    pub fn outputs(&self) -> BTreeSet<String> {
        lines(&self.sql("select path from ValidPaths where path not like '%.drv'")).into_iter().collect()
    }

    /// Where the contents of the store path really are.
    #[must_use]
    pub fn real_path(&self, path: &str) -> PathBuf {
        match &self.place {
            StorePlace::Root(root) => root.join(path.trim_start_matches('/')),
            StorePlace::Relocated { real_dir, .. } => {
                real_dir.join(Path::new(path).file_name().expect("a store path has a name"))
            }
        }
    }

    /// The file in which Nix keeps the log of a build, compressed as it is by default.
    ///
    /// # Panics
    /// In a relocated store.
    #[must_use]
    pub fn log_file(&self, derivation: &str) -> PathBuf {
        let StorePlace::Root(root) = &self.place else { panic!("a chroot store") };
        let name = derivation.rsplit('/').next().expect("a derivation has a name");
        let (directory, rest) = name.split_at(2);
        root.join("nix/var/log/nix/drvs").join(directory).join(format!("{rest}.bz2"))
    }

    /// Changes bytes of one file of a store path behind Nix's back, keeping its size: a disk that lies.
    ///
    /// # Panics
    /// When the file cannot be rewritten.
    pub fn corrupt_file(&self, path: &str, file: &str) {
        lie_in(&self.real_path(path).join(file));
    }

    /// As [`NixStoreFixture::corrupt_file`], for a store path that is itself a file.
    ///
    /// # Panics
    /// When the file cannot be rewritten.
    pub fn corrupt(&self, path: &str) {
        lie_in(&self.real_path(path));
    }

    /// As [`NixStoreFixture::corrupt_file`], and registers the changed contents as what was built: a builder that lies.
    ///
    /// # Panics
    /// When Nix refuses.
    #[track_caller]
    pub fn tamper(&self, path: &str, file: &str) {
        self.corrupt_file(path, file);
        let mut hash = self.nix("nix-hash");
        let hash = finish(hash.args(["--type", "sha256"]).arg(self.real_path(path))).expect_success("nix-hash");
        self.sql(&format!("update ValidPaths set hash = 'sha256:{}' where path = '{path}'", hash.trim()));
    }

    /// Runs `nix-store` with `arguments` on this store.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn query(&self, arguments: &[&str]) -> String {
        finish(self.nix("nix-store").args(arguments)).expect_success(&format!("nix-store {arguments:?}"))
    }

    /// Gives this store's environment, and no other variable of ours, to a command that starts Nix itself.
    pub fn lend_environment(&self, command: &mut Command) {
        nix_client_environment(command);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
    }

    /// A command of Nix in this store's environment, without other variables of ours.
    #[must_use]
    pub fn nix(&self, program: &str) -> Command {
        let mut words = self.run_under.iter().cloned().chain(self.version.command_prefix()).chain([program.to_owned()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words);
        nix_client_environment(&mut command).env("SHARE", NixVersion::shared_directories());
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).current_dir(&self.dir);
        if let Some(url) = &self.store_url {
            command.args(["--store", url]);
        }
        command
    }

    /// Runs a statement on the database, and returns its rows with `|` between columns.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn sql(&self, statement: &str) -> String {
        let state_dir = match &self.place {
            StorePlace::Root(root) => root.join("nix/var/nix"),
            StorePlace::Relocated { state_dir, .. } => state_dir.clone(),
        };
        let mut command = Command::new("sqlite3");
        command.args(["-cmd", ".timeout 5000"]).arg(state_dir.join("db/db.sqlite")).arg(statement);
        finish(&mut command).expect_success(statement)
    }
}

/// Changes a byte of a file that the store has made read-only.
fn lie_in(target: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bytes = fs::read(target).expect("the file is there");
    let middle = bytes.len() / 2;
    let byte = bytes.get_mut(middle).expect("the file is not empty");
    *byte = !*byte;
    fs::set_permissions(target, fs::Permissions::from_mode(0o644)).expect("our own file");
    fs::write(target, bytes).expect("our own file");
    fs::set_permissions(target, fs::Permissions::from_mode(0o444)).expect("our own file");
}

fn packages() -> PathBuf {
    repository_root().join("tests/fixtures/pkgs.nix")
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn only(mut paths: Vec<String>) -> String {
    assert_eq!(paths.len(), 1, "one output expected: {paths:?}");
    paths.pop().expect("counted")
}
