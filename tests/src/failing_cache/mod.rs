//! A binary cache that fails in one named way at one place, and otherwise serves the files of a directory as nginx does.

mod elsewhere;
mod goaway;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use self::elsewhere::BlackHole;
use crate::certificate::Certificate;

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// The port is closed.
    Refused,
    /// Nothing answers to a SYN.
    BlackHole,
    /// The host name has no address.
    Dns,
    /// What answers does not speak TLS.
    Tls,
    /// The request is read, and nothing is answered.
    Frozen,
    /// The head of the answer comes a byte at a time, and has no end.
    SlowHeaders,
    /// The connection ends at half of the body.
    KilledAtHalf,
    /// The connection is reset at half of the body.
    Reset,
    /// Over HTTP/2: GOAWAY at half of the body, and an orderly end of the connection.
    GoAway,
    /// A kilobyte a second.
    Crawling,
    /// One byte is wrong, at 90 %.
    WrongByte,
    /// The file is shorter than it should be, and says so.
    TooShort,
    /// The file is longer than it should be, and says so.
    TooLong,
    /// A body without length and end.
    Endless,
    /// 200 with the page of a hotel.
    HtmlPage,
    /// Status 500.
    ServerError,
    /// Status 429.
    RateLimited,
    /// Status 403.
    Forbidden,
    /// The narinfo says another NarSize.
    LyingNarSize,
    /// The narinfo says another FileSize.
    LyingFileSize,
    /// The narinfo is right, and leads to the NAR of another path.
    OtherNar,
}

/// What goes wrong: all requests for narinfos, or all for NARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailsAt {
    /// The narinfo.
    NarInfo,
    /// The NAR.
    Nar,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Refused,
        Self::BlackHole,
        Self::Dns,
        Self::Tls,
        Self::Frozen,
        Self::SlowHeaders,
        Self::KilledAtHalf,
        Self::Reset,
        Self::GoAway,
        Self::Crawling,
        Self::WrongByte,
        Self::TooShort,
        Self::TooLong,
        Self::Endless,
        Self::HtmlPage,
        Self::ServerError,
        Self::RateLimited,
        Self::Forbidden,
        Self::LyingNarSize,
        Self::LyingFileSize,
        Self::OtherNar,
    ];

    /// Whether it can happen there. NARs never come over HTTP/2, and only a narinfo can lie about sizes.
    #[must_use]
    pub fn is_possible_at(self, place: FailsAt) -> bool {
        match self {
            Self::GoAway | Self::LyingNarSize | Self::LyingFileSize => place == FailsAt::NarInfo,
            Self::OtherNar => place == FailsAt::Nar,
            _ => true,
        }
    }
}

/// Such a cache. It serves as long as the process runs; its connections end with their clients.
#[derive(Debug)]
pub struct FailingCache {
    url: String,
    certificate: Option<Certificate>,
    failures: Arc<AtomicUsize>,
    _black_hole: Option<BlackHole>,
}

/// What the threads of one cache share.
#[derive(Debug)]
struct Server {
    files: PathBuf,
    way: Way,
    place: FailsAt,
    /// Where a redirect leads that has to fail.
    elsewhere: String,
    failures: Arc<AtomicUsize>,
    /// How often it fails.
    times: usize,
}

impl FailingCache {
    /// Serves the files of a cache whose NARs are not compressed.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn start(files: &Path, way: Way, place: FailsAt) -> Self {
        Self::start_failing(files, way, place, usize::MAX)
    }

    /// The same, which fails only the first `times`; not with GOAWAY.
    ///
    /// # Panics
    /// As [`FailingCache::start`].
    #[must_use]
    pub fn start_failing(files: &Path, way: Way, place: FailsAt, times: usize) -> Self {
        let failures = Arc::new(AtomicUsize::new(0));
        if way == Way::GoAway {
            let (address, certificate) = goaway::start(files, &failures);
            let url = format!("https://{address}");
            return Self { url, certificate: Some(certificate), failures, _black_hole: None };
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let black_hole = (way == Way::BlackHole).then(BlackHole::open);
        let elsewhere = match way {
            Way::Refused => format!("http://{}", elsewhere::closed_port()),
            Way::Dns => "http://no-such-host.invalid".to_owned(),
            Way::Tls => format!("https://{address}"),
            _ => black_hole
                .as_ref()
                .map_or_else(|| format!("http://{address}"), |hole| format!("http://{}", hole.address)),
        };
        // A host that cannot be reached has no places: the whole cache is elsewhere, or a redirect leads there.
        let url = if place == FailsAt::NarInfo { elsewhere.clone() } else { format!("http://{address}") };
        let server =
            Arc::new(Server { files: files.to_owned(), way, place, elsewhere, failures: Arc::clone(&failures), times });
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let server = Arc::clone(&server);
                // A client that hangs up is an error here, and nothing more.
                thread::spawn(move || server.serve(connection).ok());
            }
        });
        Self { url, certificate: None, failures, _black_hole: black_hole }
    }

    /// The `[[upstream]]` lines of it under this name, with this key. A certificate that it needs is written into `dir`.
    ///
    /// # Panics
    /// When the certificate cannot be written.
    #[must_use]
    pub fn upstream(&self, name: &str, key: &str, dir: &Path) -> String {
        let url = &self.url;
        let ca_file = self.certificate.as_ref().map(|certificate| {
            let [file, _] = certificate.write(dir);
            format!("ca_file = '{}'\n", file.display())
        });
        let ca_file = ca_file.unwrap_or_default();
        format!("[[upstream]]\nname = '{name}'\nurl = '{url}'\npublic_keys = ['{key}']\n{ca_file}")
    }

    /// How often it has failed, where that is its own doing.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }
}

