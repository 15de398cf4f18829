//! Asking the running daemon.

use crate::config::{Config, ConfigError, FILE_BYTES_MAX};
use crate::control::{self, ControlError, ControlReply, ControlRequest};
use crate::regular_file::read_text;
use crate::settings::Settings;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a reply may take; a probe of dead peers takes several seconds.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks the daemon that runs on `config`.
pub(super) fn ask(config: &Path, request: &ControlRequest) -> anyhow::Result<ControlReply> {
    let reply =
        control::ask(&control_socket(config), request, REPLY_TIMEOUT).map_err(|error| explain(error, config))?;
    match reply {
        ControlReply::Refused { why } => anyhow::bail!("the daemon refused: {why}"),
        ControlReply::Status(_)
        | ControlReply::Advertised(_)
        | ControlReply::Why(_)
        | ControlReply::Log(_)
        | ControlReply::Dashboard { .. }
        | ControlReply::Reloaded
        | ControlReply::Serve(_)
        | ControlReply::Probe(_) => Ok(reply),
    }
}

/// If the configuration cannot be read, its daemon's socket is unknown: then that is the error, not that no daemon
/// answers.
fn explain(error: ControlError, config: &Path) -> anyhow::Error {
    match (&error, Config::read(config)) {
        (ControlError::NotRunning { .. }, Err(why @ (ConfigError::Missing { .. } | ConfigError::Read { .. }))) => {
            why.into()
        }
        (_, _) => error.into(),
    }
}

/// The error for a reply of another kind than the request's.
pub(super) fn mismatched() -> anyhow::Error {
    anyhow::anyhow!("the daemon gave an answer of another kind; is it another version of narmesh?")
}

/// Where the daemon's control socket is. This also works for a configuration that is refused: the daemon may be running
/// on the earlier version of the file, and its `status` shows the refusal.
pub(super) fn control_socket(config: &Path) -> PathBuf {
    match Settings::load(config) {
        Ok(settings) => settings.node.control_socket,
        Err(_) => scan(config, &read_text(config, FILE_BYTES_MAX).ok().flatten().unwrap_or_default()),
    }
}

/// Finds `state_dir` and `control_socket` of `[node]` line by line, in a text that need not be valid TOML.
fn scan(config: &Path, text: &str) -> PathBuf {
    let base = config.parent().unwrap_or(Path::new("."));
    let mut section = "";
    let (mut state_dir, mut control_socket) = (PathBuf::from("state"), None);
    // Line by line, because a file that the daemon refuses must not keep a command from finding the daemon.
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if section == "[node]"
            && let Ok(table) = line.parse::<toml::Table>()
        {
            let value = |key: &str| table.get(key).and_then(toml::Value::as_str).map(PathBuf::from);
            state_dir = value("state_dir").unwrap_or(state_dir);
            control_socket = value("control_socket").or(control_socket);
        }
    }
    base.join(control_socket.unwrap_or_else(|| state_dir.join("control.sock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_configuration_is_reported_rather_than_a_daemon_that_does_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("narmesh.toml");
        let asked = || ask(&file, &ControlRequest::Status).unwrap_err().to_string();
        assert!(asked().starts_with("there is no configuration ") && asked().contains(" init`"), "{}", asked());
        std::fs::create_dir(&file).unwrap();
        assert!(asked().contains("it is a directory, not a file"), "{}", asked());
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(&file, "").unwrap();
        assert!(asked().contains("no narmesh daemon answers"), "{}", asked());
    }

    #[test]
    fn socket_is_found_in_a_broken_configuration() {
        let at = |text: &str| scan(Path::new("/etc/narmesh/narmesh.toml"), text);
        assert_eq!(at(""), Path::new("/etc/narmesh/state/control.sock"));
        assert_eq!(at("[node]\nstate_dir = '/var/x' # here\noops"), Path::new("/var/x/control.sock"));
        assert_eq!(at("[store]\nstate_dir = '/nix/var/nix'\n[[["), Path::new("/etc/narmesh/state/control.sock"));
        assert_eq!(at("[node]\ncontrol_socket = '/run/c'\nlisten = [\n[gateway]\n= ="), Path::new("/run/c"));
    }
}
