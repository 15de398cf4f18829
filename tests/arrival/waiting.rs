//! How long Nix waits for a NAR that comes slowly: measured with a server of our own, since the gateway relies on it.
//!
//! The head comes at once, then the 56 bytes with which every NAR begins in small bursts, then the rest at once or nothing.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use narmesh_tests::{NixStoreFixture, NixVersion, PathRow, finish, hash_part, scratch_dir};

use crate::report::{Row, nix};

/// `nix-archive-1`, `(` and `type`, each with its length before it: what every NAR begins with.
const CONSTANT_BYTES: usize = 56;
/// curl wants a byte per second over some five seconds; six bytes at once were the least that satisfied it.
const BURST_BYTES: usize = 8;
/// Nix's `stalled-download-timeout`: a fifth of what `narmesh init` prints, so that the story is short.
const STALLED_S: u32 = 6;
/// Time between two bursts: shorter than Nix waits, and within the span over which curl averages.
const PAUSE: Duration = Duration::from_secs(5);
/// The rest is sent after this: more than twice the time that Nix waits.
const REST_AFTER: Duration = Duration::from_secs(14);

/// What comes after the bursts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The rest of the NAR.
    Whole,
    /// Nothing: the connection is closed, and whoever asks for the rest gets 404.
    ClosedShort,
}

/// A binary cache with one path, whose NAR comes slowly.
#[derive(Debug)]
struct SlowServer {
    narinfo: String,
    narinfo_url: String,
    nar: Vec<u8>,
    then: Then,
    /// Requests for the NAR, each by the value of its `Range` header, if it has one.
    asked: Mutex<Vec<Option<String>>>,
}

impl SlowServer {
    /// Serves on threads that end with the test.
    fn start(row: &PathRow, nar: Vec<u8>, then: Then) -> (SocketAddr, Arc<Self>) {
        let mut narinfo = format!("StorePath: {}\nURL: nar/slow.nar\nCompression: none\n", row.path);
        write!(narinfo, "NarHash: {}\nNarSize: {}\nReferences: \n", row.nar_hash, row.nar_size).unwrap();
        let narinfo_url = format!("/{}.narinfo", hash_part(&row.path));
        let server = Arc::new(Self { narinfo, narinfo_url, nar, then, asked: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&server);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let server = Arc::clone(&shared);
                // A client that hangs up ends its thread with an error that nobody needs.
                thread::spawn(move || server.serve(stream).ok());
            }
        });
        (address, server)
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let (mut url, mut range) = (None, None);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                let line = line.trim_end();
                if line.is_empty() {
                    break;
                }
                if url.is_none() {
                    url = line.split(' ').nth(1).map(str::to_owned);
                } else if let Some((name, value)) = line.split_once(": ") {
                    range = range.or_else(|| name.eq_ignore_ascii_case("range").then(|| value.to_owned()));
                }
            }
            match url.as_deref() {
                Some("/nix-cache-info") => answer(&stream, "200 OK", b"StoreDir: /nix/store\n")?,
                Some(url) if url == self.narinfo_url => answer(&stream, "200 OK", self.narinfo.as_bytes())?,
                Some("/nar/slow.nar") => {
                    self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(range.clone());
                    if range.is_none() {
                        self.serve_slowly(&stream)?;
                        if self.then == Then::ClosedShort {
                            return stream.shutdown(std::net::Shutdown::Both);
                        }
                    } else {
                        answer(&stream, "404 Not Found", b"")?;
                    }
                }
                Some(_) | None => answer(&stream, "404 Not Found", b"")?,
            }
        }
    }

    fn serve_slowly(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let began = Instant::now();
        write!(stream, "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n\r\n", self.nar.len())?;
        let (constant, rest) = self.nar.split_at(CONSTANT_BYTES);
        let mut bursts = constant.chunks(BURST_BYTES);
        for number in 0_u32.. {
            let due = PAUSE * number;
            if due >= REST_AFTER {
                break;
            }
            thread::sleep(due.saturating_sub(began.elapsed()));
            stream.write_all(bursts.next().unwrap_or_default())?;
        }
        thread::sleep(REST_AFTER.saturating_sub(began.elapsed()));
        if self.then == Then::Whole {
            stream.write_all(&bursts.flatten().copied().collect::<Vec<_>>())?;
            stream.write_all(rest)?;
        }
        Ok(())
    }
}

fn answer(mut stream: &TcpStream, status: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat())
}

/// Builds `lib` with such a server as the only substituter; returns whether it was built or substituted, and the requests
/// for its NAR.
fn build_with(version: NixVersion, then: Then) -> (&'static str, Vec<Option<String>>) {
    let dir = scratch_dir("waiting");
    let builder = NixStoreFixture::chroot(&dir.path().join("builder"));
    let row = builder.row(&builder.build_one("lib")).unwrap();
    let mut dump = builder.nix("nix-store");
    let nar = dump.arg("--dump").arg(builder.real_path(&row.path)).output().unwrap().stdout;
    assert_eq!(nar.len() as u64, row.nar_size);
    let (address, server) = SlowServer::start(&row, nar, then);
    let mut client = NixStoreFixture::chroot(&dir.path().join("client"));
    client.use_nix(version);
    let mut build = client.nix_build_command("lib", address, &[]);
    build.args(["--option", "require-sigs", "false", "--option", "stalled-download-timeout", &STALLED_S.to_string()]);
    finish(&mut build).expect_success("nix-build with one slow substituter");
    let asked = server.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (if client.row(&row.path).unwrap().ultimate { "built" } else { "substituted" }, asked)
}

#[test]
fn bursts_of_eight_bytes_keep_every_nix_waiting_and_a_failure_afterwards_lets_it_build() {
    let _turn = crate::beside_others();
    let cases: Vec<_> = NixVersion::ALL
        .into_iter()
        .flat_map(|version| [Then::Whole, Then::ClosedShort].map(|then| (version, then)))
        .collect();
    thread::scope(|scope| {
        let building: Vec<_> = cases
            .into_iter()
            .map(|(version, then)| (version, then, scope.spawn(move || build_with(version, then))))
            .collect();
        for (version, then, thread) in building {
            let (came, asked) = thread.join().unwrap();
            let (what, must_be) = match then {
                Then::Whole => (
                    "20 bursts of 8 B each 5 s, stalled-download-timeout 6 s, the rest after 14 s",
                    "stays, substituted",
                ),
                Then::ClosedShort => ("21 the same, then closed short, the rest 404", "asks once for the rest, built"),
            };
            Row { what, client: nix(version), before: must_be, must_be }
                .now(&format!("{} requests, {came}", asked.len()));
            let expected = match then {
                Then::Whole => ("substituted", vec![None]),
                // Three bursts had arrived by then.
                Then::ClosedShort => ("built", vec![None, Some("bytes=24-".to_owned())]),
            };
            assert_eq!((came, asked), expected, "Nix {}", version.name());
        }
    });
}
