//! nginx with the configuration of this package, to compare the gateway with.

use crate::process::{Running, need_program, tethered, wait_for};
use crate::scratch::Subdir;
use anyhow::bail;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// Below the default `net.ipv4.ip_local_port_range`, from which clients get their ports.
const PORTS: Range<u16> = 20_000..32_000;
const CONFIG: &str = include_str!("../nginx.conf");

/// A running nginx that serves one directory.
#[derive(Debug)]
pub(crate) struct Nginx {
    /// The master process; its two workers are its children.
    pub(crate) process: Running,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    _dir: Subdir,
}

impl Nginx {
    /// An error that names the package when nginx is missing.
    pub(crate) fn need() -> anyhow::Result<()> {
        need_program("nginx", "nginx-light")
    }

    /// Serves `root` on a free loopback port. Its own files go into `dir`.
    pub(crate) fn start(dir: Subdir, root: &Path) -> anyhow::Result<Self> {
        Self::need()?;
        let address = free_address()?;
        // Workers of an nginx that root starts become `nobody`, who may not read every directory.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let config = CONFIG
            .replace("@USER@", user)
            .replace("@DIR@", &dir.path().display().to_string())
            .replace("@PORT@", &address.port().to_string())
            .replace("@ROOT@", &root.display().to_string());
        let file = dir.join("nginx.conf");
        fs::write(&file, config)?;
        let log = fs::File::create(dir.join("stderr.log"))?;
        let mut command = tethered("nginx");
        command.arg("-c").arg(&file).arg("-p").arg(dir.path()).arg("-e").arg(dir.join("error.log"));
        command.env("PATH", system_path()).stdout(Stdio::null()).stderr(Stdio::from(log));
        let process = Running::spawn("nginx", &mut command)?;
        wait_for("nginx listens", Duration::from_secs(10), || Ok(TcpStream::connect(address).ok()))?;
        Ok(Self { process, address, _dir: dir })
    }

    /// Kills it and its workers with SIGKILL: connections break in the middle of a body.
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        self.process.kill_with_children()
    }
}

/// A loopback address that nobody listens on now. Its port is below those that the kernel gives to clients, because one of
/// those could be taken by the time that the server starts.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % u32::from(PORTS.end - PORTS.start))?;
    for _ in PORTS {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let address = SocketAddr::from(([127, 0, 0, 1], PORTS.start + offset));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port from {} to {} is free", PORTS.start, PORTS.end);
}

/// `PATH` with `/usr/sbin`, where Debian puts servers, and which a user's `PATH` lacks.
fn system_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin");
    path
}
