//! A local user who asks for what nobody has makes an upstream cache say that it is asked too much; what others want
//! from that cache arrives all the same.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{PlainCache, TestMesh, promised, wait_until};

use crate::local_users::{NOBODY, run_as_nobody};

/// Requests a second that the cache answers; hosted caches allow a few hundred.
const ALLOWED_PER_S: f64 = 40.0;

/// A Python program that asks for narinfos that nobody has, on 200 connections, until its standard input ends.
const ASKS_FOR_NOTHING: &str = "
import http.client, random, sys, threading
def ask():
    while True:
        try:
            one = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=60)
            while True:
                part = ''.join(random.choices('0123456789abcdfghijklmnpqrsvwxyz', k=32))
                one.request('GET', '/' + part + '.narinfo')
                one.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass
for _ in range(200):
    threading.Thread(target=ask, daemon=True).start()
print('ready', flush=True)
sys.stdin.read()
";

/// A cache that answers 429 beyond [`ALLOWED_PER_S`].
struct LimitedCache {
    files: PathBuf,
    /// What is left of the allowance, and when it was counted.
    left: Mutex<(f64, Instant)>,
    refused: AtomicUsize,
}

impl LimitedCache {
    fn start(files: &Path) -> (SocketAddr, Arc<Self>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let left = Mutex::new((ALLOWED_PER_S, Instant::now()));
        let this = Arc::new(Self { files: files.to_owned(), left, refused: AtomicUsize::new(0) });
        let server = Arc::clone(&this);
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let server = Arc::clone(&server);
                // A client that hangs up is an error here, and nothing more.
                thread::spawn(move || server.serve(&connection).ok());
            }
        });
        (address, this)
    }

    fn serve(&self, mut connection: &TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new(connection).lines();
        while let Some(request) = lines.next().transpose()? {
            while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
            let target = request.split(' ').nth(1).unwrap_or("/").trim_start_matches('/');
            let (status, body) = match (self.is_allowed(), fs::read(self.files.join(target))) {
                (false, _) => ("429 Too Many Requests\r\nRetry-After: 1", Vec::new()),
                (true, Ok(body)) => ("200 OK", body),
                (true, Err(_)) => ("404 Not Found", Vec::new()),
            };
            connection.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())?;
            connection.write_all(&body)?;
        }
        Ok(())
    }

    fn is_allowed(&self) -> bool {
        let mut left = self.left.lock().unwrap();
        let now = Instant::now();
        let more = (now - left.1).as_secs_f64() * ALLOWED_PER_S;
        *left = ((left.0 + more).min(ALLOWED_PER_S), now);
        let is_allowed = left.0 >= 1.0;
        if is_allowed {
            left.0 -= 1.0;
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        is_allowed
    }
}

#[test]
fn a_flood_of_one_user_at_a_cache_that_limits_us_fails_nobody_elses_build() {
    let mesh = TestMesh::new();
    let holder = mesh.node("holder");
    let paths = holder.store.build("everything");
    let files = PlainCache::on_loopback(&holder, &paths, "none");
    let (address, cache) = LimitedCache::start(files.dir());
    let mut client = mesh.node("client");
    client.config.trusted_public_keys = vec![holder.builder_key()];
    let key = holder.builder_key();
    client.config.more = format!("[[upstream]]\nname = 'limited'\nurl = 'http://{address}'\npublic_keys = ['{key}']\n");
    client.start();
    let gateway = client.gateway();
    let mut flood = run_as_nobody(NOBODY, ASKS_FOR_NOTHING, &[&gateway.ip().to_string(), &gateway.port().to_string()]);
    wait_until("the cache refuses", promised(Duration::from_secs(10)), || cache.refused.load(Ordering::Relaxed) > 3);
    let before = cache.refused.load(Ordering::Relaxed);
    client.realise(&paths).expect_success("nix-store --realise beside the flood");
    assert!(paths.iter().all(|path| client.store.row(path).is_some_and(|copy| !copy.ultimate)), "none was built here");
    assert!(cache.refused.load(Ordering::Relaxed) > before, "it was refusing all the while");
    flood.kill().unwrap();
    flood.wait().unwrap();
}