impl Server {
    fn serve(&self, mut connection: TcpStream) -> io::Result<()> {
        while let Some(target) = read_target(&mut connection)? {
            let file = self.files.join(target.trim_start_matches('/'));
            let place = if target.ends_with(".narinfo") { FailsAt::NarInfo } else { FailsAt::Nar };
            match fs::read(&file) {
                Err(_) => answer(&mut connection, "404 Not Found", b"")?,
                Ok(body) if place == self.place && self.failures.load(Ordering::Relaxed) < self.times => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    return self.fail(connection, &file, body);
                }
                Ok(body) => answer(&mut connection, "200 OK", &body)?,
            }
        }
        Ok(())
    }

    /// Answers a request for `file`, which contains `body`, in the way that this cache fails.
    fn fail(&self, mut connection: TcpStream, file: &Path, mut body: Vec<u8>) -> io::Result<()> {
        let half = body.get(..body.len() / 2).unwrap_or_default();
        match self.way {
            Way::Refused | Way::BlackHole | Way::Dns | Way::Tls => {
                let location = format!("302 Found\r\nLocation: {}/nar", self.elsewhere);
                return answer(&mut connection, &location, b"");
            }
            Way::GoAway => {}
            Way::Frozen => await_hang_up(&mut connection),
            Way::SlowHeaders => {
                connection.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ")?;
                loop {
                    connection.write_all(b"x")?;
                    thread::park_timeout(Duration::from_millis(100));
                }
            }
            Way::KilledAtHalf | Way::Reset => {
                head(&mut connection, "200 OK", body.len())?;
                connection.write_all(half)?;
                if self.way == Way::Reset {
                    rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO))?;
                    return Ok(());
                }
            }
            Way::Crawling => {
                head(&mut connection, "200 OK", body.len())?;
                for piece in body.chunks(100) {
                    connection.write_all(piece)?;
                    thread::park_timeout(Duration::from_millis(100));
                }
            }
            Way::WrongByte => {
                let at = body.len() * 9 / 10;
                if let Some(byte) = body.get_mut(at) {
                    *byte ^= 1;
                }
                answer(&mut connection, "200 OK", &body)?;
            }
            Way::TooShort => answer(&mut connection, "200 OK", half)?,
            Way::TooLong => {
                body.extend_from_slice(&[b'x'; 1_000]);
                answer(&mut connection, "200 OK", &body)?;
            }
            Way::Endless => {
                connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
                connection.write_all(&body)?;
                loop {
                    connection.write_all(&[0; 1 << 16])?;
                }
            }
            Way::HtmlPage => {
                let page = b"<!DOCTYPE html><html><title>Welcome</title>Please accept our terms.</html>\n";
                answer(&mut connection, "200 OK\r\nContent-Type: text/html", page)?;
            }
            Way::ServerError => answer(&mut connection, "500 Internal Server Error", b"")?,
            Way::RateLimited => answer(&mut connection, "429 Too Many Requests", b"")?,
            Way::Forbidden => answer(&mut connection, "403 Forbidden", b"")?,
            Way::LyingNarSize => answer(&mut connection, "200 OK", &add_to_field(&body, "NarSize"))?,
            Way::LyingFileSize => answer(&mut connection, "200 OK", &add_to_field(&body, "FileSize"))?,
            Way::OtherNar => {
                let others = fs::read_dir(file.parent().expect("NARs have a directory"))?;
                let other = others.flatten().map(|entry| entry.path()).find(|other| other != file);
                answer(&mut connection, "200 OK", &fs::read(other.expect("the cache has two NARs"))?)?;
            }
        }
        connection.shutdown(Shutdown::Both)
    }
}

/// The narinfo with a larger number in one of its fields.
fn add_to_field(narinfo: &[u8], field: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(narinfo);
    let lines = text.lines().map(|line| match line.strip_prefix(field).and_then(|rest| rest.strip_prefix(": ")) {
        Some(number) => format!("{field}: {}\n", number.parse::<u64>().expect("a size is a number") + 8),
        None => format!("{line}\n"),
    });
    lines.collect::<String>().into_bytes()
}

fn await_hang_up(connection: &mut TcpStream) {
    while connection.read(&mut [0; 1_024]).is_ok_and(|bytes| bytes > 0) {}
}

fn head(connection: &mut TcpStream, status: &str, bytes: usize) -> io::Result<()> {
    connection.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: {bytes}\r\n\r\n").as_bytes())
}

fn answer(connection: &mut TcpStream, status: &str, body: &[u8]) -> io::Result<()> {
    head(connection, status, body.len())?;
    connection.write_all(body)
}

/// The target of the next request; `None` at the end of the connection, and when what comes is TLS.
fn read_target(connection: &mut TcpStream) -> io::Result<Option<String>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read(&mut byte)? == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&byte);
        if head == [0x16] {
            answer(connection, "400 Bad Request", b"")?;
            return Ok(None);
        }
    }
    Ok(String::from_utf8_lossy(&head).split(' ').nth(1).map(str::to_owned))
}
