//! nginx with the configuration of this directory: what the gateway is measured beside.

use crate::process::{Running, need_program, tethered, wait_for};
use crate::scratch::Subdir;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

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

    /// Serves `root` on a free loopback port; its own files go into `dir`.
    pub(crate) fn start(dir: Subdir, root: &Path) -> anyhow::Result<Self> {
        Self::need()?;
        let address = free_address()?;
        // Started by root the workers would become nobody, who may not look into everything.
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
}

/// A loopback address that nobody listens on now.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// `PATH` with the directory where Debian puts servers, which a user's lacks.
fn system_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin");
    path
}
