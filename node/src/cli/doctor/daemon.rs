//! The daemon: does it run, does it answer, and is it that of the program and the file on disk?

use super::Facts;
use super::process::Process;
use super::report::Look;
use crate::cli::findings::{Finding, Mender};
use crate::control::{self, ControlError, ControlReply, ControlRequest};
use crate::status::Status;
use crate::status::text::{contradiction, tell_removal};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// How long the daemon's answer is waited for. It answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What it calls itself.
const SOFTWARE: &str = concat!("narmesh/", env!("CARGO_PKG_VERSION"));

/// What came of asking the daemon for its status.
#[derive(Debug)]
pub(super) enum Answer {
    Status(Box<Status>),
    NotRunning(String),
    /// This user may not ask it.
    NoPermission(String),
    /// Somebody listens, and gives no answer that can be used.
    Failed(String),
}

impl Answer {
    pub(super) fn of_daemon(socket: &Path) -> Self {
        match control::ask(socket, &ControlRequest::Status, ANSWER_MAX) {
            Ok(ControlReply::Status(status)) => Self::Status(status),
            Ok(ControlReply::Refused { why }) => Self::Failed(format!("it refused: {why}")),
            Ok(_) => Self::Failed("it gave an answer of another kind".to_owned()),
            Err(error @ ControlError::NotRunning { .. }) => Self::NotRunning(error.to_string()),
            Err(error @ ControlError::Permission { .. }) => Self::NoPermission(error.to_string()),
            // So a read that took too long ends on a socket with a time limit.
            Err(ControlError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                Self::Failed(format!("no answer within {} s", ANSWER_MAX.as_secs()))
            }
            Err(error) => Self::Failed(error.to_string()),
        }
    }

    pub(super) fn status(&self) -> Option<&Status> {
        match self {
            Self::Status(status) => Some(status),
            Self::NotRunning(_) | Self::NoPermission(_) | Self::Failed(_) => None,
        }
    }
}

pub(super) fn look(facts: &Facts, look: &mut Look) {
    match &facts.answer {
        Answer::Status(status) => {
            look_at_status(status, &facts.mender, look);
            look_at_gateway(status, facts.settings.gateway.listen, &facts.mender, look);
        }
        other => look_at_failure(other, &facts.mender, look),
    }
}

/// A socket that systemd hands over wins over the configuration.
fn look_at_gateway(status: &Status, configured: SocketAddr, mender: &Mender, look: &mut Look) {
    // With port 0 the system chooses, so any address is right.
    if configured.port() == 0 || status.gateway == configured.to_string() {
        return;
    }
    let other = Finding::warning(format!(
        "the gateway listens at {}, and gateway.listen is {configured}: a socket that systemd hands over wins, and so does what \
         was read before a reload that needs a restart",
        status.gateway
    ));
    let listen = configured.to_string();
    look.found(other.mended_by(mender.drop_in("narmesh.socket", "Socket", "ListenStream", &listen)));
}

/// The same where the configuration cannot be used.
pub(super) fn look_without_settings(answer: &Answer, mender: &Mender) -> Look {
    let mut look = Look::at("daemon");
    match answer {
        Answer::Status(status) => look_at_reload(status, mender, &mut look),
        other => look_at_failure(other, mender, &mut look),
    }
    look
}

fn look_at_failure(answer: &Answer, mender: &Mender, look: &mut Look) {
    match answer {
        Answer::Status(_) => {}
        Answer::NotRunning(error) => look.found(
            Finding::error(format!("{error}: Nix gets nothing from peers, and peers get nothing from here"))
                .mended_by(mender.start_daemon()),
        ),
        Answer::NoPermission(error) => {
            look.unseen(format!("{error}. `{}` sees all", mender.narmesh("doctor")));
        }
        Answer::Failed(why) => {
            let mut hangs = Finding::error(format!("somebody listens on the daemon's control socket, but: {why}"));
            // It hangs and cannot say who it is, so the kernel is asked.
            for process in Process::named("narmesh").into_iter().filter(|process| process.0 != std::process::id()) {
                hangs = hangs.mended_by(mender.restart_deaf_daemon(process.0));
            }
            look.found(hangs);
        }
    }
}

