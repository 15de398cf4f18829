//! Other users of the same machine, who take all connections, look for addresses of peers, or forge lines in the log.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use narmesh_tests::{TestMesh, TestNode, get, promised, request, wait_until};
use rustix::process::Signal;

/// Ids of the user nobody and of its group.
pub(crate) const NOBODY: &str = "65534";

/// Connections to open: somewhat more than the gateway accepts at a time.
const FLOOD: usize = 600;

/// Connections to the control socket: more than root may have, waiting ones included.
const CONTROL_FLOOD: usize = 100;

/// A Python program that opens connections and holds them until its standard input ends.
const GREEDY: &str = "
import select, socket, sys
address, count = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
def opened():
    one = socket.create_connection(address)
    one.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n')
    return one
held = [opened() for _ in range(count)]
print('ready', flush=True)
sys.stdin.read()
";

/// The same at a Unix socket, where it says nothing and goes on opening whenever one is closed.
const GREEDY_AT_SOCKET: &str = "
import selectors, socket, sys, time
path, count = sys.argv[1], int(sys.argv[2])
watched = selectors.DefaultSelector()
def open_one():
    one = socket.socket(socket.AF_UNIX)
    one.connect(path)
    watched.register(one, selectors.EVENT_READ)
for _ in range(count):
    open_one()
print('ready', flush=True)
while True:
    for key, _ in watched.select():
        watched.unregister(key.fileobj)
        key.fileobj.close()
        time.sleep(0.001)
        open_one()
";

/// Starts a node with `line` added to `section` of its configuration, for keys that the harness has no field for.
fn start_with(node: &mut TestNode, section: &str, line: &str) {
    node.write_config();
    let text = fs::read_to_string(node.config_file()).unwrap();
    let edited = text.replace(&format!("[{section}]\n"), &format!("[{section}]\n{line}\n"));
    assert_ne!(edited, text);
    fs::write(node.config_file(), edited).unwrap();
    node.start_as_written(None);
}

/// A connection that is used for several requests.
struct Kept(TcpStream);

impl Kept {
    fn open(gateway: SocketAddr) -> Self {
        let stream = TcpStream::connect(gateway).unwrap();
        stream.set_read_timeout(Some(promised(Duration::from_secs(1)))).unwrap();
        Self(stream)
    }

    /// The head of the answer to one more request; empty if the connection was closed.
    fn ask(&mut self) -> String {
        let mut answer = [0; 4096];
        let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let length = self.0.write_all(request).and_then(|()| self.0.read(&mut answer)).unwrap_or(0);
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}

fn greedy(gateway: SocketAddr) -> Child {
    run_as_nobody(NOBODY, GREEDY, &[&gateway.ip().to_string(), &gateway.port().to_string(), &FLOOD.to_string()])
}

/// Starts a Python program as the user nobody in this group, and waits until it says that it is ready.
pub(crate) fn run_as_nobody(group: &str, program: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--reuid", NOBODY, "--regid", group, "--clear-groups"]);
    command.args(["/usr/bin/python3", "-c", program]).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut ready).expect("all connections were opened and none refused");
    child
}

#[test]
fn a_user_who_opens_every_connection_loses_only_his_own() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    node.start();
    // Opened first and idle longest: without a share for each user it would be the first to be closed.
    let mut ours = Kept::open(node.gateway());
    assert!(ours.ask().starts_with("HTTP/1.1 200"));
    let mut others = greedy(node.gateway());
    assert!(ours.ask().starts_with("HTTP/1.1 200"), "closed for another user's");
    // A new connection is accepted too.
    assert_eq!(get(node.gateway(), "/nix-cache-info").unwrap().status, 200);
    wait_until("the greedy one has his half and no more", promised(Duration::from_secs(1)), || {
        let metrics = get(node.gateway(), "/metrics").unwrap().text();
        let open = metrics.lines().find_map(|line| line.strip_prefix("narmesh_gateway_open_connections "));
        (256..=258).contains(&open.unwrap().parse::<u32>().unwrap())
    });
    others.kill().unwrap();
    others.wait().unwrap();
}

