//! One machine of a mesh: a store, a configuration file, and at times a running daemon.

use std::fs::{self, File, OpenOptions};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::binary::narmesh_binary;
use crate::config::{NodeConfig, PeerEntry};
use crate::http::{HttpAnswer, get};
use crate::nix::{NarInfoText, NixStoreFixture, hash_part};
use crate::prober::Prober;
use crate::process::{Finished, MemoryPeak, finish};
use crate::status::Status;
use crate::wait::{poll, promised, wait_for, wait_until};

/// A daemon is promised to answer this soon after its start.
const START: Duration = Duration::from_secs(2);

/// A change of a store is promised to be noticed within 1 s and to be substitutable elsewhere within 2 s.
const SPREAD: Duration = Duration::from_secs(2);

/// What another machine has to know of this one: the lines that `narmesh init` prints for it.
#[derive(Debug, Clone)]
pub struct PeerCard {
    /// The name.
    pub name: String,
    /// The peer id.
    pub peer_id: String,
    /// The public builder key in Nix's form, if there is one.
    pub builder_key: Option<String>,
}

/// Where a daemon really listens.
#[derive(Debug, Clone)]
struct Ports {
    listen: String,
    gateway: SocketAddr,
}

/// A machine of the mesh.
#[derive(Debug)]
pub struct TestNode {
    /// Its name, also in the others' configurations.
    pub name: String,
    /// What is written to its configuration file at the next start or reload.
    pub config: NodeConfig,
    /// Its store.
    pub store: NixStoreFixture,
    card: PeerCard,
    dir: PathBuf,
    daemon: Option<Child>,
    ports: Option<Ports>,
    run_as: Option<u32>,
    notify_socket: Option<PathBuf>,
}

impl TestNode {
    /// Runs `narmesh init` in `dir`.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    #[must_use]
    pub fn init(name: &str, dir: &Path, store: NixStoreFixture) -> Self {
        let mut command = Command::new(narmesh_binary());
        command.args(["init", "--name", name, "--dir"]).arg(dir);
        finish(&mut command).expect_success("narmesh init");
        let mut node = Self {
            name: name.to_owned(),
            config: NodeConfig::new(store.place()),
            store,
            card: PeerCard { name: name.to_owned(), peer_id: String::new(), builder_key: None },
            dir: dir.to_owned(),
            daemon: None,
            ports: None,
            run_as: None,
            notify_socket: None,
        };
        let id = node.narmesh(&["id"]).expect_success("narmesh id");
        let words = id.split(|letter: char| !letter.is_ascii_alphanumeric());
        node.card.peer_id = words.into_iter().find(|word| word.starts_with("12D3KooW")).expect("a peer id").to_owned();
        node.card.builder_key = Some(public_key_of(&dir.join("builder.key")));
        // As `init` wrote it: what was built here may come back from others, and our own gateway offers it.
        node.config.trusted_public_keys.extend(node.card.builder_key.clone());
        node
    }

    /// What others have to know of this node.
    #[must_use]
    pub fn card(&self) -> PeerCard {
        self.card.clone()
    }

    /// The directory of keys, configuration, state and log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The public builder key of this node.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    #[must_use]
    pub fn builder_key(&self) -> String {
        self.card.builder_key.clone().expect("made by init")
    }

    /// Puts `other` on the allowlist, without an address, and trusts its builder key.
    pub fn allow(&mut self, other: &PeerCard) {
        let entry = PeerEntry { name: other.name.clone(), peer_id: other.peer_id.clone(), addresses: Vec::new() };
        self.config.peers.retain(|known| known.name != other.name);
        self.config.peers.push(entry);
        self.config.trusted_public_keys.extend(other.builder_key.clone());
    }

    /// Takes `name` off the allowlist.
    pub fn disallow(&mut self, name: &str) {
        self.config.peers.retain(|known| known.name != name);
    }

