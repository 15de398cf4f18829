//! `narmesh init`: writes a configuration and keys, and prints what to add to other files.

use super::emit;
use super::id::{KEY_NAME_END, check_name, host_name, introduction, only_way_in};
use super::nix_conf::NixSettings;
use super::nix_keys::NixKeys;
use super::nix_substituters::NixSubstituters;
use super::nix_version::NixVersion;
use crate::account::{SERVICE_USER, User};
use crate::config::{Config, DEFAULT_FILE, UpstreamConfig};
use crate::config_template::render;
use crate::regular_file;
use crate::settings::{NodeKeyFile, Settings, create_builder_key, gateway_key_file, read_gateway_key};
use anyhow::Context;
use libp2p::identity::Keypair;
use narmesh_protocol::{NixPublicKey, NixSecretKey};
use rand::TryRng;
use std::fs::{DirBuilder, OpenOptions, Permissions, set_permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

const NODE_KEY: &str = "node.key";
const BUILDER_KEY: &str = "builder.key";
/// The state directory of the system's daemon: the only place that the systemd unit lets it write to.
const SYSTEM_STATE_DIR: &str = "/var/lib/narmesh";

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Write DIR/narmesh.toml, and the keys beside it; by default the file of --config
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Name of this machine for the others (node.name) and in the name of its builder key, 1 to 64 bytes; by default
    /// the host name
    #[arg(long)]
    name: Option<String>,
    /// Make no builder key: nothing built here can then be substituted elsewhere
    #[arg(long)]
    no_builder_key: bool,
    /// Leave the keys that Nix already trusts out of trusted_public_keys: what only they have signed (such as paths
    /// from cache.nixos.org) is then neither passed on to peers nor taken from them
    #[arg(long)]
    no_nix_keys: bool,
    /// Make no [[upstream]] of the substituters that Nix has: Nix goes on asking them itself
    #[arg(long)]
    no_upstreams: bool,
    /// The user that the daemon will run as and that will own the keys; by default `narmesh`, if root writes into
    /// /etc/narmesh and that user exists
    #[arg(long)]
    user: Option<String>,
    /// Overwrite an existing configuration, but for its [[upstream]] and trusted keys; existing key files are always kept
    #[arg(long)]
    force: bool,
}

pub(super) fn init(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    init_beside(config, arguments, NixSettings::of_this_machine)
}

/// As [`init`]; `nix` gives the configuration of this machine's Nix, if there is one.
fn init_beside(config: &Path, arguments: &Arguments, nix: impl FnOnce() -> Option<NixSettings>) -> anyhow::Result<()> {
    let file = arguments.dir.as_ref().map_or_else(|| config.to_owned(), |dir| dir.join("narmesh.toml"));
    let name = match &arguments.name {
        Some(name) => check_name(name)?.to_owned(),
        None => host_name(),
    };
    let mut values = Config::default();
    values.node.name = Some(name.clone());
    let is_system = is_of_the_system(&file);
    if is_system {
        values.node.state_dir = SYSTEM_STATE_DIR.into();
    }
    // Checked before anything is written: no daemon could run where, say, the path is too long for a socket.
    Settings::check(values.clone(), &file)?;
    let mut keys = Keys::prepare(&file, &name, !arguments.no_builder_key)?;
    keys.put_into(&mut values);
    let owner = service_user(arguments.user.as_deref(), is_system)?;
    values.gateway.sign = true;
    let checked = Settings::check(values.clone(), &file)?;
    let taken = TakenFromNix::take(arguments, nix(), &keys, &checked)?;
    values.trust.trusted_public_keys.extend(taken.keys.taken.iter().map(NixPublicKey::to_string));
    values.upstream.clone_from(&taken.substituters.taken);
    let kept = keep_what_nix_no_longer_has(arguments, &file, &mut values);
    Settings::check(values.clone(), &file)?;
    write_config(&file, &values, arguments.force)?;
    let settings = Settings::load(&file)?;
    let secrets = settings.read_secrets()?;
    let gateway_key = keys.make_gateway_key(&settings)?;
    if let Some(owner) = &owner {
        hand_over(&settings, owner)?;
    }
    let mut text = format!("wrote {}\n", file.display());
    for key in &keys.made {
        text += &format!("wrote {} (mode 0600; keep it on this machine)\n", key.display());
    }
    for key in &keys.kept {
        text += &format!("kept  {}\n", key.display());
    }
    text += &taken.text;
    text += &kept;
    match &owner {
        Some(owner) => text += &format!("the keys belong to the user {}; run the daemon as that user\n", owner.name),
        None if is_system => {
            text += "there is no user narmesh here: the daemon has to run as root. For the units of contrib/systemd,\n\
                     first create the user (systemd-sysusers), then run: narmesh init --force\n";
        }
        None => {}
    }
    text += &format!("\npeer id: {}\n\n{}\n", secrets.peer_id(), introduction(&name, &settings, &secrets));
    text += &nix_conf_lines(&settings, &gateway_key, taken.only_way_in(), NixVersion::installed());
    text += &format!("\nThen: narmesh --config {} run\n", file.display());
    text += &towards_require(&file);
    Ok(emit(&text)?)
}