#[test]
fn the_gateway_names_no_peer_address_and_the_control_socket_is_for_its_group() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    TestMesh::introduce(&mut [&mut a, &mut b]);
    a.start();
    b.learn_address("a", &a.p2p_address());
    start_with(&mut b, "node", "control_group = \"daemon\"");
    b.wait_connected("a", true, Duration::from_secs(5));

    let port = a.p2p_socket().port().to_string();
    assert!(b.status().0.to_string().contains(&port), "the status, which is for the group, does name it");
    for path in ["/metrics", "/healthz"] {
        let text = get(b.gateway(), path).unwrap().text();
        for address in [port.as_str(), "127.0.0.1", "/ip4", "/tcp/"] {
            assert!(!text.contains(address), "{path} names {address}:\n{text}");
        }
    }
    let socket = fs::metadata(b.dir().join("state/control.sock")).unwrap();
    let daemon_group = fs::read_to_string("/etc/group").unwrap();
    let daemon_group = daemon_group.lines().find_map(|line| line.strip_prefix("daemon:x:")).unwrap();
    let gid: u32 = daemon_group.split(':').next().unwrap().parse().unwrap();
    assert_eq!((socket.permissions().mode() & 0o7777, socket.gid()), (0o660, gid));
    assert_ne!(fs::metadata(a.dir().join("state/control.sock")).unwrap().gid(), gid);
}

#[test]
fn a_member_of_the_group_who_opens_every_control_connection_keeps_nobody_else_out() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    // Other users cannot enter the state directory.
    let socket = mesh.path().join("node.sock");
    node.config.control_socket = Some(socket.clone());
    start_with(&mut node, "node", "control_group = \"daemon\"");
    let group = fs::metadata(&socket).unwrap().gid().to_string();
    let mut other = run_as_nobody(&group, GREEDY_AT_SOCKET, &[socket.to_str().unwrap(), &CONTROL_FLOOD.to_string()]);
    for _ in 0..20 {
        node.narmesh(&["status"]).expect_success("status beside one who opens every connection");
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn the_log_cannot_be_forged() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    node.start();
    let forged = "2026-01-01T00:00:00.000000Z ERROR narmesh: forged";
    let encoded = forged.replace(' ', "%20");
    for path in ["/%0a".to_owned() + &encoded, "/%0d%0a".to_owned() + &encoded, "/\u{2028}".to_owned() + &encoded] {
        for host in ["localhost", forged, "x\u{2028}y", "x\u{9b}2Jy"] {
            let headers = [("Host", host), ("User-Agent", forged), ("Origin", forged)];
            // A request that is not HTTP is answered 400, or not at all.
            drop(request(node.gateway(), "GET", &path, &headers));
            drop(request(node.gateway(), "FORGED", &path, &headers));
        }
    }
    wait_until("the requests are logged", promised(Duration::from_secs(1)), || node.log().contains("not served"));
    // The error about a bad file quotes it, and has several lines.
    fs::write(node.config_file(), format!("[node]\n{forged} = [\n")).unwrap();
    node.signal(Signal::HUP);
    node.wait_logged(&["error", "not reloaded", "narmesh.toml"]);
    let log = node.log();
    for line in log.lines() {
        assert!(!line.starts_with(forged), "{log}");
        let dated = line.get(..4).is_some_and(|year| year.bytes().all(|byte| byte.is_ascii_digit()));
        assert!(dated && !line.contains(|letter: char| letter.is_control() || letter == '\u{2028}'), "{line:?}");
    }
}

#[test]
fn the_newest_of_too_many_paths_are_withheld_and_the_log_says_so() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let first = node.store.build_one("lib");
    let second = node.store.build_fresh("late");
    start_with(&mut node, "limits", "advertised_paths_max = 1");
    node.wait_advertised(1, &[]);
    node.wait_logged(&["warn", "more paths than may be advertised", "newest"]);
    let told: serde_json::Value =
        serde_json::from_str(&node.narmesh(&["advertised", "--json"]).expect_success("advertised")).unwrap();
    assert_eq!(told["paths"][0]["path"], *first);
    let withheld = told["withheld"].as_array().unwrap();
    let newest = withheld.iter().find(|path| path["path"] == *second).unwrap();
    assert!(newest["reason"].as_str().unwrap().contains("limits.advertised_paths_max"), "{newest}");
}
