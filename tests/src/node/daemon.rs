//! The running daemon of a machine: started, signalled, ended.

use std::fs::{self, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::TestNode;
use crate::binary::narmesh_binary;
use crate::process::{Costs, MemoryPeak, processor_time, resident_bytes};
use crate::wait::{promised, wait_for};

/// A daemon is promised to answer this soon after its start.
pub(super) const START: Duration = Duration::from_secs(2);

/// Where a daemon really listens.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    listen: String,
    gateway: SocketAddr,
}

impl TestNode {
    /// Writes the configuration, starts the daemon, and returns when it answers. It keeps the ports of its first start on
    /// later ones.
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
        // A reload compares with the file of the start, so the ports enter the file only here.
        if let Some(Ports { listen, gateway }) = &self.ports
            && self.network.is_none()
        {
            self.config.listen = vec![listen.clone()];
            self.config.gateway_listen = gateway.to_string();
        }
        self.write_config();
        self.start_as_written(gateway_socket);
    }

    /// As [`TestNode::start_with`], with the configuration file as it is.
    ///
    /// # Panics
    /// As [`TestNode::start`].
    #[track_caller]
    pub fn start_as_written(&mut self, gateway_socket: Option<OwnedFd>) {
        self.spawn(gateway_socket);
        self.wait_started(START);
    }

    /// Writes the configuration and starts the daemon, without waiting for it: [`TestNode::wait_started`] has to follow.
    ///
    /// # Panics
    /// When it runs already.
    #[track_caller]
    pub fn launch(&mut self) {
        self.write_config();
        self.spawn(None);
    }

    /// Waits until a launched daemon answers.
    ///
    /// # Panics
    /// When it does not within ten times `bound`.
    #[track_caller]
    pub fn wait_started(&mut self, bound: Duration) {
        let (listen, gateway) = wait_for(&format!("{} answers and listens", self.name), promised(bound), || {
            self.assert_runs();
            let status = self.try_status()?;
            let listen = status.0.pointer("/listen/0")?.as_str()?.split("/p2p/").next()?.to_owned();
            Some((listen, status.text("/gateway")?.parse().expect("a socket address")))
        });
        self.ports = Some(Ports { listen, gateway });
    }

    fn spawn(&mut self, gateway_socket: Option<OwnedFd>) {
        assert!(self.daemon.is_none(), "{} runs already", self.name);
        // The daemon dies with the thread that runs its story, however that thread ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        let mut binary = narmesh_binary().to_owned();
        if let Some(user) = self.run_as {
            let id = user.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
            // The build may lie where another user may not read.
            binary = self.dir.join("narmesh");
            if !binary.exists() {
                fs::copy(narmesh_binary(), &binary).expect("a copy of the binary");
            }
            for owned in [".", "node.key", "builder.key", "narmesh.toml", "state"] {
                // The daemon makes those that do not exist yet.
                std::os::unix::fs::chown(self.dir.join(owned), Some(user), Some(user)).ok();
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // Descriptors arrive as standard input and output; the shell moves them to 3 and 4, and `exec` keeps its process id.
        if let Some(socket) = gateway_socket {
            command.stdin(Stdio::from(socket));
            let script = match &self.named_socket {
                None => r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@""#.to_owned(),
                Some((name, socket)) => {
                    command.stdout(Stdio::from(socket.try_clone().expect("a descriptor")));
                    let names = format!("LISTEN_FDNAMES=narmesh.socket:{name}");
                    format!(r#"exec 3<&0 4>&1 0</dev/null 1>&0; LISTEN_PID=$$ LISTEN_FDS=2 {names} exec "$@""#)
                }
            };
            command.args(["sh", "-c", &script, "sh"]);
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log_file()).expect("our own directory");
        let log_filter = std::env::var("NARMESH_LOG").unwrap_or_else(|_| "info,narmesh=debug".to_owned());
        if let Some(machine) = &self.network {
            command.args(machine.command_prefix());
        }
        command.args(&self.run_under);
        command.arg(binary).arg("--config").arg(self.config_file()).arg("run").env("NARMESH_LOG", log_filter);
        if let Some(path) = &self.notify_socket {
            command.env("NOTIFY_SOCKET", path);
        }
        command.stderr(Stdio::from(log));
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

    /// The address of the gateway, where Nix asks.
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
        if let Some(machine) = &self.network {
            let family = if machine.address().is_ipv4() { "ip4" } else { "ip6" };
            return format!("/{family}/{}/tcp/{}", machine.address(), super::LISTEN_PORT);
        }
        self.ports().listen.clone()
    }

    /// [`TestNode::p2p_address`] as a socket address.
    ///
    /// # Panics
    /// Before the first start.
    #[track_caller]
    #[must_use]
    pub fn p2p_socket(&self) -> SocketAddr {
        let address = self.p2p_address();
        let mut parts = address.split('/').skip(2).step_by(2);
        let mut part = || parts.next().expect("/ip4/…/tcp/…");
        let ip: IpAddr = part().parse().expect("an address");
        SocketAddr::new(ip, part().parse().expect("a port"))
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

    /// Kills the daemon at once, as a power cut does.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_ended();
    }

    /// Forgets the port on which peers are met: the next start listens on another one.
    pub fn move_away(&mut self) {
        const ANY_PORT: &str = "/ip4/127.0.0.1/tcp/0";
        self.config.listen = vec![ANY_PORT.to_owned()];
        if let Some(ports) = &mut self.ports {
            ANY_PORT.clone_into(&mut ports.listen);
        }
    }

    /// Asks the daemon to end, and waits for it.
    ///
    /// # Panics
    /// When it has not ended after ten times the ten seconds that bodies on the way are given.
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

    /// Threads of the daemon at the moment.
    #[track_caller]
    #[must_use]
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the daemon runs").count()
    }

    /// Resident memory of the daemon now, in bytes.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        resident_bytes(self.pid())
    }

    /// Processor time of the daemon so far.
    ///
    /// # Panics
    /// When none runs.
    #[track_caller]
    #[must_use]
    pub fn processor_time(&self) -> Duration {
        processor_time(self.pid())
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

    /// What the daemon has used up since its start.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    #[must_use]
    pub fn costs(&self) -> Costs {
        Costs::of(self.pid(), fs::metadata(self.log_file()).map_or(0, |log| log.len()))
    }
}
