//! `--setup-nix`: our part of nix.conf, between two marks, so that it can be taken out again.

use super::nix_conf::{NixSettings, default_file};
use super::nix_substituters::NixSubstituters;
use super::nix_version::NixVersion;
use super::{emit, eprint_line};
use crate::regular_file::replace_text;
use crate::settings::Settings;
use anyhow::Context as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

const BEGIN: &str =
    "# begin narmesh: `--setup-nix` of `narmesh init` or `narmesh join` wrote this; `narmesh leave` removes it";
/// What such a line begins with, whoever wrote it.
const BEGINS: &str = "# begin narmesh:";
const END: &str = "# end narmesh";
/// At the end of our first line where the line before it had no end of its own, which is then taken away together with ours.
const ADDED_LINE_END: &str = " (and the line end before this)";
/// How Nix is to deal with a gateway that waits for peers; docs/operations.md has the reasons, with measurements.
pub(super) const PATIENCE: &str = "connect-timeout = 5\nstalled-download-timeout = 30\ndownload-attempts = 5\n";
/// Nix is to ask again at once for a path that was missing just now.
pub(super) const FORGET_MISSES: &str = "narinfo-cache-negative-ttl = 0\n";

/// Shows our part of nix.conf, writes it at the end of the file in place of an earlier one, and has nix-daemon read it.
pub(super) fn set_up(settings: &Settings) -> anyhow::Result<()> {
    let key = settings.make_gateway_key()?.context("--setup-nix needs gateway.sign = true in the configuration")?;
    let (gateway, key) = (settings.gateway.listen, key.public());
    // Where narmesh knows the caches, it stands instead of them: the last line of a setting counts. Else it stands beside.
    let mut part = if settings.upstreams.is_empty() {
        format!("extra-substituters = http://{gateway}\nextra-trusted-public-keys = {key}\n")
    } else {
        // What narmesh cannot ask, such as s3://, stays with Nix, and with it the keys that signed what is there.
        let nix = NixSettings::of_this_machine();
        let left = nix.map_or_else(Vec::new, |nix| NixSubstituters::choose(&nix, gateway).left);
        if left.is_empty() {
            format!("substituters = http://{gateway}\ntrusted-public-keys = {key}\n")
        } else {
            let left = left.join(" ");
            format!("substituters = http://{gateway}\nextra-substituters = {left}\nextra-trusted-public-keys = {key}\n")
        }
    };
    let fallback = NixVersion::installed().filter(|version| *version >= NixVersion::FALLBACK_WORKS);
    part += PATIENCE;
    part += FORGET_MISSES;
    part += fallback.map_or("", |_| "fallback = true\n");
    let file = default_file();
    emit(&format!("\nin {}:\n\n{part}\n", file.display()))?;
    let before = read(&file)?;
    let after = with_part(&before, Some(&part));
    // A restart of nix-daemon breaks what it is doing, so only a change is worth it.
    if after == before {
        return Ok(());
    }
    refuse_store(&file).and_then(|()| replace_text(&file, &after)).with_context(|| {
        format!("cannot write {}; where another program makes that file, have it add these lines", file.display())
    })?;
    restart_nix_daemon();
    Ok(())
}

/// Takes our part out of nix.conf, if it is there, and is of this node. Returns whether it was.
pub(super) fn take_out(settings: &Settings) -> anyhow::Result<bool> {
    let file = default_file();
    let before = read(&file)?;
    let after = with_part(&before, None);
    // Lines for another gateway are those of another daemon on this machine.
    if after == before || !before.contains(&format!("substituters = http://{}\n", settings.gateway.listen)) {
        return Ok(false);
    }
    replace_text(&file, &after).with_context(|| format!("cannot write {}", file.display()))?;
    eprint_line(&format!("took our lines out of {}", file.display()));
    restart_nix_daemon();
    Ok(true)
}

fn read(file: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| format!("cannot read {}", file.display())),
    }
}

