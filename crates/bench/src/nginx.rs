//! nginx with the configuration of this package, to compare the gateway with: one alone, or two with TLS between them.

use crate::process::{Running, need_program, tethered, wait_for};
use crate::scratch::Subdir;
use anyhow::bail;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// Below the default `net.ipv4.ip_local_port_range`, from which clients get their ports.
const PORTS: Range<u16> = 20_000..32_000;
/// The name in the certificate of the nginx that serves by TLS.
const CERTIFIED: &str = "localhost";
const CONFIG: &str = include_str!("../nginx.conf");

/// A running nginx that serves one directory.
#[derive(Debug)]
pub(crate) struct Nginx {
    /// The master process; its two workers are its children.
    pub(crate) process: Running,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    dir: Subdir,
}

impl Nginx {
    /// An error that names the package when nginx is missing.
    pub(crate) fn need() -> anyhow::Result<()> {
        need_program("nginx", "nginx-light")
    }

    /// Serves `root` on a free loopback port. Its own files go into `dir`.
    pub(crate) fn start(dir: Subdir, root: &Path) -> anyhow::Result<Self> {
        let address = free_address()?;
        Self::start_server(dir, address, &format!("server {{ listen {address}; root {}; }}", root.display()))
    }

    /// Serves `root` by TLS 1.3, with the key and the certificate in `dir`.
    fn start_tls(dir: Subdir, root: &Path) -> anyhow::Result<Self> {
        let CertifiedKey { cert, key_pair } = generate_simple_self_signed([CERTIFIED.to_owned()])?;
        let (certificate, key) = (dir.join("certificate.pem"), dir.join("key.pem"));
        fs::write(&certificate, cert.pem())?;
        fs::write(&key, key_pair.serialize_pem())?;
        let address = free_address()?;
        let server = format!(
            "server {{ listen {address} ssl; ssl_protocols TLSv1.3; ssl_certificate {}; ssl_certificate_key {}; root {}; }}",
            certificate.display(),
            key.display(),
            root.display()
        );
        Self::start_server(dir, address, &server)
    }

    /// Passes each request on to `origin` over kept connections, and keeps nothing.
    fn start_proxy(dir: Subdir, origin: &Self) -> anyhow::Result<Self> {
        let address = free_address()?;
        let server = format!(
            "upstream origin {{ server {}; keepalive 64; keepalive_requests 1000000000; }}
             server {{ listen {address}; location / {{ proxy_pass https://origin; proxy_http_version 1.1;
               proxy_set_header Connection \"\"; proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on;
               proxy_ssl_trusted_certificate {}; proxy_ssl_name {CERTIFIED}; }} }}",
            origin.address,
            origin.dir.join("certificate.pem").display()
        );
        Self::start_server(dir, address, &server)
    }

    /// Runs one server, whose block of the configuration is given.
    fn start_server(dir: Subdir, address: SocketAddr, server: &str) -> anyhow::Result<Self> {
        Self::need()?;
        // Workers of an nginx that root starts become `nobody`, who may not read every directory.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let config = CONFIG
            .replace("@USER@", user)
            .replace("@DIR@", &dir.path().display().to_string())
            .replace("@SERVER@", server);
        let file = dir.join("nginx.conf");
        fs::write(&file, config)?;
        let log = fs::File::create(dir.join("stderr.log"))?;
        let mut command = tethered("nginx");
        command.arg("-c").arg(&file).arg("-p").arg(dir.path()).arg("-e").arg(dir.join("error.log"));
        command.env("PATH", system_path()).stdout(Stdio::null()).stderr(Stdio::from(log));
        let process = Running::spawn("nginx", &mut command)?;
        wait_for("nginx listens", Duration::from_secs(10), || Ok(TcpStream::connect(address).ok()))?;
        Ok(Self { process, address, dir })
    }

    /// Kills it and its workers with SIGKILL: connections break in the middle of a body.
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        self.process.kill_with_children()
    }
}

/// Two nginx on the way that a NAR takes through the mesh: the client asks the one in front, which asks the one with the files
/// over TLS. What narmesh does beyond that is verifying.
#[derive(Debug)]
pub(crate) struct TwoNginx {
    front: Nginx,
    _origin: Nginx,
}

impl TwoNginx {
    /// Serves `root`. Their own files go into the two directories.
    pub(crate) fn start(dirs: [Subdir; 2], root: &Path) -> anyhow::Result<Self> {
        let [front, origin] = dirs;
        let origin = Nginx::start_tls(origin, root)?;
        Ok(Self { front: Nginx::start_proxy(front, &origin)?, _origin: origin })
    }

    /// Where the one in front listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.front.address
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