/// Whether this is the configuration that the daemon of the system reads.
fn is_of_the_system(file: &Path) -> bool {
    Path::new(DEFAULT_FILE).parent() == std::path::absolute(file).ok().as_deref().and_then(Path::parent)
}

/// The user who gets the files: the one asked for, or that of the systemd units.
fn service_user(asked: Option<&str>, is_system: bool) -> anyhow::Result<Option<User>> {
    match asked {
        Some(name) => User::named(name).map(Some).with_context(|| format!("there is no user {name:?} here")),
        None if is_system && rustix::process::geteuid().is_root() => Ok(User::named(SERVICE_USER)),
        None => Ok(None),
    }
}

/// Gives the keys and the state directory to `owner`, so that only it can read the keys and write the state. The
/// configuration keeps its owner and becomes readable to the group of `owner`.
fn hand_over(settings: &Settings, owner: &User) -> anyhow::Result<()> {
    let state_dir = &settings.node.state_dir;
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(state_dir)
        .with_context(|| format!("cannot make {}", state_dir.display()))?;
    let (user, group) = (Some(owner.uid), Some(owner.gid));
    let failed = |path: &Path| format!("cannot give {} to the user {}", path.display(), owner.name);
    let give = |path: &Path, user, mode| {
        let given = chown(path, user, group);
        given.and_then(|()| set_permissions(path, Permissions::from_mode(mode))).with_context(|| failed(path))
    };
    give(directory_of(&settings.file), None, 0o750)?;
    give(&settings.file, None, 0o640)?;
    give(state_dir, user, 0o750)?;
    // The state directory may belong to `owner` already, who must not get another file by a link in place of a key.
    let give_key = |path: &Path| give_itself(path, owner).with_context(|| failed(path));
    give_key(&settings.node.key_file)?;
    give_key(&gateway_key_file(state_dir))?;
    settings.builder_key_file.as_deref().map_or(Ok(()), give_key)
}

/// Gives a file to `owner`, who alone may read it: the file that lies at `path`, and no other that a link makes of it.
fn give_itself(path: &Path, owner: &User) -> std::io::Result<()> {
    let file = regular_file::open_itself(path, OpenOptions::new().read(true))?;
    if file.metadata()?.nlink() > 1 {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it has other names (hard links)"));
    }
    fchown(&file, Some(owner.uid), Some(owner.gid))?;
    file.set_permissions(Permissions::from_mode(0o600))
}

