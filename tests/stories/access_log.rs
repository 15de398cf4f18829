//! Requests in the log of a listener that wants it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use narmesh_tests::{LoggingProxy, TestMesh, finish, free_address, get, hash_part, promised, request, wait_until};

/// A line is promised within this after its answer.
const WRITTEN: Duration = Duration::from_secs(1);

/// A Python program that asks from an address of its own, and says that it asks for another.
const FROM: &str = r"
import socket, sys
address = (sys.argv[1], int(sys.argv[2]))
one = socket.create_connection(address, source_address=(sys.argv[3], 0))
one.sendall(b'GET /%s HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n' % sys.argv[4].encode())
while one.recv(4096):
    pass
";

/// Requests of one client: more than it may have lines.
const FLOOD: usize = 3_000;

#[test]
fn requests_are_in_the_log_without_tokens_and_at_a_bounded_rate() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let lib = node.store.build_one("lib");
    let [logged, silent] = [free_address(), free_address()];
    node.config.more = format!(
        "[[gateway.listener]]\naddress = '{logged}'\nrole = 'serve'\naccess_log = true\ntokens_file = 'tokens'\n\
         [[gateway.listener]]\naddress = '{silent}'\nrole = 'serve'\n"
    );
    node.write_config();
    let token = node.narmesh(&["token", "add", "ci"]).expect_success("token add");
    node.start();
    let authorization = format!("Bearer {token}");
    let ask = |method: &str, path: &str| {
        request(logged, method, path, &[("Authorization", &authorization)]).unwrap().finish().status
    };
    let narinfo = format!("/{}.narinfo", hash_part(&lib));
    wait_until("it is offered", promised(WRITTEN), || get(silent, &narinfo).unwrap().status == 200);
    let url = get(silent, &narinfo).unwrap().text();
    let url = url.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned();
    let nar_size = url.rsplit(['-', '.']).nth(1).unwrap().to_owned();

    assert_eq!(ask("GET", &format!("{narinfo}?password=hidden")), 200);
    assert_eq!(ask("HEAD", &format!("/{url}")), 200);
    let listing = narinfo.replace(".narinfo", ".ls");
    assert_eq!(ask("HEAD", &listing), 200);
    assert_eq!(ask("GET", &format!("/{url}")), 200);
    assert_eq!(get(logged, "/nix-cache-info").unwrap().status, 401);
    let mut forger = TcpStream::connect(logged).unwrap();
    write!(forger, "GET /%0aforged HTTP/1.1\r\nHost: {logged}\r\nConnection: close\r\n\r\n").unwrap();
    forger.read_to_end(&mut Vec::new()).unwrap();

    let head = format!("request listener={logged} client=127.0.0.1 method=");
    let is_there = |line: &str, end: &str| {
        let begins = format!("{head}{line} bytes=");
        wait_until(&begins, promised(WRITTEN), || {
            node.log().lines().any(|said| said.contains(&begins) && said.contains(end))
        });
    };
    is_there(&format!("GET path={narinfo} status=200"), "whole=true");
    is_there(&format!("HEAD path=/{url} status=200"), "bytes=0 ");
    is_there(&format!("HEAD path={listing} status=200"), "whole=true");
    is_there(&format!("GET path=/{url} status=200"), &format!("bytes={nar_size} "));
    is_there("GET path=/nix-cache-info status=401", "whole=true");
    is_there("GET path=/%0aforged status=401", "whole=true");
    let said = node.log();
    assert!(!said.contains(&token) && !said.contains("hidden") && !said.contains(&format!("listener={silent}")));

    for _ in 0..FLOOD {
        assert_eq!(get(logged, "/healthz").unwrap().status, 401);
    }
    assert!(node.terminate().success());
    let said = node.log();
    let lines = said.matches(&head).count();
    assert!((1_000..FLOOD).contains(&lines), "{lines} lines");
    let left_out = said.lines().find(|line| line.contains("lines about requests were left out"));
    assert!(left_out.is_some_and(|line| line.contains("last=127.0.0.1")), "{left_out:?}");
}

#[test]
fn behind_a_believed_proxy_each_client_is_itself_and_nobody_else_is_believed() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let address = free_address();
    node.config.more = format!(
        "[[gateway.listener]]\naddress = '{address}'\nrole = 'serve'\naccess_log = true\ntrusted_proxies = ['127.0.0.1']\n"
    );
    node.start();
    let proxy = LoggingProxy::start(&mesh.path().join("proxy"), address, "$status");
    let ask = |at: SocketAddr, from: &str, path: &str| {
        let mut python = Command::new("python3");
        python.args(["-c", FROM, &at.ip().to_string(), &at.port().to_string(), from, path]);
        finish(&mut python).expect_success("python3");
    };
    ask(proxy.address, "127.0.0.5", "through");
    ask(address, "127.0.0.6", "past");
    for (client, path) in [("127.0.0.5", "through"), ("127.0.0.6", "past")] {
        let line = format!("client={client} method=GET path=/{path} status=404");
        wait_until(&line, promised(WRITTEN), || node.log().contains(&line));
    }
    assert!(!node.log().contains("203.0.113.9"), "nobody else wrote it");
}
