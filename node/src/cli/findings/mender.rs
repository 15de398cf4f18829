//! The commands that mend what was found, as they have to be on this machine.

use crate::cli::nix_conf::default_file;
use crate::config::DEFAULT_FILE;
use std::path::{Path, PathBuf};

/// Where systemd looks for units, see `systemd.unit(5)`.
const UNIT_DIRS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// What the commands depend on.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Mender {
    /// The configuration file of narmesh.
    config: PathBuf,
    /// The nix.conf of this machine.
    nix_conf: PathBuf,
    is_nixos: bool,
    is_root: bool,
    /// Whether systemd runs and has a `narmesh.service`.
    has_unit: bool,
    /// The same of `nix-daemon.service`.
    has_nix_unit: bool,
}

impl Mender {
    pub(in crate::cli) fn of_this_machine(config: &Path) -> Self {
        // `sd_booted(3)` looks for the same directory.
        let has_systemd = Path::new("/run/systemd/system").is_dir();
        let has = |unit: &str| has_systemd && UNIT_DIRS.iter().any(|dir| Path::new(dir).join(unit).exists());
        Self {
            config: config.to_owned(),
            nix_conf: default_file(),
            is_nixos: Path::new("/etc/NIXOS").exists(),
            is_root: rustix::process::geteuid().is_root(),
            has_unit: has("narmesh.service"),
            has_nix_unit: has("nix-daemon.service"),
        }
    }

    /// The command as root.
    pub(in crate::cli) fn as_root(&self, command: &str) -> String {
        if self.is_root { command.to_owned() } else { format!("sudo {command}") }
    }

    /// A command of narmesh, as root, with the configuration that this is about.
    pub(in crate::cli) fn narmesh(&self, words: &str) -> String {
        let config = match self.config.as_path() == Path::new(DEFAULT_FILE) {
            true => String::new(),
            false => format!("--config {} ", quoted(&self.config.display().to_string())),
        };
        self.as_root(&format!("narmesh {config}{words}"))
    }

    /// Opens the configuration in an editor.
    pub(in crate::cli) fn edit(&self, change: &str) -> String {
        if self.is_nixos {
            return format!("services.narmesh.settings: {change}; then nixos-rebuild switch");
        }
        format!("in {}: {change}; then {}", self.config.display(), self.narmesh("reload"))
    }

    pub(in crate::cli) fn start_daemon(&self) -> String {
        match self.has_unit {
            true => self.as_root("systemctl start narmesh"),
            false => self.narmesh("run"),
        }
    }

    pub(in crate::cli) fn restart_daemon(&self, pid: u32) -> String {
        match self.has_unit {
            true => self.as_root("systemctl restart narmesh"),
            false => self.start_after(&format!("kill {pid}"), pid),
        }
    }

    /// The same of a daemon that does not answer, and might not hear that it is to end.
    pub(in crate::cli) fn restart_deaf_daemon(&self, pid: u32) -> String {
        match self.has_unit {
            true => self.as_root("systemctl restart narmesh"),
            false => self.start_after(&format!("kill -KILL {pid}"), pid),
        }
    }

    /// The next daemon has the ports once this one has ended, which takes up to ten seconds.
    fn start_after(&self, end: &str, pid: u32) -> String {
        format!("{}; timeout 15 tail --pid={pid} -f /dev/null; {}", self.as_root(end), self.narmesh("run"))
    }

    /// Sets one of Nix's settings: in nix.conf the last line of a name counts, and `extra-` lines add to it.
    pub(in crate::cli) fn nix_setting(&self, name: &str, value: &str) -> String {
        if self.is_nixos {
            return nixos_option(name, value);
        }
        let line = format!("{name} = {value}");
        let tee = self.as_root(&format!("tee -a {}", quoted(&self.nix_conf.display().to_string())));
        let restart = self.restart_nix().map(|command| format!(" && {command}")).unwrap_or_default();
        format!("{} | {tee}{restart}", print_line(&line))
    }

    /// Has nix-daemon read nix.conf, if systemd runs it.
    pub(in crate::cli) fn restart_nix(&self) -> Option<String> {
        self.has_nix_unit.then(|| self.as_root("systemctl restart nix-daemon"))
    }

    /// Sets a variable of the kernel now and for good.
    pub(in crate::cli) fn sysctl(&self, name: &str, value: &str) -> String {
        if self.is_nixos {
            return format!("boot.kernel.sysctl.\"{name}\" = \"{value}\"; then nixos-rebuild switch");
        }
        let line = format!("{name} = {value}");
        let file = "/etc/sysctl.d/90-narmesh.conf";
        format!(
            "{} | {} && {}",
            print_line(&line),
            self.as_root(&format!("tee -a {file}")),
            self.as_root(&format!("sysctl -p {file}"))
        )
    }

