//! Fetches over HTTP. Large bodies are thrown away as they arrive.

use crate::load::Head;
use crate::process::thread_cpu_s;
use anyhow::{Context as _, bail};
use narmesh_protocol::nar::NarVerifier;
use narmesh_protocol::{NarHash, nar};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The most that is read at once, bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// The cost of a fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetched {
    /// Seconds from the request to the last byte.
    pub(crate) seconds: f64,
    /// CPU seconds of this client.
    pub(crate) cpu_s: f64,
}

/// Gets `target`, which must have `bytes` bytes, and throws it away.
pub(crate) fn fetch(address: SocketAddr, target: &str, bytes: u64) -> anyhow::Result<Fetched> {
    let (started, cpu) = (Instant::now(), thread_cpu_s());
    let got = body(address, target, |_| Ok(()))?;
    if got != bytes {
        bail!("{target}: {got} bytes, not {bytes}");
    }
    Ok(Fetched { seconds: started.elapsed().as_secs_f64(), cpu_s: thread_cpu_s() - cpu })
}

/// Gets a NAR and checks its NarHash. Do this once, before fetches are timed.
pub(crate) fn verify(address: SocketAddr, target: &str, nar_hash: NarHash) -> anyhow::Result<()> {
    verify_and(address, target, nar_hash, u64::MAX, || Ok(()))
}

/// The same, and calls `act` once when `at` bytes have come.
pub(crate) fn verify_and(
    address: SocketAddr,
    target: &str,
    nar_hash: NarHash,
    at: u64,
    act: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (mut verifier, mut got, mut act, mut acted) = (NarVerifier::new(), 0, Some(act), Ok(()));
    body(address, target, |bytes| {
        got += bytes.len() as u64;
        if got >= at
            && let Some(act) = act.take()
        {
            acted = act();
        }
        verifier.feed(bytes)
    })?;
    acted?;
    if verifier.finish()?.nar_hash != nar_hash {
        bail!("{target}: the contents have another NarHash");
    }
    Ok(())
}

/// Asks for `target` from byte `at` on, and returns the milliseconds until the first byte of the range arrives.
pub(crate) fn first_byte_ms(address: SocketAddr, target: &str, at: u64) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut stream = open(address, target, &format!("Range: bytes={at}-\r\n"))?;
    let mut buffer = vec![0; 4_096];
    let mut filled = 0;
    loop {
        let got = stream.read(buffer.get_mut(filled..).unwrap_or_default())?;
        if got == 0 {
            bail!("{target}: closed before the range began");
        }
        filled += got;
        if let Some(head) = Head::parse(buffer.get(..filled).unwrap_or_default())? {
            if head.status != 206 {
                bail!("{target}: answered {}", head.status);
            }
            if filled > head.head_bytes {
                return Ok(started.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
}

/// Gets a small text; `None` for 404.
pub(crate) fn text(address: SocketAddr, target: &str) -> anyhow::Result<Option<String>> {
    let mut stream = open(address, target, "")?;
    let mut buffer = Vec::new();
    loop {
        let before = buffer.len();
        buffer.resize(before + (64 << 10), 0);
        let got = stream.read(buffer.get_mut(before..).unwrap_or_default())?;
        buffer.truncate(before + got);
        if let Some(head) = Head::parse(&buffer)?
            && buffer.len() >= head.head_bytes + head.body_bytes
        {
            return match head.status {
                200 => Ok(Some(String::from_utf8(buffer.split_off(head.head_bytes))?)),
                404 => Ok(None),
                status => bail!("{target}: answered {status}"),
            };
        }
        if got == 0 {
            bail!("{target}: closed in the answer");
        }
    }
}

fn open(address: SocketAddr, target: &str, more: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: narmesh-bench\r\nAccept: */*\r\n{more}\r\n");
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}

fn body(
    address: SocketAddr,
    target: &str,
    mut take: impl FnMut(&[u8]) -> Result<(), nar::NarError>,
) -> anyhow::Result<u64> {
    let mut stream = open(address, target, "")?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    let head = loop {
        let got = stream.read(buffer.get_mut(filled..).unwrap_or_default())?;
        if got == 0 {
            bail!("{target}: closed in the head");
        }
        filled += got;
        if let Some(head) = Head::parse(buffer.get(..filled).unwrap_or_default())? {
            break head;
        }
    };
    if head.status != 200 {
        bail!("{target}: answered {}", head.status);
    }
    let start = buffer.get(head.head_bytes..filled).unwrap_or_default();
    take(start)?;
    let mut left = head.body_bytes.checked_sub(start.len()).context("more than the answer")?;
    while left > 0 {
        let got = stream.read(&mut buffer)?;
        if got == 0 {
            bail!("{target}: closed with {left} bytes left");
        }
        left = left.checked_sub(got).context("more than the answer")?;
        take(buffer.get(..got).unwrap_or_default())?;
    }
    Ok(head.body_bytes as u64)
}
