//! Whether peers get anything of this machine now: what an operator switched, else the configuration and its hours.

use crate::regular_file;
use crate::settings::Settings;
use crate::state_files::SERVE_FILE;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Notify;

/// Largest such file, bytes.
const FILE_BYTES_MAX: u64 = 64;
/// How often the clock is looked at while hours are configured.
const LOOK: Duration = Duration::from_secs(20);

/// What an operator wants, whatever the configuration says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ServeSwitch {
    /// Peers get what is advertised.
    On,
    /// Peers get nothing.
    Off,
    /// The configuration decides.
    Auto,
}

/// Whether peers get anything, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServeState {
    /// Whether they do.
    pub is_serving: bool,
    /// What an operator switched.
    pub switch: ServeSwitch,
    /// What decides, for people.
    pub why: String,
}

/// The switch, kept over a restart.
#[derive(Debug)]
pub(crate) struct Serving {
    file: PathBuf,
    switch: Mutex<ServeSwitch>,
    changed: Notify,
}

impl Serving {
    /// Reads the switch; one that cannot be read counts as not touched.
    pub(crate) fn open(state_dir: &Path) -> Self {
        let file = state_dir.join(SERVE_FILE);
        let switch = match regular_file::read_text(&file, FILE_BYTES_MAX) {
            Ok(Some(text)) if text.trim() == "on" => ServeSwitch::On,
            Ok(Some(text)) if text.trim() == "off" => ServeSwitch::Off,
            Err(error) if error.kind() == io::ErrorKind::NotFound => ServeSwitch::Auto,
            Ok(_) | Err(_) => {
                tracing::warn!(file = %file.display(), "neither \"on\" nor \"off\" can be read here: the configuration decides whether peers are served");
                ServeSwitch::Auto
            }
        };
        Self { file, switch: Mutex::new(switch), changed: Notify::new() }
    }

    /// Sets the switch and keeps it on the disk. If that fails, it counts until the daemon ends.
    pub(crate) fn set(&self, switch: ServeSwitch) -> io::Result<()> {
        *self.switch.lock() = switch;
        self.changed.notify_one();
        let text = match switch {
            ServeSwitch::On => "on\n",
            ServeSwitch::Off => "off\n",
            ServeSwitch::Auto => return regular_file::clear(&self.file),
        };
        regular_file::clear(&self.file)?;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(&self.file)?.write_all(text.as_bytes())
    }

    /// Whether peers get anything at this minute of the day, and why.
    pub(crate) fn decide(&self, settings: &Settings, minute: u16) -> ServeState {
        let switch = *self.switch.lock();
        let is_in_hours = settings.serve_hours.is_empty() || settings.serve_hours.iter().any(|it| it.contains(minute));
        let (is_serving, why) = match switch {
            ServeSwitch::On => (true, "switched on by `narmesh serve on`"),
            ServeSwitch::Off => (false, "switched off by `narmesh serve off`"),
            ServeSwitch::Auto if !settings.advertise.serve => (false, "advertise.serve = false"),
            ServeSwitch::Auto if !is_in_hours => (false, "outside of advertise.serve_hours"),
            ServeSwitch::Auto if settings.serve_hours.is_empty() => (true, "advertise.serve = true"),
            ServeSwitch::Auto => (true, "within advertise.serve_hours"),
        };
        ServeState { is_serving, switch, why: why.to_owned() }
    }

    /// Waits until it may have to be decided anew: after a change, and while there are hours every now and then.
    pub(crate) async fn wait(&self, has_hours: bool) {
        if has_hours {
            tokio::time::timeout(LOOK, self.changed.notified()).await.ok();
        } else {
            self.changed.notified().await;
        }
    }

    /// Notes that the settings have changed.
    pub(crate) fn on_settings_changed(&self) {
        self.changed.notify_one();
    }
}

/// The minute of the day by the clock of this machine.
pub(crate) fn minute_now() -> u16 {
    let time = jiff::ZonedDateTime::now().time();
    u16::try_from(i32::from(time.hour()) * 60 + i32::from(time.minute())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn settings(lines: &str) -> Settings {
        let file = Path::new("/etc/narmesh/narmesh.toml");
        Settings::check(Config::parse(&format!("[advertise]\n{lines}"), file).unwrap(), file).unwrap()
    }

    #[test]
    fn switch_goes_before_hours_and_hours_count_only_if_serving_is_on() {
        let dir = tempfile::tempdir().unwrap();
        let serving = Serving::open(dir.path());
        let is_serving = |lines, minute| serving.decide(&settings(lines), minute).is_serving;
        assert!(is_serving("", 0));
        assert!(!is_serving("serve = false", 0));
        assert!(is_serving("serve_hours = ['00:00-01:00']", 0));
        assert!(!is_serving("serve_hours = ['00:00-01:00']", 60));
        assert!(!is_serving("serve = false\nserve_hours = ['00:00-01:00']", 0));
        serving.set(ServeSwitch::On).unwrap();
        assert!(is_serving("serve = false\nserve_hours = ['00:00-01:00']", 60));
        serving.set(ServeSwitch::Off).unwrap();
        assert!(!is_serving("", 0));
    }

    #[test]
    fn switch_is_kept_over_a_restart_and_odd_files_count_as_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let kept = || *Serving::open(dir.path()).switch.lock();
        for switch in [ServeSwitch::Auto, ServeSwitch::On, ServeSwitch::Off, ServeSwitch::Off, ServeSwitch::Auto] {
            Serving::open(dir.path()).set(switch).unwrap();
            assert_eq!(kept(), switch);
        }
        std::fs::write(dir.path().join(SERVE_FILE), "maybe").unwrap();
        assert_eq!(kept(), ServeSwitch::Auto);
    }
}