    /// The same with a limit of narmesh.service, such as `LimitNOFILE`.
    pub(in crate::cli) fn unit_setting(&self, name: &str, value: &str) -> String {
        if self.is_nixos {
            return format!("systemd.services.narmesh.serviceConfig.{name} = \"{value}\"; then nixos-rebuild switch");
        }
        match self.has_unit {
            true => self.drop_in("narmesh.service", "Service", name, value),
            false => format!("{name}={value}, or its like, where the daemon is started"),
        }
    }

    /// Sets something of a unit of systemd, beside its file, and restarts what has it.
    pub(in crate::cli) fn drop_in(&self, unit: &str, section: &str, name: &str, value: &str) -> String {
        let dir = format!("/etc/systemd/system/{unit}.d");
        // A list begins anew with an empty line.
        let reset = if name == "ListenStream" { "ListenStream=\\n" } else { "" };
        let text = quoted(&format!("[{section}]\\n{reset}{name}={value}\\n"));
        let tee = self.as_root(&format!("tee {dir}/90-narmesh-{}.conf", name.to_ascii_lowercase()));
        let make = self.as_root(&format!("mkdir -p {dir}"));
        let reload = self.as_root("systemctl daemon-reload");
        let restart = match unit.strip_suffix(".socket") {
            None => self.as_root(&format!("systemctl restart {unit}")),
            // systemd opens no socket anew while its service runs.
            Some(service) => format!(
                "{} && {}",
                self.as_root(&format!("systemctl stop {service}.service {unit}")),
                self.as_root(&format!("systemctl start {unit} {service}.service"))
            ),
        };
        format!("{make} && printf {text} | {tee} && {reload} && {restart}")
    }

    /// Whether this is NixOS, whose files are made by its configuration.
    pub(in crate::cli) fn is_nixos(&self) -> bool {
        self.is_nixos
    }
}

/// `nix.settings` of NixOS, which makes lists of what nix.conf has as words.
fn nixos_option(name: &str, value: &str) -> String {
    const LISTS: [&str; 3] = ["substituters", "trusted-public-keys", "trusted-users"];
    let value = match LISTS.contains(&name.trim_start_matches("extra-")) {
        true => {
            format!("[ {} ]", value.split_whitespace().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" "))
        }
        false if value.parse::<u64>().is_ok() || value == "true" || value == "false" => value.to_owned(),
        false => format!("\"{value}\""),
    };
    format!("nix.settings.{name} = {value}; then nixos-rebuild switch")
}

/// Prints a line for the end of a file, whose last line may lack its end.
fn print_line(line: &str) -> String {
    format!("printf '\\n%s\\n' {}", quoted(line))
}

/// The word as a shell takes it.
pub(in crate::cli) fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-=:,+@%".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
impl Mender {
    /// That of a user on a machine with neither systemd nor NixOS.
    pub(in crate::cli) fn plain() -> Self {
        Self {
            config: PathBuf::from(DEFAULT_FILE),
            nix_conf: PathBuf::from("/etc/nix/nix.conf"),
            is_nixos: false,
            is_root: false,
            has_unit: false,
            has_nix_unit: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_the_machine() {
        let plain = Mender::plain();
        assert_eq!(plain.start_daemon(), "sudo narmesh run");
        assert_eq!(
            plain.nix_setting("fallback", "false"),
            "printf '\\n%s\\n' 'fallback = false' | sudo tee -a /etc/nix/nix.conf"
        );
        let unit = Mender { has_unit: true, has_nix_unit: true, is_root: true, ..plain.clone() };
        assert_eq!(unit.start_daemon(), "systemctl start narmesh");
        assert_eq!(
            unit.nix_setting("fallback", "false"),
            "printf '\\n%s\\n' 'fallback = false' | tee -a /etc/nix/nix.conf && systemctl restart nix-daemon"
        );
        let elsewhere = Mender { config: "/srv/a b.toml".into(), ..plain.clone() };
        assert_eq!(elsewhere.narmesh("status"), "sudo narmesh --config '/srv/a b.toml' status");
        assert_eq!(
            unit.unit_setting("LimitNOFILE", "16384"),
            "mkdir -p /etc/systemd/system/narmesh.service.d && printf '[Service]\\nLimitNOFILE=16384\\n' | \
             tee /etc/systemd/system/narmesh.service.d/90-narmesh-limitnofile.conf && systemctl daemon-reload && \
             systemctl restart narmesh.service"
        );
        let nixos = Mender { is_nixos: true, ..plain };
        assert_eq!(
            nixos.nix_setting("extra-substituters", "http://127.0.0.1:7281"),
            "nix.settings.extra-substituters = [ \"http://127.0.0.1:7281\" ]; then nixos-rebuild switch"
        );
        assert_eq!(
            nixos.nix_setting("narinfo-cache-negative-ttl", "0"),
            "nix.settings.narinfo-cache-negative-ttl = 0; then nixos-rebuild switch"
        );
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quoted("/etc/nix/nix.conf"), "/etc/nix/nix.conf");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
