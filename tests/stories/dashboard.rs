//! `narmesh dashboard`, in a real browser and with plain requests.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use narmesh_tests::{
    Finished, HttpAnswer, PlainCache, TestMesh, TestNode, finish, get, hash_part, promised, request, target_directory,
    wait_for, wait_until,
};

use crate::browser::browser;

/// What has happened is on a page within this.
const SHOWN: Duration = Duration::from_secs(5);
/// The hostile name of a machine.
const HOSTILE: &str = "<script>document.title='taken'</script>\"><img src=x>";

/// A link to the dashboard of `node`: the address of the server, and the path.
#[track_caller]
fn link(node: &TestNode) -> (SocketAddr, String) {
    let printed = node.narmesh(&["dashboard"]).expect_success("narmesh dashboard");
    let rest = printed.trim().strip_prefix("http://").expect("a link").to_owned();
    let (address, path) = rest.split_once('/').expect("a path");
    (address.parse().expect("an address on loopback"), format!("/{path}"))
}

/// A session as a browser has it.
struct Session {
    address: SocketAddr,
    base: String,
    cookie: String,
}

impl Session {
    #[track_caller]
    fn open(node: &TestNode) -> Self {
        let (address, path) = link(node);
        let opened = ask(address, &path, &[]);
        assert_eq!(opened.status, 303, "{}", opened.text());
        let set = opened.header("set-cookie").expect("a cookie").to_owned();
        let base = opened.header("location").expect("a way on").to_owned();
        for attribute in ["HttpOnly", "SameSite=Strict", &format!("Path={base}")] {
            assert!(set.contains(attribute), "{set}");
        }
        let cookie = set.split(';').next().unwrap_or_default().to_owned();
        Self { address, base, cookie }
    }

    fn get(&self, page: &str) -> HttpAnswer {
        ask(self.address, &format!("{}{page}", self.base), &[("Cookie", &self.cookie)])
    }

    #[track_caller]
    fn page(&self, page: &str) -> String {
        let answer = self.get(page);
        assert_eq!(answer.status, 200, "{page}: {}", answer.text());
        answer.text()
    }
}

#[track_caller]
fn ask(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> HttpAnswer {
    ask_as(address, "GET", path, &address.to_string(), headers)
}

#[track_caller]
fn ask_as(address: SocketAddr, method: &str, path: &str, host: &str, headers: &[(&str, &str)]) -> HttpAnswer {
    request(address, method, path, &[&[("Host", host)], headers].concat()).unwrap().finish()
}

#[test]
fn a_link_opens_once_and_nobody_else_sees_anything() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    node.start();
    let (address, path) = link(&node);
    assert!(address.ip().is_loopback());
    // Neither looking at it nor asking from elsewhere uses it up.
    let host = address.to_string();
    assert_eq!(ask_as(address, "HEAD", &path, &host, &[]).status, 403);
    assert_eq!(ask_as(address, "POST", &path, &host, &[]).status, 405);
    assert_eq!(ask_as(address, "GET", &path, "rebound.example", &[]).status, 403);
    assert_eq!(ask_as(address, "GET", &path, &format!("localhost:{}", address.port()), &[]).status, 403);
    assert_eq!(ask(address, &path, &[("Sec-Fetch-Site", "cross-site")]).status, 403);
    assert_eq!(ask(address, &path, &[("Origin", "http://evil.example")]).status, 403);
    assert_eq!(ask(address, &path, &[]).status, 303);
    let again = ask(address, &path, &[]);
    assert_eq!(again.status, 403);
    assert!(again.text().contains("`narmesh dashboard` prints a new one"), "{}", again.text());
    // Another user of the machine knows the port, and perhaps the path of the pages.
    let session = Session::open(&node);
    for (path, cookie) in [
        (session.base.clone(), "narmesh=x"),
        (session.base.clone(), ""),
        ("/dashboard/".to_owned(), session.cookie.as_str()),
        ("/".to_owned(), session.cookie.as_str()),
        ("/metrics".to_owned(), session.cookie.as_str()),
    ] {
        assert_eq!(ask(address, &path, &[("Cookie", cookie)]).status, 403, "{path}");
    }
    assert_eq!(session.get("").status, 200);
    assert_eq!(session.get("nothing").status, 404);
    for header in ["content-security-policy", "x-content-type-options", "referrer-policy", "cache-control"] {
        assert!(session.get("").header(header).is_some(), "{header}");
    }
    let policy = session.get("").header("content-security-policy").unwrap_or_default().to_owned();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}