/// The text with our part at its end, or without it.
fn with_part(text: &str, part: Option<&str>) -> String {
    // Without its end nobody knows what is ours.
    let begins = |line: &str| line.starts_with(BEGINS);
    let is_whole = text.lines().skip_while(|line| !begins(line)).any(|line| line.trim_end() == END);
    let mut is_ours = false;
    // Where we ended a line that was the last one, and nothing was written behind our part since.
    let mut added_line_end = false;
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        is_ours |= is_whole && begins(line);
        if is_ours {
            added_line_end |= begins(line) && line.trim_end().ends_with(ADDED_LINE_END);
        } else {
            kept.push_str(line);
            added_line_end = false;
        }
        is_ours &= line.trim_end() != END;
    }
    if added_line_end && kept.ends_with('\n') {
        kept.pop();
    }
    let Some(part) = part else { return kept };
    if kept.is_empty() || kept.ends_with('\n') {
        format!("{kept}{BEGIN}\n{part}{END}\n")
    } else {
        format!("{kept}\n{BEGIN}{ADDED_LINE_END}\n{part}{END}\n")
    }
}

/// On NixOS nix.conf is a link into the store, which nobody writes to.
fn refuse_store(file: &Path) -> io::Result<()> {
    let is_in_store = fs::canonicalize(file).is_ok_and(|target| target.starts_with("/nix/store"));
    if is_in_store { Err(io::Error::new(io::ErrorKind::PermissionDenied, "it lies in the Nix store")) } else { Ok(()) }
}

/// nix-daemon reads its settings when it starts.
fn restart_nix_daemon() {
    let program = Path::new("systemctl");
    // A machine without nix-daemon, or with one that is started when it is needed, has nothing to restart.
    if is_active(program) {
        match systemctl(program, &["restart", "nix-daemon.service"]) {
            Some(_) => eprint_line("restarted nix-daemon"),
            None => eprint_line("nix-daemon could not be restarted: restart it, so that it reads nix.conf"),
        }
    }
}

/// Whether systemd runs nix-daemon. Its word counts and not its success: in a chroot systemctl does nothing, and succeeds.
fn is_active(program: &Path) -> bool {
    systemctl(program, &["is-active", "nix-daemon.service"]).is_some_and(|said| said.trim_ascii() == b"active")
}

/// What it said, if it succeeded.
fn systemctl(program: &Path, arguments: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then_some(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn our_part_comes_in_once_and_out_again() {
        for text in ["", "substituters = https://cache.nixos.org\n", "max-jobs = 4\n# end\n"] {
            let first = with_part(text, Some("substituters = http://127.0.0.1:7281\n"));
            assert!(first.starts_with(text) && first.ends_with("# end narmesh\n"), "{first}");
            let second = with_part(&first, Some("substituters = http://127.0.0.1:9\n"));
            assert_eq!(second, first.replace("7281", "9"), "in place of the earlier one");
            assert_eq!(with_part(&second, None), text);
            assert_eq!(with_part(text, None), text);
        }
        let torn = format!("{BEGIN}\nx\nmax-jobs = 7\n");
        assert_eq!(with_part(&torn, None), torn, "what has no end is left alone");
    }

    #[test]
    fn a_file_whose_last_line_has_no_end_is_given_back_without_one() {
        let text = "max-jobs = 4";
        let first = with_part(text, Some("x\n"));
        assert!(first.starts_with("max-jobs = 4\n# begin narmesh:"), "{first}");
        let second = with_part(&first, Some("y\n"));
        assert_eq!(second, first.replace("\nx\n", "\ny\n"));
        assert_eq!(with_part(&second, None), text);
        // What somebody wrote behind it stays a line of its own.
        assert_eq!(with_part(&(second + "cores = 2\n"), None), "max-jobs = 4\ncores = 2\n");
    }

    #[test]
    fn a_systemctl_that_does_nothing_has_no_active_service() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("systemctl");
        let says = |script: &str| {
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            is_active(&program)
        };
        assert!(says("echo active"));
        assert!(!says("echo inactive; exit 3"));
        // As in a chroot.
        assert!(!says("echo \"Running in chroot, ignoring command 'is-active'\" >&2"));
        assert!(!is_active(&dir.path().join("missing")));
    }
}
