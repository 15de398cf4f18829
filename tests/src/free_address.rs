//! Addresses that nothing listens at.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports below those that Linux hands out itself (from 32,768 on), or another test could get one before it is used.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A loopback address that was free a moment ago, and that no other test of this process gets.
///
/// # Panics
/// When none of some hundred is free.
#[must_use]
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 200).unwrap_or(0) * 100;
    let candidates = (0..500).map(|_| {
        let port = PORTS.start + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    });
    candidates.into_iter().find(|address| TcpListener::bind(address).is_ok()).expect("a free port")
}
