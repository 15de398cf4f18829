//! Checks that no two files of one configuration are in the same place, and that the daemon keeps nothing in the store.

use super::{CredentialsFile, ListenerAddress, Settings, SettingsError, refused};
use crate::state_files::{
    EDITS_FILE, GATEWAY_KEY_FILE, INVITATIONS_FILE, LEDGER_FILE, MESH_KEY_FILE, MESH_LOCK_FILE, NEXT_MESH_KEY_FILE,
    OTHER_ROSTER_FILE, REMOVAL_FILE, ROSTER_FILE, SERVE_FILE, STATE_FILE, SUMMARIES_DIR, TOTALS_FILE,
};
use std::path::{Component, Path, PathBuf};

/// What SQLite puts beside a database.
const BESIDE_DATABASE: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// A file or socket, and who has it.
struct Place {
    /// A configuration key, or in words what the daemon keeps there.
    key: String,
    path: PathBuf,
    /// Whether others may name the same file, because the daemon only reads it.
    is_shared: bool,
}

/// Refuses a configuration in which one file would be two things.
pub(super) fn check(settings: &Settings) -> Result<(), SettingsError> {
    let configured = configured(settings);
    let written = written(settings);
    for (index, place) in configured.iter().enumerate() {
        // Files that are only read may be the same; two things that are written may not.
        let is_same = |other: &&Place| other.path == place.path && !(other.is_shared && place.is_shared);
        let other = configured.iter().take(index).find(is_same);
        // What is below a directory of the daemon's is in its way as well.
        let of_state = || written.iter().find(|kept| place.path.starts_with(&kept.path));
        if let Some(other) = other.or_else(of_state) {
            return Err(SettingsError::OnePlace {
                key: place.key.clone(),
                path: place.path.clone(),
                other: other.key.clone(),
            });
        }
    }
    check_outside_store(settings)
}

/// Nobody but Nix writes in the store, which it makes read-only; and everybody reads there.
fn check_outside_store(settings: &Settings) -> Result<(), SettingsError> {
    let stores = [Path::new(settings.store.store_dir.as_str()), &settings.store.real_dir].map(plain);
    let is_inside = |path: &Path| stores.iter().any(|store| plain(path).starts_with(store));
    let sockets =
        settings.gateway.listeners.iter().enumerate().filter_map(|(index, listener)| match &listener.address {
            ListenerAddress::Tcp(_) | ListenerAddress::Systemd(_) => None,
            ListenerAddress::Unix(path) => Some((format!("gateway.listener[{index}].address"), path)),
        });
    let node = [("node.state_dir", &settings.node.state_dir), ("node.control_socket", &settings.node.control_socket)];
    let all = node.map(|(key, path)| (key.to_owned(), path)).into_iter().chain(sockets);
    for (key, path) in all {
        if is_inside(path) {
            return Err(refused(key, path, "a path outside the store directory, where only Nix may write"));
        }
    }
    Ok(())
}

/// Everything that the configuration names.
fn configured(settings: &Settings) -> Vec<Place> {
    let mut places = Vec::new();
    let mut add = |key: String, path: &Path, is_shared| places.push(Place { key, path: plain(path), is_shared });
    add("the configuration itself".to_owned(), &settings.file, false);
    add("node.key_file".to_owned(), &settings.node.key_file, false);
    if let Some(path) = &settings.builder_key_file {
        add("trust.builder_key_file".to_owned(), path, false);
    }
    if let Some(path) = &settings.mesh.roster_file {
        add("mesh.roster_file".to_owned(), path, true);
    }
    add("node.control_socket".to_owned(), &settings.node.control_socket, false);
    for (index, listener) in settings.gateway.listeners.iter().enumerate() {
        let key = |name: &str| format!("gateway.listener[{index}].{name}");
        if let ListenerAddress::Unix(path) = &listener.address {
            add(key("address"), path, false);
        }
        if let Some(tls) = &listener.tls {
            add(key("tls_certificate_file"), &tls.certificate, true);
            add(key("tls_key_file"), &tls.key, true);
            if let Some(path) = &tls.client_ca {
                add(key("tls_client_ca_file"), path, true);
            }
        }
        // Several listeners may share one; the daemon only reads it, but `narmesh token` writes it.
        if let Some(path) = &listener.tokens_file {
            add(key("tokens_file"), path, true);
        }
    }
    for upstream in &settings.upstreams {
        let key = |field: &str| format!("{field} of [[upstream]] {:?}", upstream.cache.name);
        match &upstream.credentials {
            Some(CredentialsFile::Token(path)) => add(key("token_file"), path, true),
            Some(CredentialsFile::Password { file, .. }) => add(key("password_file"), file, true),
            Some(CredentialsFile::Netrc { file, .. }) => add(key("netrc_file"), file, true),
            None => {}
        }
        if let Some(path) = &upstream.ca_file {
            add(key("ca_file"), path, true);
        }
    }
    places
}

