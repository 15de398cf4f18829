//! A raw HTTP/1.1 client: it shows every status and every short body, and reads as slowly as a story wants.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No read or write of a story waits longer: ten times the gateway's longest deadline for the next byte of a body.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(60);

/// A complete answer.
#[derive(Debug, Clone)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, with their values, in order.
    pub headers: Vec<(String, String)>,
    /// The part of the body that came.
    pub body: Vec<u8>,
    /// Whether the body has the announced length.
    pub complete: bool,
}

impl HttpAnswer {
    /// The first value of the header `name` (lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text, with replacement characters where it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub struct HttpBody {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, with their values, in order.
    pub headers: Vec<(String, String)>,
    length_bytes: Option<u64>,
    read_bytes: u64,
    stream: BufReader<TcpStream>,
}

impl HttpBody {
    /// Reads at most `bytes_max` more bytes of the body; fewer only at its end, or where it was cut short.
    ///
    /// # Errors
    /// None. Stories look for connections that are closed short, so that ends the body too.
    pub fn read_some(&mut self, bytes_max: u64) -> Vec<u8> {
        let left = self.length_bytes.map_or(u64::MAX, |length| length.saturating_sub(self.read_bytes));
        let mut out = Vec::new();
        // A reset shows as an error after the bytes that came before it; those stay in `out`.
        if let Err(error) = (&mut self.stream).take(bytes_max.min(left)).read_to_end(&mut out) {
            assert!(
                !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
                "a body stood still for {SOCKET_TIMEOUT:?}"
            );
        }
        self.read_bytes += out.len() as u64;
        out
    }

    /// Reads the rest of the body.
    #[must_use]
    pub fn finish(mut self) -> HttpAnswer {
        let mut body = self.read_some(u64::MAX);
        let mut complete = self.length_bytes.is_none_or(|length| self.read_bytes == length);
        if self.headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
            (body, complete) = join_chunks(&body);
        }
        HttpAnswer { status: self.status, headers: self.headers, body, complete }
    }
}

/// The contents of a chunked body, and whether it came to its end.
fn join_chunks(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut contents = Vec::new();
    loop {
        let Some(line_end) = rest.windows(2).position(|two| two == b"\r\n") else { return (contents, false) };
        let (line, after) = rest.split_at(line_end);
        let size = usize::from_str_radix(&String::from_utf8_lossy(line), 16).expect("the size of a chunk");
        let after = after.get(2..).unwrap_or_default();
        if size == 0 {
            return (contents, true);
        }
        let Some((chunk, after)) = after.split_at_checked(size) else {
            contents.extend(after);
            return (contents, false);
        };
        contents.extend(chunk);
        rest = after.get(2..).unwrap_or_default();
    }
}

/// `GET path`; returns the complete answer.
///
/// # Errors
/// When nothing listens, or no head of an answer comes.
pub fn get(address: SocketAddr, path: &str) -> io::Result<HttpAnswer> {
    request(address, "GET", path, &[]).map(HttpBody::finish)
}

/// `HEAD path`.
///
/// # Errors
/// As [`get`].
pub fn head(address: SocketAddr, path: &str) -> io::Result<HttpAnswer> {
    request(address, "HEAD", path, &[]).map(HttpBody::finish)
}

/// Sends one request on a connection of its own and returns when the head of the answer is there. A `Host` header in
/// `headers` replaces the correct one.
///
/// # Errors
/// As [`get`].
pub fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<HttpBody> {
    let mut stream = TcpStream::connect_timeout(&address, SOCKET_TIMEOUT)?;
    stream.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    stream.set_write_timeout(Some(SOCKET_TIMEOUT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        write!(head, "Host: {address}\r\n").expect("a String takes all");
    }
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("a String takes all");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    read_head(method, BufReader::new(stream))
}

fn read_head(method: &str, mut stream: BufReader<TcpStream>) -> io::Result<HttpBody> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "no HTTP/1.1 head");
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let announced = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let length_bytes = if method == "HEAD" { Some(0) } else { announced };
    Ok(HttpBody { status, headers, length_bytes, read_bytes: 0, stream })
}
