//! Finds why `narmesh run` could not start although the configuration is valid: because of this machine and what runs
//! on it.

use crate::account::look_up_group_id;
use crate::control::{self, ControlError, ControlReply, ControlRequest};
use crate::settings::{ListenerAddress, Settings, socket_address};
use crate::tokens::Tokens;
use libp2p::Multiaddr;
use narmesh_store::NixStore;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use std::fs::DirBuilder;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long to wait for a running daemon's answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What prevents a start, and what only looks as if it did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Startable {
    /// Each of these prevents the daemon from starting.
    pub(super) problems: Vec<String>,
    /// What does not prevent a start, but is worth knowing.
    pub(super) notes: Vec<String>,
}

/// The daemon that runs with this state directory.
#[derive(Clone, Debug)]
struct Running {
    pid: u32,
    /// The gateway's `address:port`.
    gateway: String,
    /// The mesh's addresses, as multiaddrs.
    listen: Vec<String>,
}

/// Who may hold the configured ports without that being a problem.
#[derive(Debug, Default)]
struct Holders {
    daemon: Option<Running>,
    /// The addresses at which systemd listens for services.
    systemd: Vec<String>,
}

/// Looks for problems and leaves everything as it is: a state directory that it creates as a test is removed again.
pub(super) fn check_startable(settings: &Settings) -> Startable {
    let mut found = Startable::default();
    let daemon = match ask_running(settings) {
        Ok(daemon) => daemon,
        Err(error) => {
            // A daemon runs but its ports are unknown, so a port in use says nothing.
            found.notes.push(format!("a daemon runs, but its status cannot be read ({error}): ports are not checked"));
            return with_places(settings, found, true);
        }
    };
    let is_running = daemon.is_some();
    let holders = Holders { daemon, systemd: ask_systemd() };
    check_ports(settings, &holders, bind, &mut found);
    with_places(settings, found, is_running)
}

fn with_places(settings: &Settings, mut found: Startable, is_running: bool) -> Startable {
    found.problems.extend(NixStore::open(settings.store.clone()).err().map(|error| format!("[store]: {error}")));
    if let Some(group) = &settings.node.control_group
        && look_up_group_id(group).is_none()
    {
        found.problems.push(format!(
            "node.control_group = {group:?}: there is no such group here; accepted: a group that the daemon's user is a member of"
        ));
    }
    // A running daemon has its directory and its socket already.
    if !is_running {
        let (state_dir, socket) = (&settings.node.state_dir, &settings.node.control_socket);
        let dir = socket.parent().filter(|dir| dir != state_dir);
        let places = find_state_dir_problem(state_dir).into_iter().chain(find_socket_problem(
            "node.control_socket",
            socket,
            dir,
        ));
        found.problems.extend(places);
        for (index, listener) in settings.gateway.listeners.iter().enumerate() {
            let ListenerAddress::Unix(socket) = &listener.address else { continue };
            let key = format!("gateway.listener[{index}].address");
            found.problems.extend(find_socket_problem(&key, socket, socket.parent()));
        }
    }
    found
}