/// Keeps the caches and the trusted keys of a configuration that --force replaces: where narmesh is the only line of
/// nix.conf, Nix does not have them any more. Says in words what was kept.
fn keep_what_nix_no_longer_has(arguments: &Arguments, file: &Path, values: &mut Config) -> String {
    let mut text = String::new();
    // A file that cannot be read has nothing to keep, and is not overwritten without --force.
    let Some(before) = Config::read(file).ok().filter(|_| arguments.force) else { return text };
    if !arguments.no_upstreams {
        for upstream in before.upstream {
            let is_known = |known: &UpstreamConfig| known.name == upstream.name || known.url == upstream.url;
            if !values.upstream.iter().any(is_known) {
                text += &format!("kept  [[upstream]] {}: {}\n", upstream.name, upstream.url);
                values.upstream.push(upstream);
            }
        }
    }
    if !arguments.no_nix_keys {
        let name_of = |key: &str| key.split(':').next().unwrap_or_default().to_owned();
        for key in before.trust.trusted_public_keys {
            if !values.trust.trusted_public_keys.iter().any(|known| name_of(known) == name_of(&key)) {
                text += &format!("kept  trusted key {}\n", name_of(&key));
                values.trust.trusted_public_keys.push(key);
            }
        }
    }
    text
}

/// What Nix has already, as far as it was asked for.
#[derive(Default)]
struct TakenFromNix {
    keys: NixKeys,
    substituters: NixSubstituters,
    /// Whether Nix needs no substituter of its own any more.
    are_all_known: bool,
    /// What is printed about it.
    text: String,
}

impl TakenFromNix {
    fn take(arguments: &Arguments, nix: Option<NixSettings>, keys: &Keys, settings: &Settings) -> anyhow::Result<Self> {
        let mut taken = Self::default();
        if arguments.no_nix_keys {
            taken.text += "trusted_public_keys has none of the keys that Nix trusts (--no-nix-keys)\n";
        }
        if arguments.no_upstreams {
            taken.text += "there is no [[upstream]]: Nix asks its other substituters itself (--no-upstreams)\n";
        }
        let Some(nix) = nix else {
            taken.text += "no Nix was found here, so nothing is taken from its configuration\n";
            return Ok(taken);
        };
        if !arguments.no_nix_keys {
            let own = keys.builder_key.as_ref().map(NixSecretKey::public);
            // There may be a gateway key from an earlier configuration, which --force replaces.
            let gateway = read_gateway_key(&settings.node.state_dir)?.map(|key| key.public());
            taken.keys = NixKeys::choose(&nix, own.as_ref(), gateway.as_ref());
            taken.text += &taken.keys.text();
        }
        if !arguments.no_upstreams {
            taken.substituters = NixSubstituters::choose(&nix, settings.gateway.listen);
            taken.are_all_known = true;
            taken.text += &taken.substituters.text();
        }
        Ok(taken)
    }

    /// The substituters that Nix has to go on asking itself, if narmesh knows all others.
    fn only_way_in(&self) -> Option<&[String]> {
        self.are_all_known.then_some(&*self.substituters.left)
    }
}

/// The key files beside a configuration.
struct Keys {
    /// The files just made.
    made: Vec<PathBuf>,
    /// The files that existed already.
    kept: Vec<PathBuf>,
    builder_key: Option<NixSecretKey>,
}

impl Keys {
    /// Makes the keys that do not exist yet; existing ones are never touched.
    fn prepare(config: &Path, name: &str, with_builder_key: bool) -> anyhow::Result<Self> {
        let dir = directory_of(config);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        let mut keys = Self { made: Vec::new(), kept: Vec::new(), builder_key: None };
        let node_key = dir.join(NODE_KEY);
        keys.make(&node_key, || NodeKeyFile::create(&node_key, &Keypair::generate_ed25519()))?;
        if with_builder_key {
            let builder_key = dir.join(BUILDER_KEY);
            let key = new_builder_key(name)?;
            keys.make(&builder_key, || create_builder_key(&builder_key, &key))?;
            keys.builder_key = Some(crate::settings::read_builder_key(&builder_key)?);
        }
        Ok(keys)
    }