    /// Adds an address of a peer that is on the allowlist.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn learn_address(&mut self, name: &str, address: &str) {
        let entry = self.config.peers.iter_mut().find(|known| known.name == name).expect("allowed before");
        entry.addresses.push(address.to_owned());
    }

    /// From the next start on the daemon runs as this user and group, who owns its directory, but not its store.
    pub fn run_as(&mut self, user: u32) {
        self.run_as = Some(user);
    }

    /// From the next start on the daemon is told to report its readiness there, as systemd does it (`NOTIFY_SOCKET`).
    pub fn notify_socket(&mut self, path: &Path) {
        self.notify_socket = Some(path.to_owned());
    }

    /// Writes the configuration file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_config(&self) {
        fs::write(self.config_file(), self.config.to_toml()).expect("our own directory");
    }

    /// `narmesh.toml` of this node.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("narmesh.toml")
    }

    /// Writes the configuration, starts the daemon, and returns when it answers. The ports that it was given on its
    /// first start it keeps on later ones.
    ///
    /// # Panics
    /// When it does not answer within ten times the promise.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_with(None);
    }

    /// As [`TestNode::start`], with a listening socket handed over as systemd does it (`LISTEN_FDS`).
    ///
    /// # Panics
    /// As [`TestNode::start`].
    #[track_caller]
    pub fn start_with(&mut self, gateway_socket: Option<OwnedFd>) {
        // The file that a reload compares with is the one of the start, so the ports enter it only here.
        if let Some(Ports { listen, gateway }) = &self.ports {
            self.config.listen.clone_from(listen);
            self.config.gateway_listen = gateway.to_string();
        }
        self.write_config();
        self.start_as_written(gateway_socket);
    }

    /// As [`TestNode::start_with`], with the configuration file as it lies there.
    ///
    /// # Panics
    /// As [`TestNode::start`].
    #[track_caller]
    pub fn start_as_written(&mut self, gateway_socket: Option<OwnedFd>) {
        assert!(self.daemon.is_none(), "{} runs already", self.name);
        self.spawn(gateway_socket);
        let (listen, gateway) = wait_for(&format!("{} answers and listens", self.name), promised(START), || {
            self.assert_runs();
            let status = self.try_status()?;
            let listen = status.0.pointer("/listen/0")?.as_str()?.split("/p2p/").next()?.to_owned();
            Some((listen, status.text("/gateway")?.parse().expect("a socket address")))
        });
        self.ports = Some(Ports { listen, gateway });
    }

    fn spawn(&mut self, gateway_socket: Option<OwnedFd>) {
        // The daemon dies with the thread that runs its story, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        let mut binary = narmesh_binary().to_owned();
        if let Some(user) = self.run_as {
            let id = user.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
            // The build may lie where another user cannot go.
            binary = self.dir.join("narmesh");
            if !binary.exists() {
                fs::copy(narmesh_binary(), &binary).expect("a copy of the binary");
            }
            for owned in [".", "node.key", "builder.key", "narmesh.toml", "state"] {
                // What does not exist yet, the daemon makes itself.
                std::os::unix::fs::chown(self.dir.join(owned), Some(user), Some(user)).ok();
            }
        }
        if let Some(socket) = gateway_socket {
            // The descriptor arrives as standard input; the shell moves it to 3, and `exec` keeps its process id.
            let script = r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@""#;
            command.args(["sh", "-c", script, "sh"]).stdin(Stdio::from(socket));
        } else {
            command.stdin(Stdio::null());
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log_file()).expect("our own directory");
        let log_filter = std::env::var("NARMESH_LOG").unwrap_or_else(|_| "info,narmesh=debug".to_owned());
        command.arg(binary).arg("--config").arg(self.config_file()).arg("run").env("NARMESH_LOG", log_filter);
        if let Some(path) = &self.notify_socket {
            command.env("NOTIFY_SOCKET", path);
        }
        command.stdout(Stdio::null()).stderr(Stdio::from(log));
        self.daemon = Some(command.spawn().expect("setpriv starts"));
    }

    #[track_caller]
    fn assert_runs(&mut self) {
        let daemon = self.daemon.as_mut().expect("started");
        if let Some(status) = daemon.try_wait().expect("our own child") {
            panic!("{} ended with {status}; its log:\n{}", self.name, self.log());
        }
    }

    /// The process id of the running daemon.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().map(Child::id).unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// Where Nix asks.
    ///
    /// # Panics
    /// Before the first start.
    #[track_caller]
    #[must_use]
    pub fn gateway(&self) -> SocketAddr {
        self.ports().gateway
    }

    #[track_caller]
    fn ports(&self) -> &Ports {
        self.ports.as_ref().expect("known from the first start on")
    }

    /// The multiaddr that others can dial.
    ///
    /// # Panics
    /// Before the first start.
    #[track_caller]
    #[must_use]
    pub fn p2p_address(&self) -> String {
        self.ports().listen.clone()
    }

    /// The same as a socket address.
    ///
    /// # Panics
    /// Before the first start.
    #[track_caller]
    #[must_use]
    pub fn p2p_socket(&self) -> SocketAddr {
        let mut parts = self.ports().listen.split('/').skip(2).step_by(2);
        let mut part = || parts.next().expect("/ip4/…/tcp/…");
        format!("{}:{}", part(), part()).parse().expect("an address and a port")
    }

    /// The full status.
    ///
    /// # Panics
    /// When the daemon does not answer.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|| panic!("{} gives no status; its log:\n{}", self.name, self.log()))
    }

    fn try_status(&self) -> Option<Status> {
        let answer = self.narmesh(&["status", "--json"]);
        answer.status.success().then(|| serde_json::from_str(&answer.stdout).ok()).flatten().map(Status)
    }

    /// Waits until the condition holds of this node's status.
    ///
    /// # Panics
    /// When it does not within ten times `bound`; the message holds the last status.
    #[track_caller]
    pub fn wait_status(&self, what: &str, bound: Duration, holds: impl Fn(&Status) -> bool) -> Status {
        let mut last = None;
        let found = poll(promised(bound), || {
            let status = self.status();
            let done = holds(&status);
            last = Some(status.0.clone());
            done.then_some(status)
        });
        found.unwrap_or_else(|| panic!("{}: waited in vain for: {what}; its status: {last:?}", self.name))
    }

    /// Waits until this node advertises `paths` paths and `listeners` have heard so.
    ///
    /// # Panics
    /// When that takes ten times as long as promised.
    #[track_caller]
    pub fn wait_advertised(&self, paths: u64, listeners: &[&Self]) {
        self.wait_status(&format!("advertises {paths} paths"), SPREAD, |status| status.number("/own/paths") == paths);
        for listener in listeners {
            listener.wait_status(&format!("has heard of {paths} paths of {}", self.name), SPREAD, |status| {
                status.summary_paths(&self.name) == Some(paths)
            });
        }
    }

    /// Waits until this node advertises all outputs of its store, and `listeners` have heard so.
    ///
    /// # Panics
    /// As [`TestNode::wait_advertised`].
    #[track_caller]
    pub fn wait_all_advertised(&self, listeners: &[&Self]) {
        self.wait_advertised(self.store.outputs().len() as u64, listeners);
    }

    /// Waits until the connection with `name` is up, or down.
    ///
    /// # Panics
    /// When that takes ten times `bound`.
    #[track_caller]
    pub fn wait_connected(&self, name: &str, connected: bool, bound: Duration) {
        let what = format!("connection with {name} is {}", if connected { "up" } else { "down" });
        self.wait_status(&what, bound, |status| status.connected(name) == connected);
    }

    /// Asks the gateway for the narinfo of `path`.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    #[must_use]
    pub fn get_narinfo(&self, path: &str) -> HttpAnswer {
        get(self.gateway(), &narinfo_url(path)).expect("the gateway answers")
    }

    /// Asks the gateway for the narinfo of `path`, until it has it.
    ///
    /// # Panics
    /// When it has not within ten times the promise.
    #[track_caller]
    #[must_use]
    pub fn wait_narinfo(&self, path: &str) -> NarInfoText {
        let answer = wait_for(&format!("{} finds {path}", self.name), promised(SPREAD), || {
            Some(self.get_narinfo(path)).filter(|answer| answer.status == 200)
        });
        NarInfoText::parse(&answer.text())
    }

    /// A prober that asks this node's gateway for the narinfos of `paths`, for one that nobody has, and for
    /// `nix-cache-info`.
    #[must_use]
    pub fn probe(&self, paths: &[&str]) -> Prober {
        let mut urls: Vec<_> = paths.iter().map(|path| narinfo_url(path)).collect();
        urls.push("/nix-cache-info".to_owned());
        urls.push("/00000000000000000000000000000000.narinfo".to_owned());
        Prober::start(self.gateway(), urls)
    }

    /// The deadline of narinfos, with the factor that stories allow.
    #[must_use]
    pub fn narinfo_slowest_max(&self) -> Duration {
        promised(Duration::from_millis(self.config.narinfo_deadline_ms.into()))
    }

    /// The substituting client of this machine: its own store, its own gateway, its own trusted keys.
    pub fn realise(&self, paths: &[String]) -> Finished {
        self.store.realise(paths, self.gateway(), &self.config.trusted_public_keys)
    }

    /// `nix-build` on this machine, with its gateway as the only substituter and without `fallback`.
    pub fn nix_build(&self, attribute: &str) -> Finished {
        self.store.nix_build(attribute, self.gateway(), &self.config.trusted_public_keys)
    }

    /// Runs `narmesh --config … arguments`.
    pub fn narmesh(&self, arguments: &[&str]) -> Finished {
        finish(Command::new(narmesh_binary()).arg("--config").arg(self.config_file()).args(arguments))
    }

    /// Sends a signal to the daemon that this node started.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("our own child, not yet waited for");
    }

    /// Ends the daemon at once, as a power cut does.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_ended();
    }

    /// Asks the daemon to end, and waits for it.
    ///
    /// # Panics
    /// When it has not ended after ten times the ten seconds that bodies are given.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_ended()
    }

    /// Waits for the end of the daemon.
    ///
    /// # Panics
    /// As [`TestNode::terminate`].
    #[track_caller]
    pub fn wait_ended(&mut self) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("runs");
        wait_for(&format!("the end of {}", self.name), promised(Duration::from_secs(10)), || {
            daemon.try_wait().expect("our own child")
        })
    }

    /// Writes the configuration and asks the daemon to read it again.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    pub fn reload(&self) {
        self.write_config();
        self.signal(Signal::HUP);
    }

    /// The files in which the daemon keeps what must survive, whether they exist or not.
    #[must_use]
    pub fn state_files(&self) -> Vec<PathBuf> {
        ["state.sqlite", "state.sqlite-wal", "state.sqlite-shm"].map(|name| self.dir.join("state").join(name)).into()
    }

    /// Everything that the daemon has logged, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_file()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Empties the log, so that a later look finds only what came after.
    ///
    /// # Panics
    /// When the file cannot be opened.
    pub fn clear_log(&self) {
        File::create(self.log_file()).expect("our own directory");
    }

    /// Waits until the log has a line that holds all of `words`, in any case.
    ///
    /// # Panics
    /// When it has none in time.
    #[track_caller]
    pub fn wait_logged(&self, words: &[&str]) {
        wait_until(&format!("{} logs {words:?}", self.name), promised(START), || {
            self.log().lines().map(str::to_lowercase).any(|line| words.iter().all(|word| line.contains(word)))
        });
    }

    /// Starts to watch the memory of the daemon.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    #[must_use]
    pub fn watch_memory(&self) -> MemoryPeak {
        MemoryPeak::start(self.pid())
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log.txt")
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // One that has ended already is as good.
            daemon.kill().ok();
            daemon.wait().ok();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            // `print!` is what the test runner captures and shows with a failure.
            #[allow(clippy::print_stdout, reason = "shown with the failed story")]
            {
                println!("--- the last lines of {}'s log\n{}", self.name, tail.join("\n"));
            }
        }
    }
}

fn narinfo_url(path: &str) -> String {
    format!("/{}.narinfo", hash_part(path))
}

/// The public half of a Nix signing key, said by Nix itself.
#[track_caller]
fn public_key_of(secret_key_file: &Path) -> String {
    let mut command = Command::new("nix");
    crate::nix::nix_client_environment(&mut command);
    command.args(["--extra-experimental-features", "nix-command", "key", "convert-secret-to-public"]);
    command.stdin(Stdio::from(File::open(secret_key_file).expect("init made a builder key")));
    let output = command.output().expect("nix starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