#[test]
fn the_pages_say_what_came_from_whom_and_what_to_do() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let lib = holder.store.build_one("lib");
    client.config.more = "[[upstream]]\nname = \"gone\"\nurl = \"http://127.0.0.1:9\"\npublic_keys = []\n".to_owned();
    TestMesh::start_all(&mut [&mut holder, &mut client]);
    holder.wait_all_advertised(&[&client]);
    client.realise(std::slice::from_ref(&lib)).expect_success("from the peer");
    let session = Session::open(&client);
    let overview = wait_for("the path is on the overview", promised(SHOWN), || {
        Some(session.page("")).filter(|page| page.contains("Last path"))
    });
    assert!(overview.contains("mesh-lib-1.0") && overview.contains("<strong>holder</strong>"), "{overview}");
    // Without JavaScript the same page loads itself again.
    assert!(overview.contains("<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>"), "{overview}");
    assert!(session.page("machines").contains("connected"));
    let requests = session.page("requests?outcome=delivered&source=holder");
    assert!(requests.contains("mesh-lib-1.0") && requests.contains("delivered"), "{requests}");
    assert!(session.page("requests?source=nobody").contains("accepted: a name or peer id"));
    let page = format!("path/{}-mesh-lib-1.0", hash_part(&lib));
    let path = wait_for("the path is in our store", promised(SHOWN), || {
        Some(session.page(&page)).filter(|path| path.contains("It is in our own store"))
    });
    assert!(path.contains("hash verified"), "{path}");
    assert!(session.page("sources").contains("gone"));
    let mut asked = 0;
    let warned = wait_for("the cache is a warning", promised(SHOWN), || {
        asked += 1;
        let absent = format!("/{}{asked:03}.narinfo", "0".repeat(29));
        assert_eq!(get(client.gateway(), &absent).unwrap().status, 404);
        Some(session.page("warnings")).filter(|page| page.contains("The cache gone is"))
    });
    assert!(warned.contains("It is tried again by itself"), "{warned}");
    let live = format!("{}live/requests", session.base);
    let mut events = request(session.address, "GET", &live, &[("Cookie", &session.cookie)]).unwrap();
    assert_eq!(events.status, 200);
    let event = String::from_utf8_lossy(&events.read_some(400)).into_owned();
    assert!(event.contains("data: ") && event.contains("<form"), "{event}");
    // It lasts while it is used, and ends with the daemon.
    assert!(client.terminate().success());
}

/// What Chromium said and drew of a page.
struct Seen {
    dom: String,
    console: String,
}

/// Opens `link` in Chromium with these arguments.
#[track_caller]
fn visit(dir: &Path, link: &str, arguments: &[&str]) -> Seen {
    let mut browser = browser(dir);
    browser.args(["--enable-logging=stderr", "--v=0", "--log-level=0", "--hide-scrollbars", "--timeout=3000"]);
    browser.args(arguments).arg(link).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Finished { stdout, stderr, .. } = finish(&mut browser);
    let console = stderr.lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>().join("\n");
    Seen { dom: stdout, console }
}

/// A link to this page, for a browser.
#[track_caller]
fn link_to(node: &TestNode, page: &str) -> String {
    node.narmesh(&["dashboard", page]).expect_success("narmesh dashboard")
}

/// Where pictures of the pages are put, to be looked at.
fn pictures() -> PathBuf {
    let dir = target_directory().join("tmp/dashboard");
    fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn a_real_browser_shows_hostile_names_as_text_and_says_nothing_on_its_console() {
    let mesh = TestMesh::new();
    let [mut holder, mut client] = ["holder", "client"].map(|name| mesh.node(name));
    let paths: Vec<_> = ["lib", "oddname", "longname", "small"].map(|name| holder.store.build_one(name)).into();
    holder.allow(&client.card());
    holder.start();
    let mut card = holder.card();
    HOSTILE.clone_into(&mut card.name);
    client.allow(&card);
    client.learn_address(&card.name, &holder.p2p_address());
    let from_cache = holder.store.build_one("app");
    let cache = PlainCache::on_loopback(&holder, std::slice::from_ref(&from_cache), "none");
    client.config.more = cache.upstream("cache", &holder);
    client.start();
    wait_until("the summary is here", promised(SHOWN), || client.status().summary_paths(HOSTILE) == Some(5));
    client.realise(&paths).expect_success("from the peer");
    let path = format!("{}-mesh-lib-1.0", hash_part(&paths[0]));
    for page in ["overview", "machines", "requests", "sources", "warnings", &path] {
        let name = if page == path { "path" } else { page };
        let seen = visit(mesh.path(), &link_to(&client, page), &["--dump-dom"]);
        assert_eq!(seen.console, "", "{page}");
        assert!(seen.dom.contains("<main") && !seen.dom.contains("<title>taken"), "{page}: {}", seen.dom);
        if ["machines", "requests", "path"].contains(&name) {
            assert!(seen.dom.contains("&lt;script&gt;document.title"), "{page}: {}", seen.dom);
            assert!(!seen.dom.contains("<img src=\"x\""), "{page}: {}", seen.dom);
        }
        // The script runs: it shows the button.
        let is_live = !["warnings", "path"].contains(&name);
        assert_eq!(seen.dom.contains("aria-pressed=\"false\">Pause"), is_live, "{page}: {}", seen.dom);
        for (look, arguments) in [
            ("light", ["--window-size=1280,1000", "--blink-settings=preferredColorScheme=1"]),
            ("dark", ["--window-size=1280,1000", "--blink-settings=preferredColorScheme=0"]),
            ("phone", ["--window-size=500,900", "--blink-settings=preferredColorScheme=1"]),
        ] {
            let file = pictures().join(format!("{name}-{look}.png"));
            let shot = format!("--screenshot={}", file.display());
            let seen = visit(mesh.path(), &link_to(&client, page), &[&shot, arguments[0], arguments[1]]);
            assert_eq!(seen.console, "", "{page} {look}");
            assert!(fs::metadata(&file).is_ok_and(|file| file.len() > 5_000), "{page} {look}");
        }
    }
}
