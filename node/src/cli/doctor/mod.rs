//! `narmesh doctor`: everything that is commonly wrong on a machine, each with the command that mends it.
//!
//! A *look* is one part of the machine that is looked at. All looks go on at the same time, and what one of them waits for
//! without end (a disk that does not answer, a program that hangs) costs [`LOOK_MAX`] and hides nothing that the others
//! find. Nothing is changed. What this user may not see is said, with the reason.

mod clock;
mod configuration;
mod daemon;
mod disk;
mod firewall;
mod firewall_rules;
mod key_files;
mod limits;
mod line;
mod narinfo_cache;
mod nix_daemon;
mod peers;
mod process;
mod report;

use self::daemon::Answer;
use self::report::{Look, Report};
use super::client::control_socket;
use super::emit_report;
use super::findings::{Finding, Mender, OwnKeys};
use super::nix_conf::NixSettings;
use super::nix_version::NixVersion;
use crate::daemon::with_members;
use crate::settings::Settings;
use crate::status::Status;
use narmesh_protocol::NixSecretKey;
use process::Process;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Most time for all looks together. They run at once, and each of them ends within 5 s unless the machine hangs.
const LOOK_MAX: Duration = Duration::from_secs(10);

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// What every look may need; read once.
#[derive(Debug)]
struct Facts {
    /// The settings as the daemon has them: with the members of the roster.
    settings: Settings,
    keys: OwnKeys,
    answer: Answer,
    /// The daemon's process, if it answers.
    daemon: Option<Process>,
    nix: NixSettings,
    version: Option<NixVersion>,
    mender: Mender,
}

impl Facts {
    fn gather(settings: &Settings, answer: Answer, mender: Mender) -> Self {
        let secrets = settings.read_secrets().ok();
        let status = answer.status();
        let own_id = secrets.as_ref().map(crate::settings::Secrets::peer_id);
        let own_id = own_id.or_else(|| status.and_then(|status| status.peer_id.parse().ok()));
        let settings = own_id.map_or_else(|| settings.clone(), |id| with_members(settings, &id, None));
        let told = status.and_then(|status| status.gateway_public_key.as_deref());
        let read = settings.read_gateway_key().ok().flatten().map(|key| key.public());
        let keys = OwnKeys {
            builder: secrets.and_then(|secrets| secrets.builder_key).as_ref().map(NixSecretKey::public),
            gateway: read.or_else(|| told.and_then(|key| narmesh_protocol::NixPublicKey::parse(key).ok())),
            node: own_id,
        };
        let daemon = status.map(|status| Process(status.pid));
        Self { settings, keys, daemon, answer, nix: NixSettings::effective(), version: NixVersion::installed(), mender }
    }

    fn status(&self) -> Option<&Status> {
        self.answer.status()
    }
}

/// Looks at one part of the machine.
type LookAt = fn(&Facts, &mut Look);

/// Returns whether no error was found.
pub(super) fn doctor(config: &Path, arguments: &Arguments) -> anyhow::Result<bool> {
    let report = examine(config);
    emit_report(&report, arguments.json, Report::text)?;
    Ok(report.is_healthy())
}

fn examine(config: &Path) -> Report {
    let mender = Mender::of_this_machine(config);
    let answer = Answer::of_daemon(&control_socket(config));
    // Without settings nobody knows where to look, and the daemon is still asked.
    let settings = match Settings::load(config) {
        Ok(settings) => settings,
        Err(error) => {
            let mut look = Look::at("configuration");
            let refused = Finding::error(error.to_string().trim_end().replace('\n', " "));
            look.found(refused.mended_by(mender.narmesh("check-config")));
            look.unseen("everything else: it depends on the configuration");
            return Report::new(config, vec![look, daemon::look_without_settings(&answer, &mender)]);
        }
    };
    let began = Instant::now();
    let mut looks = Vec::new();
    // With a time limit, because `nix` itself may hang.
    let gathered = run_at_once(vec![("Nix", move || Facts::gather(&settings, answer, mender))], began);
    let Some((_, Some(facts))) = gathered.into_iter().next() else {
        let mut look = Look::at("Nix");
        look.unseen(format!("`nix` gave no answer within {} s, and everything else waits for it", LOOK_MAX.as_secs()));
        return Report::new(config, vec![look]);
    };
    let facts = Arc::new(facts);
    let each: [(&'static str, LookAt); 11] = [
        ("configuration", configuration::look),
        ("daemon", daemon::look),
        ("keys", key_files::look),
        ("Nix", nix_daemon::look),
        ("Nix's memory", narinfo_cache::look),
        ("peers", peers::look),
        ("firewall", firewall::look),
        ("clock", clock::look),
        ("disk", disk::look),
        ("line", line::look),
        ("limits", limits::look),
    ];
    let tasks = each.into_iter().map(|(about, look_at)| {
        let facts = Arc::clone(&facts);
        (about, move || {
            let mut look = Look::at(about);
            look_at(&facts, &mut look);
            look
        })
    });
    for (about, look) in run_at_once(tasks.collect(), began) {
        looks.push(look.unwrap_or_else(|| {
            let mut look = Look::at(about);
            look.unseen(format!("it took longer than {} s", LOOK_MAX.as_secs()));
            look
        }));
    }
    Report::new(config, looks)
}

/// Runs all tasks at once, each on a thread of its own, and returns what they gave until [`LOOK_MAX`] after `began`. A
/// thread that still waits ends with the process.
fn run_at_once<T: Send + 'static>(
    tasks: Vec<(&'static str, impl FnOnce() -> T + Send + 'static)>,
    began: Instant,
) -> Vec<(&'static str, Option<T>)> {
    let running: Vec<_> = tasks
        .into_iter()
        .map(|(about, task)| {
            let (sender, receiver) = mpsc::sync_channel(1);
            // Nobody waits any more when it cannot be sent.
            thread::spawn(move || drop(sender.send(task())));
            (about, receiver)
        })
        .collect();
    let left = || LOOK_MAX.saturating_sub(began.elapsed());
    running.into_iter().map(|(about, receiver)| (about, receiver.recv_timeout(left()).ok())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_that_never_ends_hides_no_other() {
        let began = Instant::now().checked_sub(LOOK_MAX).unwrap();
        let (never, waits) = mpsc::channel::<u8>();
        let hangs = move || waits.recv().unwrap_or_default();
        assert_eq!(run_at_once(vec![("hangs", hangs)], began), [("hangs", None)]);
        drop(never);
        assert_eq!(run_at_once(vec![("ends", || 7)], Instant::now()), [("ends", Some(7))]);
    }
}
