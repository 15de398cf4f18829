//! A machine with nothing but Debian and its Nix: a root directory, a host name and a network of its own, so that commands can
//! be typed as a document has them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::binary::{narmesh_binary, repository_root};
use crate::network::Namespace;
use crate::nix::NixVersion;
use crate::process::{Finished, finish};
use crate::wait::{promised, wait_until};

/// A daemon is promised to listen within this.
const START: Duration = Duration::from_secs(2);

/// Makes the root and stays, because it alone holds the mounts: an overlay in memory over the root of a Debian, which nobody
/// changes. `$1` is that root, `$2` an empty directory, `$3` the host name, `$4` the program under test.
const HOLDER: &str = r#"
set -eu
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
hostname "$3"
cd "$2/root"
touch .nix-root
mkdir -p etc/nix srv/cache usr/local/bin
rm -rf etc/narmesh var/lib/narmesh nix
cp "$4" usr/local/bin/narmesh
echo 'StoreDir: /nix/store' > srv/cache/nix-cache-info
# Nobody builds as another user here, nothing is asked of the internet, and builds have the shell that most Nix have.
printf '%s\n' 'build-users-group =' 'substituters = file:///srv/cache' 'sandbox-paths = /bin/sh=/usr/bin/busybox' > etc/nix/nix.conf
echo ready
exec sleep infinity
"#;

/// A machine as it is before narmesh is set up on it. It ends with the value, and so do the daemons on it.
#[derive(Debug)]
pub struct BareMachine {
    holder: Child,
    namespace: Namespace,
    root: String,
    daemons: Vec<Child>,
}

impl BareMachine {
    /// A machine on this place of a network, with the Nix that the environment names. `dir` is an empty directory below the
    /// temporary one.
    ///
    /// # Panics
    /// When the system refuses; it needs root.
    #[must_use]
    pub fn new(namespace: &Namespace, name: &str, dir: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "--propagation", "private", "bash", "-c", HOLDER, "holder"]);
        command.arg(NixVersion::from_environment().root()).arg(dir).arg(name).arg(narmesh_binary());
        let mut holder = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("unshare starts");
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says something, or ends");
        assert_eq!(line.trim(), "ready", "the root of {name}");
        let root = dir.join("root").display().to_string();
        Self { holder, namespace: namespace.clone(), root, daemons: Vec::new() }
    }

    fn command(&self, line: &str) -> Command {
        let held = |space: &str| format!("/proc/{}/ns/{space}", self.holder.id());
        let mut command = self.namespace.command("nsenter");
        command.arg(format!("--mount={}", held("mnt"))).arg(format!("--uts={}", held("uts")));
        command.arg(repository_root().join("tests/nix-root.sh")).args(["run", &self.root, "bash", "-c", line]);
        command.env_clear().env("SHARE", "").env("HOME", "/root").env("USER", "root");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    }

    /// What somebody types at this machine, as root.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    #[must_use]
    pub fn run(&self, line: &str) -> Finished {
        finish(&mut self.command(line))
    }

    /// Starts a daemon, and waits until its gateway listens.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start(&mut self, line: &str) {
        let daemon = self.command(&format!("exec {line} 2>> /var/log/narmesh.log")).spawn().expect("nsenter starts");
        self.daemons.push(daemon);
        let look = || self.run("narmesh status").status.success();
        wait_until(&format!("{line} answers"), promised(START), look);
    }
}

impl Drop for BareMachine {
    fn drop(&mut self) {
        for child in self.daemons.iter_mut().chain([&mut self.holder]) {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }
}
