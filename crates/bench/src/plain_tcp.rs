//! Bytes over plain TCP: the upper bound of any transport here.

use crate::process::Running;
use anyhow::bail;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

/// Bytes of one write: the largest chunk of a NAR stream.
pub(crate) const CHUNK_BYTES: usize = narmesh_protocol::wire::NarFrame::CHUNK_BYTES_MAX;

/// The server's process and where it listens.
#[derive(Debug)]
pub(crate) struct PlainTcp {
    process: Running,
    address: SocketAddr,
}

impl PlainTcp {
    /// Starts the server.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (process, line) = Running::spawn_server("plain-tcp", &[])?;
        Ok(Self { process, address: line.parse()? })
    }

    /// Pulls `bytes` bytes over a new connection, and returns the seconds that it took.
    pub(crate) fn pull(&self, bytes: u64) -> anyhow::Result<f64> {
        let mut stream = TcpStream::connect(self.address)?;
        let started = Instant::now();
        stream.write_all(&bytes.to_le_bytes())?;
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut left = bytes;
        while left > 0 {
            let got = stream.read(&mut buffer)? as u64;
            if got == 0 || got > left {
                bail!("plain TCP ended with {left} bytes left");
            }
            left -= got;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// The server's process.
    pub(crate) fn process(&self) -> &Running {
        &self.process
    }
}

/// The server: it reads a count from each connection and sends that many bytes back.
pub(crate) fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    crate::print_line(&listener.local_addr()?.to_string())?;
    let chunk = vec![0x5a; CHUNK_BYTES];
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        let mut left = usize::try_from(u64::from_le_bytes(count))?;
        while left > 0 {
            let piece = chunk.get(..left.min(CHUNK_BYTES)).unwrap_or_default();
            stream.write_all(piece)?;
            left -= piece.len();
        }
    }
    Ok(())
}
