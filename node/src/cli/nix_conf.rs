//! Nix's own configuration, as far as it concerns a substituter.

use crate::regular_file;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Deepest `include` that is followed.
const INCLUDE_DEPTH_MAX: usize = 8;
/// Largest file read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Nix's settings, and where they were read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct NixSettings {
    /// The command or file that gave the settings, for messages.
    pub(super) source: String,
    /// Files that could not be read.
    pub(super) unreadable: Vec<PathBuf>,
    /// Files that were read; none if Nix was asked.
    pub(super) files: Vec<PathBuf>,
    values: BTreeMap<String, String>,
}

impl NixSettings {
    /// The settings that Nix itself reports, if it is installed; else those of `nix.conf`.
    pub(super) fn effective() -> Self {
        Self::from_programs().unwrap_or_else(|| Self::from_file(&default_file()))
    }

    /// The same; `None` if this machine has no Nix: no `nix` answers and there is no `nix.conf`.
    pub(super) fn of_this_machine() -> Option<Self> {
        Self::from_programs().or_else(|| {
            let file = default_file();
            file.exists().then(|| Self::from_file(&file))
        })
    }

    fn from_programs() -> Option<Self> {
        Self::from_nix("nix config show", &["config", "show"])
            .or_else(|| Self::from_nix("nix show-config", &["show-config"]))
    }

    /// Reads a `nix.conf` and what it includes, over Nix's defaults.
    pub(super) fn from_file(path: &Path) -> Self {
        let mut settings = Self { source: path.display().to_string(), ..Self::default() };
        for (name, value) in [
            ("substituters", "https://cache.nixos.org/"),
            ("trusted-public-keys", "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="),
            ("narinfo-cache-negative-ttl", "3600"),
            // Nix's default on Linux.
            ("sandbox", "true"),
            ("sandbox-fallback", "true"),
            ("trusted-users", "root"),
        ] {
            settings.values.insert(name.to_owned(), value.to_owned());
        }
        settings.read_file(path, 0, false);
        settings
    }

    fn from_nix(source: &str, arguments: &[&str]) -> Option<Self> {
        let output =
            Command::new("nix").args(["--extra-experimental-features", "nix-command"]).args(arguments).output();
        let output = output.ok().filter(|output| output.status.success())?;
        let mut settings = Self { source: source.to_owned(), ..Self::default() };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            settings.assign(line);
        }
        settings.values.contains_key("substituters").then_some(settings)
    }

    fn read_file(&mut self, path: &Path, depth: usize, may_be_missing: bool) {
        // A pipe in its place is never read: nobody may write to it, and this would wait for ever.
        let text = regular_file::read_text(path, FILE_BYTES_MAX).ok().flatten();
        let Some(text) = text.filter(|_| depth <= INCLUDE_DEPTH_MAX) else {
            if !may_be_missing {
                self.unreadable.push(path.to_owned());
            }
            return;
        };
        self.files.push(path.to_owned());
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            match line.split_once(char::is_whitespace) {
                Some(("include", file)) => self.read_file(&sibling(path, file), depth + 1, false),
                Some(("!include", file)) => self.read_file(&sibling(path, file), depth + 1, true),
                Some(_) | None => self.assign(line),
            }
        }
    }

    /// `name = value`, or `extra-name = value`, which appends.
    fn assign(&mut self, line: &str) {
        let Some((name, value)) = line.split_once('=') else { return };
        let (name, value) = (name.trim(), value.trim());
        // `nix show-config` lists some settings under both spellings; appending the same words twice is harmless.
        match name.strip_prefix("extra-") {
            Some(base) => {
                let all = self.values.entry(current_name(base).to_owned()).or_default();
                *all = format!("{all} {value}").trim().to_owned();
            }
            None => {
                self.values.insert(current_name(name).to_owned(), value.to_owned());
            }
        }
    }

    /// The value of a setting.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The words of a setting.
    pub(super) fn words(&self, name: &str) -> Vec<&str> {
        self.value(name).map(|value| value.split_whitespace().collect()).unwrap_or_default()
    }

    /// The substituters other than our gateway.
    pub(super) fn substituters_besides(&self, gateway: SocketAddr) -> Vec<&str> {
        self.words("substituters").into_iter().filter(|url| !names_gateway(url, gateway)).collect()
    }
}

/// The file that Nix reads on this machine.
pub(super) fn default_file() -> PathBuf {
    let dir = std::env::var_os("NIX_CONF_DIR").map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from);
    dir.join("nix.conf")
}

/// A substituter URL without a final slash and parameters.
pub(super) fn bare_url(url: &str) -> &str {
    url.split('?').next().unwrap_or_default().trim_end_matches('/')
}

/// Whether a substituter URL is our gateway, with or without a final slash and parameters.
pub(super) fn names_gateway(url: &str, gateway: SocketAddr) -> bool {
    let bare = bare_url(url);
    bare == format!("http://{gateway}") || bare == format!("http://localhost:{}", gateway.port())
}

/// The current name of a setting that may be given by an old alias; only for settings that matter here.
fn current_name(name: &str) -> &str {
    match name {
        "binary-caches" => "substituters",
        "binary-cache-public-keys" => "trusted-public-keys",
        "build-fallback" => "fallback",
        "build-use-sandbox" | "build-use-chroot" => "sandbox",
        other => other,
    }
}

fn sibling(path: &Path, file: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).join(file.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn includes_extras_aliases_and_comments_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nix.conf");
        fs::write(
            &file,
            "substituters = https://a # the first\n# substituters = https://no\nextra-substituters = http://127.0.0.1:7281\n\
             binary-cache-public-keys = a-1:AA==\ninclude more.conf\n!include missing.conf\ninclude gone.conf\nfallback = true\n",
        )
        .unwrap();
        fs::write(dir.path().join("more.conf"), "extra-trusted-public-keys = b-1:BB== c-1:CC==\ninclude more.conf\n")
            .unwrap();
        let settings = NixSettings::from_file(&file);
        assert_eq!(settings.words("substituters"), ["https://a", "http://127.0.0.1:7281"]);
        assert_eq!(settings.words("trusted-public-keys")[..3], ["a-1:AA==", "b-1:BB==", "c-1:CC=="]);
        assert_eq!(settings.value("fallback"), Some("true"));
        // A file that includes itself does not loop for ever. A missing `include` is reported, a missing `!include` is
        // not.
        assert_eq!(settings.unreadable.iter().filter(|path| path.ends_with("gone.conf")).count(), 1);
        assert!(!settings.unreadable.iter().any(|path| path.ends_with("missing.conf")));
    }

    #[test]
    fn a_pipe_in_place_of_the_file_is_told_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nix.conf");
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR).unwrap();
        let settings = NixSettings::from_file(&file);
        assert_eq!(settings.unreadable, [file]);
        assert_eq!(settings.words("substituters"), ["https://cache.nixos.org/"]);
    }

    #[test]
    fn missing_file_gives_the_defaults_of_nix() {
        let settings = NixSettings::from_file(Path::new("/nonexistent/nix.conf"));
        assert_eq!(settings.words("substituters"), ["https://cache.nixos.org/"]);
        assert_eq!(settings.words("trusted-public-keys").len(), 1);
    }
}