/// What the daemon keeps in its state directory, apart from the control socket.
fn written(settings: &Settings) -> Vec<Place> {
    let dir = &settings.node.state_dir;
    let databases = [(STATE_FILE, "the state database"), (LEDGER_FILE, "the database of attestations")];
    let databases = databases.iter().flat_map(|(file, what)| {
        BESIDE_DATABASE
            .iter()
            .map(move |suffix| (format!("{what} in node.state_dir"), dir.join(format!("{file}{suffix}"))))
    });
    let others = [
        ("the summaries of peers in node.state_dir".to_owned(), dir.join(SUMMARIES_DIR)),
        ("the switch of `narmesh serve` in node.state_dir".to_owned(), dir.join(SERVE_FILE)),
        ("what came this week in node.state_dir".to_owned(), dir.join(TOTALS_FILE)),
        ("the gateway key in node.state_dir".to_owned(), dir.join(GATEWAY_KEY_FILE)),
        ("the roster of the mesh in node.state_dir".to_owned(), dir.join(ROSTER_FILE)),
        ("the mesh key in node.state_dir".to_owned(), dir.join(MESH_KEY_FILE)),
        ("the next mesh key in node.state_dir".to_owned(), dir.join(NEXT_MESH_KEY_FILE)),
        ("the contradicting roster in node.state_dir".to_owned(), dir.join(OTHER_ROSTER_FILE)),
        ("what says that this machine was removed in node.state_dir".to_owned(), dir.join(REMOVAL_FILE)),
        ("the invitations in node.state_dir".to_owned(), dir.join(INVITATIONS_FILE)),
        ("the edits of the mesh in node.state_dir".to_owned(), dir.join(EDITS_FILE)),
        ("the lock of the mesh in node.state_dir".to_owned(), dir.join(MESH_LOCK_FILE)),
    ];
    databases.chain(others).map(|(key, path)| Place { key, path: plain(&path), is_shared: false }).collect()
}

/// The path without `.` and `..`, as far as its text tells: what links lead to only shows when files are opened.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(component),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn check(text: &str) -> Result<Settings, SettingsError> {
        let file = Path::new("/etc/narmesh/narmesh.toml");
        Settings::check(Config::parse(text, file).unwrap(), file)
    }

    #[test]
    fn no_two_files_are_in_one_place() {
        let one = |text: &str| check(text).unwrap_err().to_string();
        let listener = |fields: &str| format!("[[gateway.listener]]\nrole = 'serve'\n{fields}\n");
        for kept in [
            "state.sqlite",
            "state.sqlite-wal",
            "quorum.sqlite",
            "quorum.sqlite-shm",
            "gateway.key",
            "serve",
            "summaries",
            "summaries/x",
            "../state/./serve",
        ] {
            let message = one(&format!("[node]\ncontrol_socket = 'state/{kept}'"));
            assert!(message.starts_with("node.control_socket = \"/etc/narmesh/state/"), "{kept}: {message}");
            assert!(message.contains(" in node.state_dir; accepted: a path of its own"), "{kept}: {message}");
            let message = one(&listener(&format!("address = '/etc/narmesh/state/{kept}'")));
            assert!(message.starts_with("gateway.listener[0].address = "), "{kept}: {message}");
        }
        for (text, key, other) in [
            ("[node]\ncontrol_socket = 'x'\nkey_file = 'x'".to_owned(), "node.control_socket", "node.key_file"),
            ("[node]\nkey_file = 'narmesh.toml'".to_owned(), "node.key_file", "the configuration itself"),
            ("[node]\nkey_file = 'state/gateway.key'".to_owned(), "node.key_file", "the gateway key"),
            ("[trust]\nbuilder_key_file = 'node.key'".to_owned(), "trust.builder_key_file", "node.key_file"),
            (
                listener("address = '/etc/narmesh/state/control.sock'"),
                "gateway.listener[0].address",
                "node.control_socket",
            ),
            (listener("address = '/run/x'\ntokens_file = '/run/x'"), "gateway.listener[0].tokens_file", "[0].address"),
            (
                "[[upstream]]\nname = 'c'\nurl = 'https://c'\ntoken_file = 'node.key'".to_owned(),
                "token_file of [[upstream]] \"c\"",
                "node.key_file",
            ),
        ] {
            let message = one(&text);
            assert!(message.starts_with(key) && message.contains(other), "{text}: {message}");
        }
        let shared =
            listener("address = '/run/x'\ntokens_file = 't'") + &listener("address = '/run/y'\ntokens_file = 't'");
        assert!(check(&shared).is_ok(), "listeners may share their tokens");
    }
}
