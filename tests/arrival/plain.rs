//! The same NARs by plain HTTP on the same line: what a mesh is measured by.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use narmesh_tests::{NixStoreFixture, TestNode, finish, get, promised, wait_until};

const PORT: u16 = 8_080;
/// Of a web server.
const START: Duration = Duration::from_secs(1);

/// An nginx beside the holder's daemon, with a binary cache of all that the holder has. It ends with this.
pub(crate) struct PlainCache {
    nginx: Child,
    pub(crate) address: SocketAddr,
}

impl PlainCache {
    /// On the holder's machine of a network.
    pub(crate) fn beside(holder: &TestNode, paths: &[String]) -> Self {
        let machine = holder.network().expect("a line");
        let dir = holder.dir().join("plain");
        let cache = dir.join("cache");
        fs::create_dir_all(&cache).unwrap();
        let key = holder.dir().join("builder.key");
        let to = format!("file://{}?compression=none&secret-key={}", cache.display(), key.display());
        let mut copy = holder.store.nix("nix");
        copy.args(["--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", "--to", &to]).args(paths);
        finish(&mut copy).expect_success("nix copy --to file://");
        let configuration = dir.join("nginx.conf");
        fs::write(&configuration, nginx_configuration(&dir, &cache)).unwrap();
        let mut nginx = machine.command("setpriv");
        nginx.args(["--pdeathsig", "KILL", "nginx", "-p"]).arg(&dir).arg("-c").arg(&configuration);
        let nginx = nginx.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("Debian's package nginx-light");
        let address = SocketAddr::from((machine.address(), PORT));
        wait_until("nginx answers", promised(START), || machine.enter(|| get(address, "/nix-cache-info")).is_ok());
        Self { nginx, address }
    }
}

impl Drop for PlainCache {
    fn drop(&mut self) {
        self.nginx.kill().ok();
        self.nginx.wait().ok();
    }
}

/// One process, as the user that runs the test, everything in its own directory.
fn nginx_configuration(dir: &Path, cache: &Path) -> String {
    let dir = dir.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {dir}/{kind};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log;\nevents {{}}\n\
         http {{\n  access_log off;\n{temporary}  sendfile on;\n  tcp_nopush on;\n  default_type application/octet-stream;\n  \
         server {{\n    listen {PORT};\n    location / {{ root {}; }}\n  }}\n}}\n",
        cache.display()
    )
}

/// A store of its own on the client's machine, whose Nix is the client's.
pub(crate) fn second_store(client: &TestNode, dir: &Path) -> NixStoreFixture {
    let mut store = NixStoreFixture::chroot(&dir.join("plain-client"));
    store.run_nix_under(&client.network().expect("a line").command_prefix());
    store.use_nix(client.store.nix_version());
    store
}
