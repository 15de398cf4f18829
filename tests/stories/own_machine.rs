//! A machine of its own on this one: its own network, and copies of `/etc` and `/var/lib` that nobody else sees.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use narmesh_tests::{promised, wait_until};

/// A namespace is made within this.
const MADE: Duration = Duration::from_secs(1);

/// First what it has of this machine, then a line that leads nowhere.
const MAKE: &str = r#"
set -e
mount -t sysfs sysfs /sys
for dir in /etc /var/lib; do
  mkdir -p "$0/upper$dir" "$0/work$dir"
  mount -t overlay overlay -o "lowerdir=$dir,upperdir=$0/upper$dir,workdir=$0/work$dir" "$dir"
done
ip link set lo up
ip link add out type veth peer name far
ip link set far up
ip address add 192.0.2.1/24 dev out
ip link set out up
exec sleep infinity
"#;

/// The machine; it ends with its story.
pub(crate) struct OwnMachine {
    holder: Child,
}

impl OwnMachine {
    /// Makes one, with its files in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c", MAKE]).arg(dir);
        let holder = command.stdin(Stdio::null()).spawn().unwrap();
        let name = format!("/proc/{}/comm", holder.id());
        wait_until("the machine is there", promised(MADE), || {
            fs::read_to_string(&name).is_ok_and(|name| name.trim() == "sleep")
        });
        Self { holder }
    }

    /// The words before a program that run it there.
    pub(crate) fn prefix(&self) -> Vec<String> {
        ["nsenter", "--target", &self.holder.id().to_string(), "--net", "--mount"].map(str::to_owned).into()
    }

    /// A command there.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(&self.prefix()[1..]).arg(program);
        command
    }
}

impl Drop for OwnMachine {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}
