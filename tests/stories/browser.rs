//! Web pages in a real browser (Chromium) attack the gateway of this machine, from another origin and by a host name that
//! resolves to 127.0.0.1.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use narmesh_tests::{Finished, TestMesh, finish, get, hash_part, poll, promised, wait_until};

/// A browser is expected to start, run a page and report within this.
const PAGE: Duration = Duration::from_secs(12);

/// A page that tries every way to learn what is at a URL, and reports what it saw.
const PAGE_TEXT: &str = r#"<!doctype html><title>page</title><body><script>
const element = (tag, attribute, url) => new Promise(done => {
  const made = document.createElement(tag);
  if (tag === "link") made.rel = "stylesheet";
  made.onload = () => done("load");
  made.onerror = () => done("error");
  made[attribute] = url;
  document.body.append(made);
  setTimeout(() => done("nothing"), 3000);
});
const fetched = (url, mode) => fetch(url, {mode, cache: "no-store"}).then(
  async answer => [answer.type, answer.status, await answer.text()].join(" "), () => "error");
const socket = url => new Promise(done => {
  const made = new WebSocket(url.replace("http:", "ws:"));
  made.onopen = () => done("open");
  made.onerror = () => done("error");
});
const look = async url => ({
  cors: await fetched(url, "cors"),
  no_cors: await fetched(url, "no-cors"),
  script: await element("script", "src", url),
  image: await element("img", "src", url),
  style: await element("link", "href", url),
  object: await element("object", "data", url),
  websocket: await socket(url),
});
(async () => {
  const seen = {};
  for (const url of URLS) seen[url] = await look(url);
  await fetch("/report", {method: "POST", body: JSON.stringify(seen)});
  location = NEXT;
})();
</script>"#;

/// What a page saw of each URL: the outcome of each way of looking.
type Seen = BTreeMap<String, BTreeMap<String, String>>;

/// The attacker's web server. It also answers like a gateway that checks no headers at all.
struct PageServer {
    address: SocketAddr,
    report: Arc<Mutex<Option<String>>>,
}

impl PageServer {
    fn start(page: impl Fn(SocketAddr) -> String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (report, page) = (Arc::new(Mutex::new(None)), page(address));
        let reported = Arc::clone(&report);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (page, reported) = (page.clone(), Arc::clone(&reported));
                thread::spawn(move || answer(stream, &page, &reported));
            }
        });
        Self { address, report }
    }

    /// Opens the page under a foreign host name. Returns what the page saw, and whether `is_done` came true before the
    /// browser was closed.
    fn visit(&self, dir: &Path, is_done: impl Fn() -> bool) -> (Seen, bool) {
        let url = format!("http://page.example:{}/page", self.address.port());
        let mut browser = browser(dir).arg(url).spawn().expect("chromium starts: ./test.sh installs it");
        wait_until("the page reports", promised(PAGE), || self.report.lock().unwrap().is_some());
        let done = poll(PAGE, || is_done().then_some(())).is_some();
        browser.kill().unwrap();
        browser.wait().unwrap();
        let report = self.report.lock().unwrap().take().unwrap();
        (serde_json::from_str(&report).unwrap(), done)
    }
}

/// Answers one request, and closes the connection.
fn answer(stream: TcpStream, page: &str, reported: &Mutex<Option<String>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    stream.read_line(&mut line).ok()?;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).ok()?;
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if header.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let (status, kind, text) = match line.split(' ').nth(1)? {
        "/page" => ("200 OK", "text/html", page),
        "/report" => {
            *reported.lock().unwrap() = Some(String::from_utf8(body).ok()?);
            ("200 OK", "text/plain", "")
        }
        "/naive/held" => ("200 OK", "text/x-nix-narinfo", "StorePath: /nix/store/x\n"),
        _ => ("404 Not Found", "text/plain", ""),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n");
    write!(stream.get_mut(), "{head}Content-Length: {}\r\n\r\n{text}", text.len()).ok()
}

/// Chromium without a window, with a profile of its own.
pub(crate) fn browser(dir: &Path) -> Command {
    let profile = dir.join("profile");
    fs::create_dir_all(&profile).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--no-proxy-server"]);
    // Both names lead to loopback, as an attacker's name server would say; so the browser's own rules about private
    // networks do not help us here.
    command.arg("--host-resolver-rules=MAP *.example 127.0.0.1");
    command.arg(format!("--user-data-dir={}", profile.display())).env("HOME", dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// What the browser shows when its user types `url`.
fn shown(dir: &Path, url: &str) -> Finished {
    finish(browser(dir).args(["--dump-dom", url]).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

#[test]
fn a_page_of_another_origin_learns_nothing_from_the_gateway() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let lib = node.store.build_one("lib");
    node.start();
    assert!(node.wait_narinfo(&lib).nar_size > 0);
    let gateway = format!("http://{}", node.gateway());
    let held = format!("{gateway}/{}.narinfo", hash_part(&lib));
    let absent = format!("{gateway}/{}.narinfo", "0".repeat(32));
    let urls = |server: SocketAddr| {
        let naive = |name: &str| format!("http://{server}/naive/{name}");
        [held.clone(), absent.clone(), format!("{gateway}/healthz"), naive("held"), naive("absent")]
    };
    let server = PageServer::start(|server| {
        let urls = serde_json::to_string(&urls(server)).unwrap();
        PAGE_TEXT.replace("URLS", &urls).replace("NEXT", &format!("{:?}", format!("{gateway}/healthz?navigated")))
    });
    let before = refused(node.gateway());
    // All requests reach the gateway and are refused: seven for each of three URLs, and the navigation at the end.
    let (seen, all_refused) = server.visit(mesh.path(), || refused(node.gateway()) > before + 3 * 7);
    let [held, absent, health, naive_held, naive_absent] = urls(server.address).map(|url| seen[&url].clone());
    // The page does look: from a server that checks nothing, it learns which path is there.
    assert_ne!(naive_held, naive_absent, "{seen:#?}");
    // From the gateway it can read nothing, and it cannot tell a path that is held from one that is not.
    assert_eq!((&held, &absent), (&health, &health), "{seen:#?}");
    assert_eq!(held["cors"], "error");
    assert_eq!(held["no_cors"], "opaque 0 ");
    assert_eq!((held["script"].as_str(), held["image"].as_str()), ("error", "error"));
    assert_eq!(held["websocket"], "error");
    assert!(all_refused, "the gateway did not count all of it as refused: {seen:#?}");
}

#[test]
fn a_host_name_that_resolves_to_loopback_is_refused() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    node.start();
    let port = node.gateway().port();
    // A URL that the user of this machine types is answered; so the browser does work.
    let own = shown(mesh.path(), &format!("http://127.0.0.1:{port}/healthz")).expect_success("chromium");
    assert!(own.contains("ok"), "{own}");
    let before = refused(node.gateway());
    let rebound = shown(mesh.path(), &format!("http://rebound.example:{port}/healthz")).expect_success("chromium");
    assert!(!rebound.contains("ok"), "{rebound}");
    assert!(refused(node.gateway()) > before, "it was the gateway that refused: {rebound}");
}

/// How many requests the gateway has refused, of all kinds.
fn refused(gateway: SocketAddr) -> u64 {
    let metrics = get(gateway, "/metrics").unwrap().text();
    let lines = metrics.lines().filter(|line| line.contains("requests_total") && line.contains("\"refused\""));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
