//! Nix's own daemon: is it older than nix.conf, does a proxy stand between it and us, and whose settings does it take?

use super::Facts;
use super::process::Process;
use super::report::Look;
use crate::account::look_up_user_name;
use crate::cli::findings::Finding;
use crate::cli::nix_conf::{NixSettings, default_file, names_gateway};
use crate::cli::nix_version::NixVersion;
use crate::cli::startable::ask_systemd;
use rustix::process::geteuid;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// The variables by which curl, and so Nix, is told a proxy for `http://`; curl(1) ignores `HTTP_PROXY` on purpose.
const PROXIES: [&str; 3] = ["http_proxy", "all_proxy", "ALL_PROXY"];
const EXCEPTIONS: [&str; 2] = ["no_proxy", "NO_PROXY"];

pub(super) fn look(facts: &Facts, look: &mut Look) {
    let daemon = find_nix_daemon();
    if let Some(daemon) = daemon {
        look_at_age(facts, daemon, look);
        look_at_user(facts, look);
    }
    look_at_proxies(facts, daemon, look);
    look_at_socket(facts, look);
}

/// The one that listens, and that reads the nix.conf of this machine. Each connection has a process of its own, which is its
/// child.
fn find_nix_daemon() -> Option<Process> {
    let all = Process::named("nix-daemon");
    let conf_dir = |process: &Process| process.variable("NIX_CONF_DIR").ok().flatten();
    let nix_conf = |process: &Process| Path::new(conf_dir(process).as_deref().unwrap_or("/etc/nix")).join("nix.conf");
    let listens = |process: &&Process| process.parent().is_none_or(|parent| !all.contains(&parent));
    all.iter().filter(listens).find(|process| nix_conf(process) == default_file()).copied()
}

/// nix-daemon reads nix.conf at its start only.
fn look_at_age(facts: &Facts, daemon: Process, look: &mut Look) {
    let Some(started) = daemon.started_unix_s() else { return };
    let file = NixSettings::from_file(&default_file());
    let changed = file.files.iter().filter_map(|path| Some((path, changed_unix_s(path)?)));
    // The start is known to the second only.
    let Some((path, _)) = changed.filter(|(_, changed)| *changed > started + 1).max_by_key(|(_, changed)| *changed)
    else {
        return;
    };
    let mut stale = Finding::warning(format!(
        "nix-daemon (pid {}) is older than {}: it goes on with what it read at its start",
        daemon.0,
        path.display()
    ));
    let restart = facts.mender.restart_nix();
    stale = stale.mended_by(restart.unwrap_or_else(|| {
        format!("{} && {}", facts.mender.as_root(&format!("kill {}", daemon.0)), facts.mender.as_root("nix-daemon"))
    }));
    look.found(stale);
}

/// When the file was changed, or the link that leads to it.
fn changed_unix_s(path: &Path) -> Option<u64> {
    let times = [fs::metadata(path), fs::symlink_metadata(path)];
    let latest = times.into_iter().flatten().map(|metadata| metadata.mtime()).max()?;
    u64::try_from(latest).ok()
}

/// A user who is not trusted may write substituters into a nix.conf of their own, and nix-daemon ignores them.
fn look_at_user(facts: &Facts, look: &mut Look) {
    let gateway = facts.settings.gateway.listen;
    let asks = |nix: &NixSettings| nix.words("substituters").iter().any(|url| names_gateway(url, gateway));
    let of_the_machine = NixSettings::from_file(&default_file());
    let user = geteuid();
    // Only here it matters who asks: root and trusted users are obeyed.
    if user.is_root() || !asks(&facts.nix) || asks(&of_the_machine) || is_trusted(user.as_raw(), &of_the_machine) {
        return;
    }
    let ignored = Finding::warning(format!(
        "only the nix.conf of {} has http://{gateway} as a substituter, and nix-daemon ignores it: that user is not among \
         trusted-users",
        look_up_user_name(user.as_raw())
    ));
    let url = format!("http://{gateway}");
    look.found(ignored.mended_by(facts.mender.nix_setting("extra-substituters", &url)));
}

fn is_trusted(user: u32, nix: &NixSettings) -> bool {
    let name = look_up_user_name(user);
    let asked = Command::new("id").args(["-nG", "--", &name]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let groups = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    nix.words("trusted-users").into_iter().any(|word| match word.strip_prefix('@') {
        Some(group) => groups.split_whitespace().any(|of_user| of_user == group),
        None => word == "*" || word == name,
    })
}

/// A proxy cannot reach the loopback address of this machine.
fn look_at_proxies(facts: &Facts, daemon: Option<Process>, look: &mut Look) {
    let who = daemon.unwrap_or(Process(std::process::id()));
    let value = |names: &[&str]| -> std::io::Result<Option<(String, String)>> {
        for name in names {
            if let Some(value) = who.variable(name)?.filter(|value| !value.is_empty()) {
                return Ok(Some(((*name).to_owned(), value)));
            }
        }
        Ok(None)
    };
    // Of the daemon's own environment: that of this shell says nothing about it.
    match value(&PROXIES).and_then(|proxy| Ok((proxy, value(&EXCEPTIONS)?))) {
        Ok((Some((name, proxy)), exceptions)) if !excepts_us(facts, exceptions.as_ref().map(|(_, value)| &**value)) => {
            let whose = if daemon.is_some() { format!("nix-daemon (pid {})", who.0) } else { "this shell".to_owned() };
            // A proxy's URL may hold a password.
            let host = proxy.rsplit_once('@').map_or(&*proxy, |(_, host)| host);
            let between = Finding::warning(format!(
                "{name} ({host}) is in the environment of {whose}, and no_proxy lacks {}: Nix asks the proxy for what this \
                 machine's gateway has",
                facts.settings.gateway.listen.ip()
            ));
            let exception = format!("no_proxy={}", facts.settings.gateway.listen.ip());
            look.found(between.mended_by(match (daemon, facts.mender.is_nixos(), facts.mender.restart_nix()) {
                (None, _, _) => format!("export {exception}"),
                (Some(_), true, _) => {
                    "networking.proxy.noProxy = \"127.0.0.1,localhost\"; then nixos-rebuild switch".to_owned()
                }
                (Some(_), false, Some(_)) => {
                    facts.mender.drop_in("nix-daemon.service", "Service", "Environment", &exception)
                }
                (Some(_), false, None) => format!("start nix-daemon with {exception} in its environment"),
            }));
        }
        Ok(_) => {}
        Err(error) => look.unseen(format!("whether nix-daemon has a proxy in its environment: {error}")),
    }
}

fn excepts_us(facts: &Facts, exceptions: Option<&str>) -> bool {
    let own = facts.settings.gateway.listen.ip().to_string();
    exceptions.is_some_and(|list| list.split(',').map(str::trim).any(|entry| entry == "*" || entry == own))
}

/// While the daemon restarts, an old Nix gives up a build where the connection is refused; systemd's socket is not.
fn look_at_socket(facts: &Facts, look: &mut Look) {
    let Some(version) = facts.version.filter(|version| *version < NixVersion::REFUSALS_ARE_BORNE) else { return };
    let gateway = facts.settings.gateway.listen.to_string();
    if ask_systemd().contains(&gateway) || facts.nix.value("fallback") == Some("true") {
        return;
    }
    look.found(
        Finding::note(format!(
            "Nix {version} aborts builds while the daemon does not run: systemd does not hold {gateway} for it"
        ))
        .mended_by(facts.mender.as_root("systemctl enable --now narmesh.socket")),
    );
}
