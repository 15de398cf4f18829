//! `narmesh init`: writes a configuration and keys, and prints what to add to other files.

mod missing_keys;

use super::emit;
use super::id::{KEY_NAME_END, check_name, host_name, introduction, only_way_in};
use super::nix_conf::NixSettings;
use super::nix_keys::NixKeys;
use super::nix_substituters::NixSubstituters;
use super::nix_version::NixVersion;
use super::setup_nix;
use crate::account::{SERVICE_USER, User};
use crate::config::{Config, DEFAULT_FILE, UpstreamConfig};
use crate::config_template::render;
use crate::regular_file;
use crate::settings::{
    NodeKeyFile, Settings, create_builder_key, gateway_key_file, is_gateway_key, new_nix_key, read_gateway_key,
};
use anyhow::Context;
use libp2p::identity::Keypair;
use narmesh_protocol::{NixPublicKey, NixSecretKey};
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
    /// Also write our lines into nix.conf, which are shown, and restart nix-daemon; `narmesh leave` takes them out again
    #[arg(long)]
    setup_nix: bool,
    /// The machine joins a mesh, whose members learn by its roster what others would be told by hand
    #[arg(skip)]
    joins: bool,
    /// What nix.conf needs is not said, since `join` writes it once the machine has joined
    #[arg(skip)]
    hides_nix_conf: bool,
    /// Make only the key files that the configuration names and that are missing; the configuration, which another
    /// program wrote, is left alone
    #[arg(long, conflicts_with_all = ["dir", "name", "no_builder_key", "no_nix_keys", "no_upstreams", "user", "force"])]
    keys: bool,
}

impl Arguments {
    /// What `narmesh join` makes a configuration with.
    pub(super) fn of_name(name: Option<String>, hides_nix_conf: bool) -> Self {
        Self {
            dir: None,
            name,
            no_builder_key: false,
            no_nix_keys: false,
            no_upstreams: false,
            user: None,
            force: false,
            setup_nix: false,
            joins: true,
            hides_nix_conf,
            keys: false,
        }
    }
}

pub(super) fn init(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.keys {
        missing_keys::make_missing_keys(config)?;
        return if arguments.setup_nix { setup_nix::set_up(&Settings::load(config)?) } else { Ok(()) };
    }
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
    // Again, because the keys have their places only now.
    let checked = Settings::check(values.clone(), &file)?;
    let taken = TakenFromNix::take(arguments, nix(), &keys, &checked)?;
    values.trust.trusted_public_keys.extend(taken.keys.taken.iter().map(NixPublicKey::to_string));
    values.upstream.clone_from(&taken.substituters.taken);
    let kept = keep_what_nix_no_longer_has(arguments, &file, &mut values);
    // What was taken from Nix may not fit, and a file that the daemon refuses must not be written.
    Settings::check(values.clone(), &file)?;
    write_config(&file, &values, arguments.force)?;
    let settings = Settings::load(&file)?;
    let secrets = settings.read_secrets()?;
    let gateway_key = keys.make_gateway_key(&settings)?;
    // After everything is written, so that all of it is handed over.
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
    text += &format!("\npeer id: {}\n\n", secrets.peer_id());
    if !arguments.joins {
        text += &format!("{}\n", introduction(&name, &settings, &secrets));
    }
    if !arguments.setup_nix && !arguments.hides_nix_conf {
        text += &nix_conf_lines(&settings, &gateway_key, taken.only_way_in(), NixVersion::installed());
    }
    text += &format!("\nThen: narmesh --config {} run\n", file.display());
    text += &towards_require(&file);
    emit(&text)?;
    if arguments.setup_nix { setup_nix::set_up(&settings) } else { Ok(()) }
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
        // A configuration of before may have a gateway key that was taken from nix.conf.
        for key in before.trust.trusted_public_keys.into_iter().filter(|key| !is_gateway_key(key)) {
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
            // Read back, because one that was there already is another than the one just made.
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
            anyhow::bail!(
                "{} exists; use --force to overwrite it (keys are always kept), or --keys to leave it as it is",
                file.display()
            )
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
    text += setup_nix::PATIENCE;
    text += "# Ask again at once for a path that was missing just now (otherwise Nix remembers a miss for an hour).\n";
    text += setup_nix::FORGET_MISSES;
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

/// A new key named `<name>-narmesh-1`.
fn new_builder_key(name: &str) -> anyhow::Result<NixSecretKey> {
    let permitted = |character: char| character.is_ascii_alphanumeric() || "-._".contains(character);
    let name: String = name.chars().map(|character| if permitted(character) { character } else { '-' }).collect();
    Ok(new_nix_key(&format!("{name}{KEY_NAME_END}"))?)
}

#[cfg(test)]
mod tests;
