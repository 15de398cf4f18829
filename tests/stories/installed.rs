//! The installation in `docs/operations.md`: root runs `init`, and the daemon's own user may write to one directory only.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use narmesh_tests::{Finished, finish, narmesh_binary, promised, repository_root, scratch_dir, wait_until};

/// A daemon is promised to answer this soon after its start.
const START: Duration = Duration::from_secs(2);

/// First what an administrator types, on a machine whose `/etc` and `/var/lib` are copies that only this process tree sees.
/// Then what the unit does: only the state directory is writable, and the daemon has its own user and no other groups.
const INSTALL_AND_RUN: &str = r#"
set -e
for dir in /etc /var/lib; do
  mkdir -p "$SCRATCH/upper$dir" "$SCRATCH/work$dir"
  mount -t overlay overlay -o "lowerdir=$dir,upperdir=$SCRATCH/upper$dir,workdir=$SCRATCH/work$dir" "$dir"
done
if [ "$USER_FIRST" = yes ]; then
  systemd-sysusers "$UNITS/narmesh.sysusers"
  "$NARMESH" init --name one
else
  "$NARMESH" init --name one
  systemd-sysusers "$UNITS/narmesh.sysusers"
  "$NARMESH" init --name one --force
fi
sed -i 's|"/ip4/0.0.0.0/tcp/7280", "/ip6/::/tcp/7280"|"/ip4/127.0.0.1/tcp/0"|; s|127.0.0.1:7281|127.0.0.1:0|' /etc/narmesh/narmesh.toml
mount --bind /var/lib/narmesh /var/lib/narmesh
for dir in / /etc /var/lib; do mount -o remount,bind,ro "$dir"; done
umask 0077
exec setpriv --reuid narmesh --regid narmesh --clear-groups --no-new-privs "$NARMESH" run
"#;

/// A daemon in a mount namespace of its own.
struct Installed(Child);

impl Installed {
    fn start(scratch: &Path, user_first: bool) -> Self {
        let binary = scratch.join("narmesh");
        fs::copy(narmesh_binary(), &binary).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", INSTALL_AND_RUN]);
        command.env("SCRATCH", scratch).env("NARMESH", &binary);
        command.env("USER_FIRST", if user_first { "yes" } else { "no" });
        command.env("UNITS", repository_root().join("contrib/systemd"));
        let log = fs::File::create(scratch.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(command.spawn().unwrap())
    }

    /// Runs a command on that machine as the user and group of these ids.
    fn run(&self, ids: (&str, &str), command: &[&str]) -> Finished {
        let pid = self.0.id().to_string();
        let mut entered = Command::new("nsenter");
        entered.args(["--target", &pid, "--mount", "setpriv", "--reuid", ids.0, "--regid", ids.1, "--clear-groups"]);
        finish(entered.args(command))
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // It may have ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_unit_can_read_and_write_what_init_creates() {
    for user_first in [true, false] {
        let scratch = scratch_dir("installed");
        let binary = scratch.path().join("narmesh");
        let mut daemon = Installed::start(scratch.path(), user_first);
        let status = [binary.to_str().unwrap(), "status", "--json"];
        let log = || fs::read_to_string(scratch.path().join("log")).unwrap();
        wait_until("the daemon answers root", promised(START), || {
            assert!(daemon.0.try_wait().unwrap().is_none(), "it ended:\n{}", log());
            daemon.run(("0", "0"), &status).status.success()
        });
        // The control socket is for the group, and for nobody else.
        daemon.run(("nobody", "narmesh"), &status).expect_success("status for a member of the group");
        let refused = daemon.run(("nobody", "nogroup"), &status).expect_failure("status for anybody");
        assert!(refused.contains("ermission"), "{refused}");

        let facts = |path: &str| {
            let said = daemon.run(("0", "0"), &["stat", "-c", "%U:%G %a", path]);
            said.expect_success(path)
        };
        assert_eq!(facts("/etc/narmesh"), "root:narmesh 750");
        assert_eq!(facts("/etc/narmesh/narmesh.toml"), "root:narmesh 640");
        for secret in ["/etc/narmesh/node.key", "/etc/narmesh/builder.key"] {
            assert_eq!(facts(secret), "narmesh:narmesh 600");
        }
        assert_eq!(facts("/var/lib/narmesh"), "narmesh:narmesh 750");
        assert_eq!(facts("/var/lib/narmesh/control.sock"), "narmesh:narmesh 660");
        assert_eq!(facts("/var/lib/narmesh/state.sqlite"), "narmesh:narmesh 600");
    }
    // The real `/var/lib` was left alone.
    assert!(!Path::new("/var/lib/narmesh/state.sqlite").exists());
}

#[test]
fn init_gives_its_files_to_the_user_asked_for() {
    let scratch = scratch_dir("given");
    let dir = scratch.path().join("conf");
    let init = |arguments: &[&str]| {
        finish(Command::new(narmesh_binary()).args(["init", "--name", "one", "--dir"]).arg(&dir).args(arguments))
    };
    let said = init(&["--user", "no-such-user"]).expect_failure("init for nobody known");
    assert!(said.contains("no-such-user"), "{said}");
    let said = init(&["--user", "nobody"]).expect_success("init");
    assert!(said.contains("nobody"), "{said}");
    for (file, mode) in [("node.key", 0o600), ("builder.key", 0o600), ("state", 0o750)] {
        use std::os::unix::fs::MetadataExt as _;
        let facts = fs::metadata(dir.join(file)).unwrap();
        assert_eq!((facts.uid(), facts.permissions().mode() & 0o7777), (65_534, mode), "{file}");
    }
}

/// What certbot calls when it has renewed a certificate, on a machine with the user of the units.
const RENEW: &str = r#"
set -e
mkdir -p "$SCRATCH/upper" "$SCRATCH/work"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$SCRATCH/upper,workdir=$SCRATCH/work" /etc
systemd-sysusers "$UNITS/narmesh.sysusers"
sh -c "$HOOK"
stat -c '%U:%G %a %n' /etc/narmesh/tls/*
"#;

#[test]
fn a_renewed_certificate_is_copied_by_the_command_of_the_document() {
    let scratch = scratch_dir("renewed");
    let text = fs::read_to_string(repository_root().join("docs/operations.md")).unwrap();
    let hook = text.lines().find(|line| line.starts_with("install -D -o narmesh")).unwrap();
    for file in ["fullchain.pem", "privkey.pem"] {
        fs::write(scratch.path().join(file), file).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", RENEW]).env("HOOK", hook).env("SCRATCH", scratch.path());
    command.env("UNITS", repository_root().join("contrib/systemd")).env("RENEWED_LINEAGE", scratch.path());
    assert_eq!(
        finish(&mut command).expect_success(hook).trim(),
        "narmesh:narmesh 600 /etc/narmesh/tls/fullchain.pem\nnarmesh:narmesh 600 /etc/narmesh/tls/privkey.pem"
    );
    let copied = fs::read_to_string(scratch.path().join("upper/narmesh/tls/privkey.pem")).unwrap();
    assert_eq!(copied, "privkey.pem");
}