    /// Makes the gateway key if it does not exist yet.
    fn make_gateway_key(&mut self, settings: &Settings) -> anyhow::Result<NixPublicKey> {
        let file = gateway_key_file(&settings.node.state_dir);
        let list = if file.exists() { &mut self.kept } else { &mut self.made };
        list.push(file);
        Ok(settings.make_gateway_key()?.context("gateway.sign makes a key")?.public())
    }

    fn make(&mut self, path: &Path, create: impl FnOnce() -> std::io::Result<()>) -> anyhow::Result<()> {
        match create() {
            Ok(()) => self.made.push(path.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => self.kept.push(path.to_owned()),
            Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
        Ok(())
    }

    /// Puts the keys into a configuration. Our own builder key is trusted too, so that what was built here and then
    /// garbage-collected can be fetched back.
    fn put_into(&self, config: &mut Config) {
        config.node.key_file = NODE_KEY.into();
        if let Some(key) = &self.builder_key {
            config.trust.builder_key_file = Some(BUILDER_KEY.into());
            config.trust.trusted_public_keys.push(key.public().to_string());
        }
    }
}

/// Writes a configuration; overwrites an existing one only with `force`.
fn write_config(file: &Path, values: &Config, force: bool) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).create_new(!force);
    let mut target = match regular_file::open_itself(file, &mut options) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            anyhow::bail!("{} exists; use --force to overwrite it (keys are always kept)", file.display())
        }
        other => other.with_context(|| format!("cannot write {}", file.display()))?,
    };
    target.write_all(render(values).as_bytes()).with_context(|| format!("cannot write {}", file.display()))
}

/// The lines for `nix.conf` on this machine. With `left`, this node is the only substituter beside these; without it, one
/// among others. docs/operations.md has the reasons, with measurements.
fn nix_conf_lines(
    settings: &Settings,
    gateway_key: &NixPublicKey,
    left: Option<&[String]>,
    nix: Option<NixVersion>,
) -> String {
    let mut text =
        "In nix.conf of this machine (usually /etc/nix/nix.conf; then restart nix-daemon, if there is one):\n\n"
            .to_owned();
    match left {
        Some(left) => {
            text += "# Instead of all other lines of these two settings.\n";
            text += &only_way_in(settings, gateway_key);
            if !left.is_empty() {
                text += "# What narmesh cannot ask; the keys that signed what is there have to stay as well.\n";
                text += &format!("extra-substituters = {}\n", left.join(" "));
            }
        }
        None => {
            text += &format!("extra-substituters = http://{}\n", settings.gateway.listen);
            text += "# The gateway key of this node, which signs whatever Nix gets from it.\n";
            text += &format!("extra-trusted-public-keys = {gateway_key}\n");
        }
    }
    text += "connect-timeout = 5\nstalled-download-timeout = 30\ndownload-attempts = 5\n";
    text += "# Ask again at once for a path that was missing just now (otherwise Nix remembers a miss for an hour).\n";
    text += "narinfo-cache-negative-ttl = 0\n";
    match nix {
        Some(version) if version >= NixVersion::FALLBACK_WORKS => text += "fallback = true\n",
        Some(version) => {
            text += &format!("# No fallback = true: Nix {version} aborts with it; it works from 2.9 on.\n")
        }
        None => text += "# With Nix 2.9 or later add: fallback = true   (2.8 aborts with it; no nix was found here)\n",
    }
    text
}

/// How to set up a policy that Nix obeys.
fn towards_require(file: &Path) -> String {
    format!(
        "\nFor Nix to take only what several builders agree on, name them as [[builder]] in {file}, and set k and mode = \"require\"\n\
         in [quorum]. Then nix.conf must have no other substituter and no other key than those that\n\
         `narmesh --config {file} id` prints.\n",
        file = file.display()
    )
}