/// The daemon that runs with this state directory, if one does.
fn ask_running(settings: &Settings) -> Result<Option<Running>, ControlError> {
    let beside_state = settings.node.state_dir.join("control.sock");
    // The second socket is that of a daemon started before node.control_socket was set.
    for socket in [&settings.node.control_socket, &beside_state] {
        match control::ask(socket, &ControlRequest::Status, ANSWER_MAX) {
            Ok(ControlReply::Status(status)) => {
                let (pid, gateway, listen) = (status.pid, status.gateway, status.listen);
                return Ok(Some(Running { pid, gateway, listen }));
            }
            // Nobody answers, or it is not a socket: `find_socket_problem` looks at it later.
            Ok(_) | Err(ControlError::NotRunning { .. }) => {}
            Err(ControlError::Io { source, .. }) if source.kind() != io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The addresses that `systemctl list-sockets` lists. A unit's socket is in use before the daemon starts, and is then
/// handed to it.
pub(super) fn ask_systemd() -> Vec<String> {
    let listed = Command::new("systemctl").args(["list-sockets", "--no-legend", "--plain", "--no-pager"]).output();
    let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Checks each port of the configuration; `bind` gives the error of binding an address.
fn check_ports(
    settings: &Settings,
    holders: &Holders,
    bind: impl Fn(SocketAddr) -> Result<(), Errno>,
    found: &mut Startable,
) {
    let mut held = Vec::new();
    let gateway = settings.gateway.listen;
    if let Err(error) = bind(gateway) {
        // Our own daemon, or systemd on its behalf, may hold the port. Anything else there prevents a start.
        let is_ours = |daemon: &Running| daemon.gateway == gateway.to_string();
        if holders.daemon.as_ref().is_some_and(is_ours) {
            held.push(format!("gateway.listen = {gateway}"));
        } else if error == Errno::ADDRINUSE && holders.systemd.contains(&gateway.to_string()) {
            found.notes.push(format!("gateway.listen = {gateway} is held by systemd, which hands it to the daemon"));
        } else {
            found.problems.push(refused(&format!("gateway.listen = \"{gateway}\""), error));
        }
    }
    check_listeners(settings, holders, &bind, &mut held, found);
    let (mut missing, mut others) = (0, 0);
    for address in &settings.node.listen {
        let Some(socket) = socket_address(address) else { continue };
        let Err(error) = bind(socket) else {
            others += 1;
            continue;
        };
        let lacks_family = match error {
            Errno::AFNOSUPPORT => true,
            // "All addresses" can be held where there are none: by the daemon that runs, whose status then lists none.
            Errno::ADDRNOTAVAIL | Errno::ADDRINUSE => !has_family(socket, &bind),
            _ => false,
        };
        // The daemon skips a family that the machine lacks, so that alone does not prevent a start.
        if lacks_family {
            missing += 1;
        } else if holders.daemon.as_ref().is_some_and(|daemon| listens_at(daemon, socket)) {
            others += 1;
            held.push(format!("node.listen: {address}"));
        } else {
            others += 1;
            found.problems.push(refused(&format!("node.listen = \"{address}\""), error));
        }
    }
    if missing > 0 && others == 0 {
        found.problems.push(
            "node.listen: this machine has none of these address families; accepted: at least one address of a family \
             that it has"
                .to_owned(),
        );
    }
    if let Some(daemon) = &holders.daemon
        && !held.is_empty()
    {
        found.notes.push(format!("the daemon that runs (pid {}) holds {}", daemon.pid, held.join(", ")));
    }
}

/// The same for the ports of `[[gateway.listener]]`. A running daemon does not say which it holds, so one that is in use is
/// taken for its own.
fn check_listeners(
    settings: &Settings,
    holders: &Holders,
    bind: impl Fn(SocketAddr) -> Result<(), Errno>,
    held: &mut Vec<String>,
    found: &mut Startable,
) {
    for (index, listener) in settings.gateway.listeners.iter().enumerate() {
        if let Some(Err(error)) = listener.tokens_file.as_deref().map(Tokens::read) {
            found.problems.push(format!("gateway.listener[{index}].tokens_file: {error}"));
        }
        if let Some(Err(error)) = listener.tls.as_ref().map(|files| files.read(index)) {
            found.problems.push(error.to_string());
        }
        let ListenerAddress::Tcp(address) = listener.address else { continue };
        let what = format!("gateway.listener[{index}].address = \"{address}\"");
        match bind(address) {
            Err(Errno::ADDRINUSE) if holders.daemon.is_some() => held.push(what),
            Err(error) => found.problems.push(refused(&what, error)),
            Ok(()) => {}
        }
    }
}

fn refused(what: &str, error: Errno) -> String {
    let error = io::Error::from(error);
    format!(
        "{what} cannot be opened: {error}; accepted: an address of this machine, with a TCP port that is free (no \
         daemon that runs with this state directory holds it)"
    )
}

/// Whether this daemon listens at `socket`. If that is all addresses of a family, the daemon's status lists each one
/// instead.
fn listens_at(daemon: &Running, socket: SocketAddr) -> bool {
    let addresses = daemon.listen.iter().filter_map(|text| text.parse::<Multiaddr>().ok());
    addresses.filter_map(|address| socket_address(&address)).any(|known| {
        let is_same_ip =
            known.ip() == socket.ip() || (socket.ip().is_unspecified() && known.is_ipv4() == socket.is_ipv4());
        is_same_ip && known.port() == socket.port()
    })
}

/// Whether this machine has addresses of that family: if it has any, it has the loopback address.
fn has_family(socket: SocketAddr, bind: impl Fn(SocketAddr) -> Result<(), Errno>) -> bool {
    let loopback = if socket.is_ipv4() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { Ipv6Addr::LOCALHOST.into() };
    !matches!(bind(SocketAddr::new(loopback, 0)), Err(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

/// Binds as the daemon does, but does not listen: this finds who listens already and hinders nobody who begins to.
fn bind(address: SocketAddr) -> Result<(), Errno> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    bound().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Why the state cannot be in this directory. Then the default control socket cannot be in it either.
fn find_state_dir_problem(dir: &Path) -> Option<String> {
    let told = |error: io::Error| {
        let dir = dir.display();
        format!(
            "node.state_dir = \"{dir}\": {error}; accepted: a directory that the daemon can write to, or that it can \
             create"
        )
    };
    let mut missing: Vec<PathBuf> = Vec::new();
    for ancestor in dir.ancestors() {
        match std::fs::metadata(ancestor) {
            Ok(metadata) if !metadata.is_dir() => return Some(told(io::ErrorKind::NotADirectory.into())),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor.to_owned()),
            Err(error) => return Some(told(error)),
        }
    }
    if missing.is_empty() {
        return not_writable(dir).map(told);
    }
    // The only sure test is to create it.
    let mut made = Vec::new();
    let result = missing.iter().rev().try_for_each(|dir| {
        DirBuilder::new().mode(0o750).create(dir)?;
        made.push(dir);
        Ok(())
    });
    // A directory that something else already uses is not empty, so it stays.
    made.into_iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
    result.err().map(told)
}

fn not_writable(dir: &Path) -> Option<io::Error> {
    let access = accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    access.err().map(io::Error::from)
}

/// Why the socket that this key names cannot be at its path; its directory is looked at if it is given.
fn find_socket_problem(key: &str, socket: &Path, dir: Option<&Path>) -> Option<String> {
    let told = |what: String| {
        format!(
            "{key} = \"{}\": {what}; accepted: a path in a directory that the daemon can write to",
            socket.display()
        )
    };
    match std::fs::symlink_metadata(socket) {
        // A socket that an earlier daemon left is in nobody's way.
        Ok(metadata) if !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) => {
            return Some(told("something is there that is not a socket".to_owned()));
        }
        Ok(_) | Err(_) => {}
    }
    let dir = dir?;
    let error = match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => not_writable(dir)?,
        Ok(_) => io::ErrorKind::NotADirectory.into(),
        Err(error) => error,
    };
    Some(told(format!("{}: {error}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::net::TcpListener;

    fn settings(dir: &Path, text: &str) -> Settings {
        let ports = "[gateway]\nlisten = '127.0.0.1:0'\n[node]\nlisten = ['/ip4/127.0.0.1/tcp/0']\n";
        let text = if text.contains("listen") { text.to_owned() } else { format!("{ports}{text}") };
        let file = dir.join("narmesh.toml");
        Settings::check(Config::parse(&text, &file).unwrap(), &file).unwrap()
    }

    fn one(problems: &[String], words: &[&str]) {
        assert_eq!(problems.len(), 1, "{problems:?}");
        for word in words.iter().chain(&["; accepted: "]) {
            assert!(problems[0].contains(word), "{word} is not in {problems:?}");
        }
    }

    #[test]
    fn good_configuration_has_no_problems_and_the_check_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), "state_dir = 'a/b/c'\n");
        assert_eq!(check_startable(&settings), Startable::default());
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn unusable_directories_sockets_and_groups_are_problems() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "precious").unwrap();
        for (text, words) in [
            ("state_dir = '/proc/narmesh/state'", ["node.state_dir", "/proc/narmesh/state"]),
            ("state_dir = 'file'", ["node.state_dir", "not a directory"]),
            ("state_dir = 'file/state'", ["node.state_dir", "ot a directory"]),
            ("control_socket = 'file'", ["node.control_socket", "not a socket"]),
            ("control_socket = 'none/control.sock'", ["node.control_socket", "none"]),
            ("control_group = 'no-such-group'", ["node.control_group", "no-such-group"]),
        ] {
            one(&check_startable(&settings(dir.path(), text)).problems, &words);
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("file")).unwrap(), "precious");
        assert!(check_startable(&settings(dir.path(), "control_group = 'root'")).problems.is_empty());
    }

    #[test]
    fn listener_whose_socket_has_no_directory_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let listener = |socket: &str| {
            format!(
                "[gateway]\nlisten = '127.0.0.1:0'\n[node]\nlisten = ['/ip4/127.0.0.1/tcp/0']\n\
                 [[gateway.listener]]\naddress = '{socket}'\nrole = 'serve'"
            )
        };
        let problems = check_startable(&settings(dir.path(), &listener("/nonexist/x.sock"))).problems;
        one(&problems, &["gateway.listener[0].address", "/nonexist", "No such file or directory"]);
        let there = dir.path().join("x.sock");
        let problems = check_startable(&settings(dir.path(), &listener(&there.display().to_string()))).problems;
        assert_eq!(problems, Vec::<String>::new());
    }

    #[test]
    fn port_held_by_another_program_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let gateway = format!("[gateway]\nlisten = '127.0.0.1:{port}'\n[node]\nlisten = ['/ip4/127.0.0.1/tcp/0']");
        one(
            &check_startable(&settings(dir.path(), &gateway)).problems,
            &["gateway.listen", &port.to_string(), "in use"],
        );
        for ip in ["127.0.0.1", "0.0.0.0"] {
            let node = format!("[gateway]\nlisten = '127.0.0.1:0'\n[node]\nlisten = ['/ip4/{ip}/tcp/{port}']");
            one(&check_startable(&settings(dir.path(), &node)).problems, &["node.listen", &port.to_string(), "in use"]);
        }
        let foreign = "[gateway]\nlisten = '127.0.0.1:0'\n[node]\nlisten = ['/ip4/192.0.2.1/tcp/7280']";
        one(&check_startable(&settings(dir.path(), foreign)).problems, &["node.listen", "192.0.2.1"]);
    }

    fn looked_at(holders: &Holders, busy: impl Fn(SocketAddr) -> Result<(), Errno>) -> Startable {
        let dir = tempfile::tempdir().unwrap();
        let text =
            "[gateway]\nlisten = '127.0.0.1:7281'\n[node]\nlisten = ['/ip4/0.0.0.0/tcp/7280', '/ip6/::/tcp/7280']";
        let mut found = Startable::default();
        check_ports(&settings(dir.path(), text), holders, busy, &mut found);
        found
    }

    #[test]
    fn ports_held_by_the_running_daemon_are_a_note_and_other_busy_ports_problems() {
        let listen = vec!["/ip4/192.0.2.7/tcp/7280".to_owned(), "/ip6/::1/tcp/7280".to_owned()];
        let mut daemon = Running { pid: 42, gateway: "127.0.0.1:7281".to_owned(), listen };
        let all_busy = |_| Err(Errno::ADDRINUSE);
        let holders = |daemon: &Running| Holders { daemon: Some(daemon.clone()), systemd: Vec::new() };
        let found = looked_at(&holders(&daemon), all_busy);
        assert!(found.problems.is_empty() && found.notes.len() == 1, "{found:?}");
        assert!(found.notes[0].contains("(pid 42) holds gateway.listen = 127.0.0.1:7281"), "{found:?}");
        // The daemon runs with another configuration: it does not hold these ports, so something else does.
        daemon.gateway = "127.0.0.1:7000".to_owned();
        daemon.listen.pop();
        let found = looked_at(&holders(&daemon), all_busy);
        assert_eq!(found.problems.len(), 2, "{found:?}");
        assert_eq!(looked_at(&Holders::default(), all_busy).problems.len(), 3);
    }

    #[test]
    fn gateway_port_held_by_systemd_is_a_note() {
        let holders = Holders { daemon: None, systemd: vec!["127.0.0.1:7281".to_owned()] };
        let busy = |address: SocketAddr| if address.port() == 7_281 { Err(Errno::ADDRINUSE) } else { Ok(()) };
        let found = looked_at(&holders, busy);
        assert!(found.problems.is_empty() && found.notes[0].contains("held by systemd"), "{found:?}");
    }

    #[test]
    fn missing_address_family_is_a_problem_only_if_no_address_is_left() {
        let no_v6 = |address: SocketAddr| if address.is_ipv6() { Err(Errno::ADDRNOTAVAIL) } else { Ok(()) };
        assert_eq!(looked_at(&Holders::default(), no_v6), Startable::default());
        // "All addresses" of IPv6 are held by whatever daemon runs, though there are none.
        let held = |address: SocketAddr| match address {
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => Err(Errno::ADDRINUSE),
            address => no_v6(address),
        };
        assert_eq!(looked_at(&Holders::default(), held), Startable::default());
        let none = |address: SocketAddr| if address.port() == 7_281 { Ok(()) } else { Err(Errno::AFNOSUPPORT) };
        one(&looked_at(&Holders::default(), none).problems, &["node.listen", "families"]);
    }
}
