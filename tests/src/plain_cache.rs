//! A binary cache behind nginx: to compare a mesh with, and to be one of its upstreams.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::certificate::Certificate;
use crate::{NixStoreFixture, TestNode, finish, free_address, get, hash_part, promised, wait_until};

const PORT: u16 = 8_080;
/// The web server is expected to answer this soon after its start.
const START: Duration = Duration::from_secs(1);

/// An nginx beside the holder's daemon, with a binary cache of what the holder has. It is killed when this is dropped.
#[derive(Debug)]
pub struct PlainCache {
    nginx: Child,
    /// The directory of nginx itself.
    nginx_dir: PathBuf,
    cache: PathBuf,
    /// The certificate that it shows, if it speaks TLS.
    certificate: Option<PathBuf>,
    /// Where it listens, on the holder's machine.
    pub address: SocketAddr,
}

impl PlainCache {
    /// Starts one for `paths`, on the holder's machine of a network.
    ///
    /// # Panics
    /// When the holder is in no network, or Nix or nginx fails.
    #[must_use]
    pub fn beside(holder: &TestNode, paths: &[String]) -> Self {
        let machine = holder.network().expect("a line");
        let address = SocketAddr::from((machine.address(), PORT));
        let dir = holder.dir().join("plain");
        let cache = write_cache(holder, paths, &dir, "none");
        let nginx = start_nginx(machine.command("setpriv"), &dir, &files_of(&cache), address, None);
        wait_until("nginx answers", promised(START), || machine.enter(|| get(address, "/nix-cache-info")).is_ok());
        Self { nginx, nginx_dir: dir, cache, certificate: None, address }
    }

    /// Starts one for `paths` on a free loopback port; its NARs are compressed as `nix copy` understands the word.
    ///
    /// # Panics
    /// When Nix or nginx fails.
    #[must_use]
    pub fn on_loopback(holder: &TestNode, paths: &[String], compression: &str) -> Self {
        let dir = holder.dir().join(format!("plain-{compression}"));
        let cache = write_cache(holder, paths, &dir, compression);
        Self::serve(&dir, cache, None)
    }

    /// A second one for the same files.
    ///
    /// # Panics
    /// When nginx fails.
    #[must_use]
    pub fn twin(&self) -> Self {
        Self::serve(&self.nginx_dir.join("twin"), self.cache.clone(), None)
    }

    /// A second one for the same files, with these lines of nginx for all requests, and these for its `http` section; it logs
    /// the status of each request.
    ///
    /// # Panics
    /// When nginx fails.
    #[must_use]
    pub fn twin_with(&self, name: &str, lines: &str, http_lines: &str) -> Self {
        let dir = self.nginx_dir.join(name);
        fs::create_dir_all(&dir).expect("our own directory");
        let (address, location) = (free_address(), format!("{} {lines}", files_of(&self.cache)));
        let log =
            format!("log_format statuses '$status'; access_log {}/access.log statuses; {http_lines}", dir.display());
        let log = log.trim_end_matches([' ', ';']);
        let configuration = nginx_configuration(&dir, &location, &address.to_string(), log, "");
        let nginx = start_with(Command::new("setpriv"), &dir, &configuration);
        wait_until("nginx listens", promised(START), || TcpStream::connect(address).is_ok());
        Self { nginx, nginx_dir: dir, cache: self.cache.clone(), certificate: None, address }
    }

    /// A second one for the same files, over TLS and HTTP/2 or HTTP/1.1; it logs the protocol and target of each request.
    ///
    /// # Panics
    /// When nginx fails.
    #[must_use]
    pub fn twin_over_tls(&self) -> Self {
        Self::serve(&self.nginx_dir.join("tls"), self.cache.clone(), Some(&Certificate::of_loopback()))
    }

    fn serve(dir: &Path, cache: PathBuf, certificate: Option<&Certificate>) -> Self {
        fs::create_dir_all(dir).expect("our own directory");
        let files = certificate.map(|certificate| certificate.write(dir));
        let address = free_address();
        let nginx = start_nginx(Command::new("setpriv"), dir, &files_of(&cache), address, files.as_ref());
        wait_until("nginx listens", promised(START), || TcpStream::connect(address).is_ok());
        Self {
            nginx,
            nginx_dir: dir.to_owned(),
            cache,
            certificate: files.map(|[certificate, _]| certificate),
            address,
        }
    }

    /// The `[[upstream]]` lines of it under this name, with the key of the holder that filled it.
    #[must_use]
    pub fn upstream(&self, name: &str, holder: &TestNode) -> String {
        let (address, key) = (self.address, holder.builder_key());
        let (scheme, ca_file) = match &self.certificate {
            Some(file) => ("https", format!("ca_file = '{}'\n", file.display())),
            None => ("http", String::new()),
        };
        format!("[[upstream]]\nname = '{name}'\nurl = '{scheme}://{address}'\npublic_keys = ['{key}']\n{ca_file}")
    }