fn directory_of(config: &Path) -> &Path {
    config.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A new key named `<name>-narmesh-1`, from the randomness of the operating system.
fn new_builder_key(name: &str) -> anyhow::Result<NixSecretKey> {
    let permitted = |character: char| character.is_ascii_alphanumeric() || "-._".contains(character);
    let name: String = name.chars().map(|character| if permitted(character) { character } else { '-' }).collect();
    let mut seed = [0; 32];
    rand::rngs::SysRng.try_fill_bytes(&mut seed).context("the operating system gives no randomness")?;
    Ok(NixSecretKey::from_seed(&format!("{name}{KEY_NAME_END}"), &seed)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secrets;
    use std::os::unix::fs::PermissionsExt;

    fn arguments(dir: &Path) -> Arguments {
        Arguments {
            dir: Some(dir.to_owned()),
            name: Some("my host".to_owned()),
            no_builder_key: false,
            no_nix_keys: false,
            no_upstreams: false,
            user: None,
            force: false,
        }
    }

    fn init_without_nix(arguments: &Arguments) -> anyhow::Result<()> {
        init_beside(Path::new("unused"), arguments, || None)
    }

    fn load(dir: &Path) -> (Settings, Secrets) {
        let settings = Settings::load(&dir.join("narmesh.toml")).unwrap();
        let secrets = settings.read_secrets().unwrap();
        (settings, secrets)
    }

    #[test]
    fn files_written_by_init_are_accepted_and_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        init_without_nix(&arguments(dir.path())).unwrap();
        let (settings, secrets) = load(dir.path());
        let key = secrets.builder_key.unwrap();
        assert_eq!((key.name(), settings.node.name.as_deref()), ("my-host-narmesh-1", Some("my host")));
        assert_eq!(settings.trusted.by_name(key.name()), Some(&key.public()));
        for file in [NODE_KEY, BUILDER_KEY] {
            assert_eq!(std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn the_keys_of_nix_are_trusted_unless_unwanted() {
        let dir = tempfile::tempdir().unwrap();
        // Nix's own defaults.
        let nix = || Some(NixSettings::from_file(Path::new("/nonexistent/nix.conf")));
        let mut arguments = Arguments { force: true, ..arguments(dir.path()) };
        let mut names = |no_nix_keys| {
            arguments.no_nix_keys = no_nix_keys;
            init_beside(Path::new("unused"), &arguments, nix).unwrap();
            load(dir.path()).0.trusted.iter().map(|key| key.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(false).len(), 2);
        assert!(names(false).contains(&"cache.nixos.org-1".to_owned()));
        assert_eq!(names(true), ["my-host-narmesh-1"]);
    }

    #[test]
    fn nix_s_substituters_become_upstreams_unless_unwanted() {
        let dir = tempfile::tempdir().unwrap();
        // Nix's own defaults.
        let nix = || Some(NixSettings::from_file(Path::new("/nonexistent/nix.conf")));
        for no_upstreams in [false, true] {
            let arguments = Arguments { force: true, no_upstreams, ..arguments(dir.path()) };
            init_beside(Path::new("unused"), &arguments, nix).unwrap();
            let (settings, _) = load(dir.path());
            let upstreams: Vec<_> = settings.upstreams.iter().map(|it| it.cache.place.to_string()).collect();
            assert_eq!(upstreams, if no_upstreams { vec![] } else { vec!["https://cache.nixos.org".to_owned()] });
            assert!(settings.gateway.sign);
        }
    }

    #[test]
    fn caches_and_keys_that_nix_no_longer_has_are_kept_when_the_configuration_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("nix.conf");
        let init = |arguments: &Arguments| {
            let nix = || Some(NixSettings::from_file(&conf));
            init_beside(Path::new("unused"), arguments, nix).unwrap();
            let (settings, _) = load(dir.path());
            let upstreams: Vec<_> = settings.upstreams.iter().map(|it| it.cache.place.to_string()).collect();
            (upstreams, settings.trusted.by_name("cache.nixos.org-1").is_some())
        };
        // Nix's own defaults, and then what `init` has nix.conf say.
        let first = init(&arguments(dir.path()));
        assert_eq!(first, (vec!["https://cache.nixos.org".to_owned()], true));
        std::fs::write(&conf, "substituters = http://127.0.0.1:7281\ntrusted-public-keys =\n").unwrap();
        let again = Arguments { force: true, ..arguments(dir.path()) };
        assert_eq!(init(&again), first);
        assert_eq!(init(&Arguments { no_upstreams: true, no_nix_keys: true, ..again }), (vec![], false));
    }

    /// A configuration, and what it has nix.conf say.
    fn lines_for_nix(left: Option<&[String]>, nix: Option<NixVersion>) -> String {
        let dir = tempfile::tempdir().unwrap();
        init_without_nix(&arguments(dir.path())).unwrap();
        let (settings, _) = load(dir.path());
        let mode = std::fs::metadata(gateway_key_file(&settings.node.state_dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = settings.read_gateway_key().unwrap().unwrap().public();
        let text = nix_conf_lines(&settings, &key, left, nix);
        assert!(text.contains(&format!("trusted-public-keys = {key}\n")), "{text}");
        text
    }

    #[test]
    fn nix_asks_only_this_node_and_what_this_node_cannot_ask() {
        let has = |text: &str, line: &str| text.lines().any(|given| given == line);
        let alone = lines_for_nix(Some(&[]), None);
        assert!(has(&alone, "substituters = http://127.0.0.1:7281") && !alone.contains("extra-"), "{alone}");
        let beside = lines_for_nix(Some(&["s3://a".to_owned(), "ssh://b".to_owned()]), None);
        assert!(has(&beside, "extra-substituters = s3://a ssh://b"), "{beside}");
        let among = lines_for_nix(None, None);
        assert!(has(&among, "extra-substituters = http://127.0.0.1:7281"), "{among}");
    }

    #[test]
    fn nothing_is_overwritten_unasked_and_keys_never() {
        let dir = tempfile::tempdir().unwrap();
        let mut arguments = arguments(dir.path());
        init_without_nix(&arguments).unwrap();
        let (_, before) = load(dir.path());
        let file = dir.path().join("narmesh.toml");
        std::fs::write(&file, "# mine\n").unwrap();
        let message = init_without_nix(&arguments).unwrap_err().to_string();
        assert!(message.contains("narmesh.toml exists") && message.contains("--force"), "{message}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "# mine\n");
        arguments.force = true;
        init_without_nix(&arguments).unwrap();
        let (_, after) = load(dir.path());
        assert_eq!(after.peer_id(), before.peer_id());
        assert_eq!(after.builder_key.unwrap().public(), before.builder_key.unwrap().public());
    }

    #[test]
    fn nothing_is_written_into_what_is_not_a_regular_file() {
        let odd = tempfile::tempdir().unwrap();
        for (path, what) in regular_file::list_oddities(odd.path()) {
            let dir = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink(&path, dir.path().join("narmesh.toml")).unwrap();
            let error = init_without_nix(&Arguments { force: true, ..arguments(dir.path()) }).unwrap_err();
            let message = crate::describe::describe(&error);
            assert!(message.contains("narmesh.toml: it is ") && message.contains(what), "{message}");
        }
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let elsewhere = tempfile::tempdir().unwrap();
        let [precious, nothing] = ["precious", "nothing"].map(|name| elsewhere.path().join(name));
        std::fs::write(&precious, "mine").unwrap();
        for target in [&precious, &nothing] {
            for name in ["narmesh.toml", NODE_KEY, BUILDER_KEY] {
                let dir = tempfile::tempdir().unwrap();
                std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
                let error = init_without_nix(&Arguments { force: true, ..arguments(dir.path()) }).unwrap_err();
                let message = crate::describe::describe(&error);
                assert!(message.contains(name), "{message}");
                assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
                assert!(!nothing.exists(), "{name}");
            }
        }
    }

    #[test]
    fn no_other_file_is_given_away_by_a_link_in_place_of_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let [precious, key] = ["precious", "gateway.key"].map(|name| dir.path().join(name));
        std::fs::write(&precious, "mine").unwrap();
        set_permissions(&precious, Permissions::from_mode(0o644)).unwrap();
        let own = std::fs::metadata(&precious).unwrap();
        let owner = User { name: "me".to_owned(), uid: own.uid(), gid: own.gid() };
        std::os::unix::fs::symlink(&precious, &key).unwrap();
        give_itself(&key, &owner).unwrap_err();
        std::fs::remove_file(&key).unwrap();
        std::fs::hard_link(&precious, &key).unwrap();
        give_itself(&key, &owner).unwrap_err();
        assert_eq!(std::fs::metadata(&precious).unwrap().permissions().mode() & 0o777, 0o644);
        std::fs::remove_file(&key).unwrap();
        std::fs::write(&key, "secret").unwrap();
        give_itself(&key, &owner).unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_written_that_run_would_refuse() {
        let dir = tempfile::tempdir().unwrap();
        let long = "n".repeat(65);
        for name in ["", "a\nb", &long] {
            let named = Arguments { name: Some(name.to_owned()), ..arguments(dir.path()) };
            let message = init_without_nix(&named).unwrap_err().to_string();
            assert!(message.contains("--name") && message.contains("1 to 64 bytes"), "{message}");
        }
        // The path would be too long for a socket.
        let deep = dir.path().join("d".repeat(100));
        let message = init_without_nix(&arguments(&deep)).unwrap_err().to_string();
        assert!(message.starts_with("node.control_socket"), "{message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let most = Arguments { name: Some("n".repeat(64)), ..arguments(dir.path()) };
        init_without_nix(&most).unwrap();
        assert_eq!(load(dir.path()).0.node.name, most.name);
    }

    #[test]
    fn unknown_user_is_refused_before_the_configuration_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let unknown = Arguments { user: Some("no-such-user".to_owned()), ..arguments(dir.path()) };
        let message = init_without_nix(&unknown).unwrap_err().to_string();
        assert!(message.contains("no user \"no-such-user\""), "{message}");
        assert!(!dir.path().join("narmesh.toml").exists());
    }

    #[test]
    fn only_a_file_in_etc_narmesh_is_the_configuration_of_the_system() {
        assert!(is_of_the_system(Path::new("/etc/narmesh/narmesh.toml")));
        assert!(!is_of_the_system(Path::new("/etc/narmesh/two/narmesh.toml")));
        assert!(!is_of_the_system(Path::new("narmesh.toml")));
    }

    #[test]
    fn without_a_builder_key_the_output_says_what_that_means() {
        let dir = tempfile::tempdir().unwrap();
        init_without_nix(&Arguments { no_builder_key: true, ..arguments(dir.path()) }).unwrap();
        let (settings, secrets) = load(dir.path());
        assert!(secrets.builder_key.is_none() && settings.builder_key_file.is_none());
        assert!(introduction("x", &settings, &secrets).contains("nothing built here can be substituted"));
    }

    #[test]
    fn nix_gets_fallback_only_where_it_works() {
        let lines = |version| lines_for_nix(None, version);
        let has_fallback = |text: &str| text.lines().any(|line| line == "fallback = true");
        assert!(has_fallback(&lines(Some(NixVersion::FALLBACK_WORKS))));
        assert!(!has_fallback(&lines(None)));
        let text = lines(None);
        for line in [
            "extra-substituters = http://127.0.0.1:7281",
            "extra-trusted-public-keys = narmesh-gateway-",
            "connect-timeout = 5",
            "stalled-download-timeout = 30",
            "download-attempts = 5",
            "narinfo-cache-negative-ttl = 0",
        ] {
            assert!(text.lines().any(|given| given.starts_with(line)), "{line}\n{text}");
        }
    }
}
