//! A TCP relay with a gate: it lets a given number of bytes pass towards the dialler and holds the rest until told
//! otherwise. That puts an event reliably into the middle of a transfer.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Relays connections to one address.
#[derive(Debug)]
pub struct GatedProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    gate: Mutex<Gate>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    /// Bytes that may still pass towards the dialler; `None`: the gate is open.
    left_bytes: Option<u64>,
    holding: bool,
    closed: bool,
    hides_ends: bool,
    sockets: Vec<TcpStream>,
}

impl GatedProxy {
    /// Listens on a free loopback port and relays every connection to `upstream`, at first with the gate open.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn to(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.lock().closed {
                    return;
                }
                if let Ok(server) = TcpStream::connect(upstream) {
                    accepting.relay(&client, &server);
                }
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the proxy, to dial instead of the one behind it.
    #[must_use]
    pub fn multiaddr(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}", self.address.port())
    }

    /// From now on lets `bytes` pass towards the dialler, and holds what comes after them.
    pub fn hold_after(&self, bytes: u64) {
        let mut gate = self.shared.lock();
        gate.left_bytes = Some(bytes);
        gate.holding = false;
    }

    /// Whether the gate holds something back.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.shared.lock().holding
    }

    /// From now on, upstream does not hear when a dialler closes: its connections look alive there, as after a power cut.
    pub fn hide_ends(&self) {
        self.shared.lock().hides_ends = true;
    }

    /// Opens the gate for good.
    pub fn release(&self) {
        let mut gate = self.shared.lock();
        gate.left_bytes = None;
        gate.holding = false;
        self.shared.opened.notify_all();
    }
}

impl Drop for GatedProxy {
    fn drop(&mut self) {
        {
            let mut gate = self.shared.lock();
            gate.closed = true;
            gate.left_bytes = None;
            for socket in gate.sockets.drain(..) {
                // It may be closed already.
                socket.shutdown(Shutdown::Both).ok();
            }
        }
        self.shared.opened.notify_all();
        // Wakes the accepting thread, which then sees that the proxy is closed.
        TcpStream::connect(self.address).ok();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relay(self: &Arc<Self>, client: &TcpStream, server: &TcpStream) {
        let copy = |socket: &TcpStream| socket.try_clone().expect("a descriptor");
        self.lock().sockets.extend([copy(client), copy(server)]);
        let (from, to, shared) = (copy(client), copy(server), Arc::clone(self));
        thread::spawn(move || shared.pump(from, to, false));
        let (from, to, shared) = (copy(server), copy(client), Arc::clone(self));
        thread::spawn(move || shared.pump(from, to, true));
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, gated: bool) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if self.forward(&mut to, buffer.get(..count).unwrap_or_default(), gated).is_err() {
                break;
            }
        }
        if !gated && self.lock().hides_ends {
            return;
        }
        // One end is gone, so both are closed; either may be closed already.
        from.shutdown(Shutdown::Both).ok();
        to.shutdown(Shutdown::Both).ok();
    }

    fn forward(&self, to: &mut TcpStream, mut bytes: &[u8], gated: bool) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(if gated { self.pass(bytes.len()) } else { bytes.len() });
            to.write_all(now)?;
            bytes = later;
        }
        Ok(())
    }

    /// Takes up to `wanted` bytes from the allowance, waiting at a closed gate.
    fn pass(&self, wanted: usize) -> usize {
        let mut gate = self.lock();
        loop {
            match gate.left_bytes {
                None => return wanted,
                Some(0) => {
                    gate.holding = true;
                    gate = self.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
                }
                Some(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(wanted);
                    gate.left_bytes = Some(left - take as u64);
                    return take;
                }
            }
        }
    }
}