    /// The directory of its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.cache
    }

    /// Each request so far: of one over TLS protocol and target, of one with lines of its own the status.
    ///
    /// # Panics
    /// When it keeps no log.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.nginx_dir.join("access.log")).expect("it keeps a log");
        log.lines().map(str::to_owned).collect()
    }

    /// Kills it now, with SIGKILL.
    pub fn kill(&mut self) {
        self.nginx.kill().ok();
        self.nginx.wait().ok();
    }

    /// Starts one on loopback again, with the configuration that it had.
    ///
    /// # Panics
    /// When nginx fails.
    pub fn start_again(&mut self) {
        self.nginx = run_nginx(Command::new("setpriv"), &self.nginx_dir);
    }

    /// The URL path of a NAR, from the cache's narinfo.
    ///
    /// # Panics
    /// When the cache does not have it.
    #[must_use]
    pub fn target(&self, path: &str) -> String {
        let narinfo = self.cache.join(format!("{}.narinfo", hash_part(path)));
        let text = fs::read_to_string(narinfo).expect("a narinfo of the cache");
        let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).expect("a narinfo has a URL");
        format!("/{url}")
    }
}

impl Drop for PlainCache {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes a binary cache of what the holder has into a directory below `dir`, signed with the holder's key.
fn write_cache(holder: &TestNode, paths: &[String], dir: &Path, compression: &str) -> PathBuf {
    let cache = dir.join("cache");
    fs::create_dir_all(&cache).expect("our own directory");
    let key = holder.dir().join("builder.key");
    let to = format!("file://{}?compression={compression}&secret-key={}", cache.display(), key.display());
    let mut copy = holder.store.nix("nix");
    copy.args(["--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", "--to", &to]).args(paths);
    finish(&mut copy).expect_success("nix copy --to file://");
    cache
}

/// An nginx between clients and a gateway, which logs what passes.
#[derive(Debug)]
pub struct LoggingProxy {
    nginx: Child,
    log: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
}

impl LoggingProxy {
    /// Starts one in `dir`, in front of `gateway`; each line of its log is a request as this nginx `format` writes it.
    ///
    /// # Panics
    /// When nginx fails.
    #[must_use]
    pub fn start(dir: &Path, gateway: SocketAddr, format: &str) -> Self {
        fs::create_dir_all(dir).expect("our own directory");
        let (address, log) = (free_address(), dir.join("passed.log"));
        let location = format!(
            "proxy_pass http://{gateway}; proxy_http_version 1.1; proxy_set_header Host $http_host; \
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_buffering off; \
             access_log {} passed;",
            log.display()
        );
        let format = format!("log_format passed '{format}'");
        let configuration = nginx_configuration(dir, &location, &address.to_string(), &format, "");
        let nginx = start_with(Command::new("setpriv"), dir, &configuration);
        wait_until("nginx listens", promised(START), || TcpStream::connect(address).is_ok());
        Self { nginx, log, address }
    }

    /// Its log, when it has ended: nginx writes the line of a request only after the answer, so a client may be done before.
    ///
    /// # Panics
    /// When nginx does not end.
    #[must_use]
    pub fn end(mut self) -> Vec<String> {
        let nginx = Pid::from_child(&self.nginx);
        kill_process(nginx, Signal::QUIT).expect("nginx runs");
        wait_until("nginx has ended", promised(START), || self.nginx.try_wait().expect("our child").is_some());
        fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for LoggingProxy {
    fn drop(&mut self) {
        self.nginx.kill().ok();
        self.nginx.wait().ok();
    }
}

/// What nginx does with a request for a file of this directory.
fn files_of(cache: &Path) -> String {
    format!("root {};", cache.display())
}

/// Starts nginx with that location; `command` runs setpriv where nginx has to listen.
fn start_nginx(command: Command, dir: &Path, location: &str, address: SocketAddr, tls: Option<&[PathBuf; 2]>) -> Child {
    let dir_name = dir.display();
    let configuration = match tls {
        Some([certificate, key]) => {
            let log = format!(
                "log_format requests '$server_protocol $request_uri';\n  access_log {dir_name}/access.log requests"
            );
            let files = format!("ssl_certificate {}; ssl_certificate_key {};", certificate.display(), key.display());
            nginx_configuration(dir, location, &format!("{address} ssl http2"), &log, &files)
        }
        None => nginx_configuration(dir, location, &address.to_string(), "access_log off", ""),
    };
    start_with(command, dir, &configuration)
}

fn start_with(command: Command, dir: &Path, configuration: &str) -> Child {
    fs::write(dir.join("nginx.conf"), configuration).expect("our own directory");
    run_nginx(command, dir)
}

/// Runs nginx with the configuration in its directory.
fn run_nginx(mut command: Command, dir: &Path) -> Child {
    let file = dir.join("nginx.conf");
    command.args(["--pdeathsig", "KILL", "nginx", "-p"]).arg(dir).arg("-c").arg(&file);
    command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("Debian's package nginx-light")
}

/// One process, run by the user that runs the test, with everything in its own directory.
fn nginx_configuration(dir: &Path, location: &str, listen: &str, log: &str, files: &str) -> String {
    let dir = dir.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {dir}/{kind};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log;\nevents {{}}\n\
         http {{\n  {log};\n{temporary}  sendfile on;\n  tcp_nopush on;\n  default_type application/octet-stream;\n  \
         server {{\n    listen {listen};\n    {files}\n    location / {{ {location} }}\n  }}\n}}\n"
    )
}

/// A second store in `dir` for the client's machine, driven by the same version of Nix.
///
/// # Panics
/// When the client is in no network.
#[must_use]
pub fn second_store(client: &TestNode, dir: &Path) -> NixStoreFixture {
    let mut store = NixStoreFixture::chroot(&dir.join("plain-client"));
    store.run_nix_under(&client.network().expect("a line").command_prefix());
    store.use_nix(client.store.nix_version());
    store
}