fn look_at_status(status: &Status, mender: &Mender, look: &mut Look) {
    let restart = || mender.restart_daemon(status.pid);
    // The kernel says so of a program whose file was replaced, which an update does.
    match Process(status.pid).program() {
        Ok(program) if program.to_string_lossy().ends_with(" (deleted)") => look.found(
            Finding::warning(format!(
                "the daemon (pid {}) is older than the program on disk: it was replaced while the daemon ran, which goes on \
                 with the old one",
                status.pid
            ))
            .mended_by(restart()),
        ),
        _ if status.software != SOFTWARE => look.found(
            Finding::warning(format!(
                "the daemon (pid {}) is {}, and this program is {SOFTWARE}: it was not restarted after an update, or there \
                 are two programs of that name",
                status.pid, status.software
            ))
            .mended_by(restart()),
        ),
        Ok(_) => {}
        Err(error) => look.unseen(format!("whether the daemon runs the program that is on disk now: {error}")),
    }
    look_at_reload(status, mender, look);
    if let Some(mesh) = &status.mesh
        && let Some(other) = &mesh.contradicting_key
    {
        let two = Finding::error(contradiction(other));
        let accept = |key: &str| mender.narmesh(&format!("mesh rekey --accept {key}"));
        look.found(
            two.mended_by(accept(other)).mended_by(format!("{} # if the one in force is right", accept(&mesh.key))),
        );
    }
    if let Some((mesh, version)) = status.mesh.as_ref().and_then(|mesh| Some((mesh, mesh.removed_in_version?))) {
        let removed = Finding::error(tell_removal(mesh, version));
        look.found(removed.mended_by(format!("{} # with a new token", mender.narmesh("join TOKEN"))));
    }
    if let Some(gap) = &status.store.missing {
        look.found(Finding::error(format!(
            "the daemon finds no store: {gap}: nothing is offered, and nothing is found in it"
        )));
    } else if !status.serve.is_serving {
        let nothing = Finding::note(format!("peers get nothing of this machine: {}", status.serve.why));
        look.found(nothing.mended_by(mender.narmesh("serve auto")).mended_by(mender.narmesh("serve on")));
    } else if status.store.valid_paths > 0 && status.store.advertised_paths == 0 {
        let empty =
            Finding::note(format!("of {} paths of the store none is offered to peers", status.store.valid_paths));
        look.found(empty.mended_by(format!("{} # says why of each", mender.narmesh("advertised"))));
    }
    for listener in &status.listeners {
        if let Some(error) = listener.tls.as_ref().and_then(|tls| tls.error.as_ref()) {
            look.found(
                Finding::warning(format!(
                    "listener {}: the new certificate is refused, and the old one is shown on: {error}",
                    listener.address
                ))
                .mended_by(mender.narmesh("reload")),
            );
        }
    }
}

/// Whether the file that is in force is the one on disk.
fn look_at_reload(status: &Status, mender: &Mender, look: &mut Look) {
    let config = &status.config;
    if let Some(error) = &config.error {
        let refused = Finding::error(format!(
            "the last reload was refused, and the settings before it stay in force: {}",
            error.trim_end().replace('\n', " ")
        ));
        look.found(refused.mended_by(mender.narmesh("check-config")).mended_by(mender.narmesh("reload")));
        return;
    }
    match fs::metadata(&config.file) {
        // In the second in which the file was read nobody can tell which came first.
        Ok(metadata) if u64::try_from(metadata.mtime()).is_ok_and(|changed| changed > config.loaded_unix_s) => {
            look.found(
                Finding::warning(format!(
                    "{} was changed after the daemon read it: the daemon goes on with what it read",
                    config.file.display()
                ))
                .mended_by(mender.narmesh("reload")),
            );
        }
        Ok(_) => {}
        Err(error) => look.unseen(format!("whether {} was changed: {error}", config.file.display())),
    }
}
