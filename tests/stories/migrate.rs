//! `docs/migrate.md`: its commands, there and back, with a plain binary cache in place of the other service.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use narmesh_tests::{
    CHROOT_NIX_CONF, Finished, NixStoreFixture, TestMesh, finish, narmesh_binary, promised, repository_root,
    scratch_dir, wait_until,
};

use crate::own_machine::OwnMachine;

/// A daemon is promised to answer this soon after its start.
const START: Duration = Duration::from_secs(2);

fn document() -> String {
    fs::read_to_string(repository_root().join("docs/migrate.md")).unwrap()
}

/// The fenced blocks of this language in a text.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let begin = format!("```{language}\n");
    text.split(begin.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// The part of the document under this heading.
fn section<'t>(text: &'t str, heading: &str) -> &'t str {
    let rest = text.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    rest.split("\n## ").next().unwrap()
}

/// The commands of a block, without what is said of them.
fn commands(block: &str) -> Vec<&str> {
    block.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|line| !line.is_empty()).collect()
}

/// A machine on which a person types.
struct Migrating {
    machine: OwnMachine,
    bin: String,
    running: Vec<Child>,
}

impl Migrating {
    fn new(mesh: &TestMesh) -> Self {
        let bin = mesh.path().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(narmesh_binary(), bin.join("narmesh")).unwrap();
        let machine = OwnMachine::new(&mesh.path().join("machine"));
        Self { machine, bin: bin.display().to_string(), running: Vec::new() }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = self.machine.command("sh");
        let path = format!("{}:{}", self.bin, std::env::var("PATH").unwrap());
        command.args(["-c", line]).env("PATH", path).env("HOME", "/var/lib/root").env_remove("NIX_CONF_DIR");
        command
    }

    fn run(&self, line: &str) -> Finished {
        finish(&mut self.command(line))
    }

    fn succeed(&self, line: &str) -> String {
        self.run(line).expect_success(line)
    }

    /// Starts what does not end by itself.
    fn start(&mut self, line: &str) {
        let mut command = self.machine.command("setpriv");
        let path = format!("{}:{}", self.bin, std::env::var("PATH").unwrap());
        command.args(["--pdeathsig", "KILL", "sh", "-c", &format!("exec {line}")]).env("PATH", path);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.running.push(child);
    }

    /// Ends what was started last.
    fn stop(&mut self) {
        let mut child = self.running.pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn write(&self, file: &str, text: &str) {
        let mut command = self.command(&format!("mkdir -p \"$(dirname {file})\" && cat > {file}"));
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{file}");
    }

    /// Substitutes a path into a store of its own, with the nix.conf of the machine.
    fn realise(&self, root: &Path, path: &str) -> Finished {
        self.run(&format!("nix-store --store {} --option max-jobs 0 --realise {path}", root.display()))
    }
}

impl Drop for Migrating {
    fn drop(&mut self) {
        while !self.running.is_empty() {
            self.stop();
        }
    }
}

fn new_key(dir: &Path, name: &str) -> String {
    let [secret, public] = ["secret", "public"].map(|half| dir.join(format!("{name}.{half}")));
    let mut command = Command::new("nix-store");
    command.args(["--generate-binary-cache-key", name]).args([&secret, &public]);
    finish(&mut command).expect_success("a key");
    fs::read_to_string(public).unwrap()
}

#[test]
fn machine_takes_over_its_cache_and_goes_back_by_the_commands_as_written() {
    let mesh = TestMesh::new();
    let mut migrating = Migrating::new(&mesh);
    let builder = NixStoreFixture::chroot(&mesh.path().join("builder"));
    let (lib, tool) = (builder.build_one("lib"), builder.build_fresh("tool"));
    let key = new_key(mesh.path(), "other-cache-1");
    let cache = mesh.path().join("cache");
    let to = format!(
        "file://{}?compression=none&secret-key={}",
        cache.display(),
        mesh.path().join("other-cache-1.secret").display()
    );
    let mut copy = builder.nix("nix");
    copy.args(["--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", "--to", &to, &lib, &tool]);
    finish(&mut copy).expect_success("nix copy");
    migrating.start(&format!("busybox httpd -f -p 127.0.0.1:8080 -h {}", cache.display()));
    let before = format!("{CHROOT_NIX_CONF}substituters = http://127.0.0.1:8080\ntrusted-public-keys = {key}\n");
    migrating.write("/etc/nix/nix.conf", &before);
    wait_until("the cache answers", promised(START), || {
        migrating.realise(&mesh.path().join("first"), &lib).status.success()
    });

    let text = document();
    let steps = section(&text, "The steps for all");
    let [prepare, look, back] = blocks(steps, "sh")[..] else { panic!("other blocks than this test knows: {steps}") };
    let prepare = commands(prepare);
    let (run, prepare) = prepare.split_last().unwrap();
    let said: Vec<_> = prepare.iter().map(|line| migrating.succeed(line)).collect();
    assert!(said[1].contains("http://127.0.0.1:8080") && said[2].contains("reachable"), "{said:#?}");
    migrating.start(run);

    // The lines that `init` printed.
    let settings: Vec<_> =
        said[1].lines().filter(|line| line.contains(" = ") && !line.contains(['"', '[', '#'])).collect();
    let has = |start: &str| settings.iter().any(|line| line.starts_with(start));
    assert!(
        has("substituters = http://127.0.0.1:7281") && has("trusted-public-keys = narmesh-gateway-"),
        "{settings:?}"
    );
    migrating.write("/etc/nix/nix.conf", &format!("{CHROOT_NIX_CONF}{}\n", settings.join("\n")));
    wait_until("the daemon runs", promised(START), || migrating.run("narmesh status").status.success());
    let looked = migrating.succeed(commands(look)[0]);
    assert!(looked.contains("0 errors"), "{looked}");
    let substituted = migrating.realise(&mesh.path().join("second"), &lib);
    substituted.expect_success("through narmesh, from the cache");
    let status: serde_json::Value = serde_json::from_str(&migrating.succeed("narmesh status --json")).unwrap();
    assert!(status["upstreams"][0]["bytes_in"].as_u64().unwrap() > 0, "{status:#}");

    // And back, without narmesh.
    migrating.stop();
    for line in commands(back) {
        migrating.succeed(line);
    }
    assert_eq!(migrating.succeed("cat /etc/nix/nix.conf"), before.trim());
    migrating.realise(&mesh.path().join("second"), &tool).expect_success("from the cache again, into the same store");
}

#[test]
fn clients_of_harmonia_and_nix_serve_keep_their_url_and_their_key() {
    let mesh = TestMesh::new();
    let mut migrating = Migrating::new(&mesh);
    let builder = NixStoreFixture::chroot(&mesh.path().join("builder"));
    let lib = builder.build_one("lib");
    let key = new_key(mesh.path(), "cache.lan-1");
    migrating.succeed(&format!(
        "install -D -m 600 {} /var/lib/narmesh/cache.key && echo 192.0.2.1 cache.lan >> /etc/hosts",
        mesh.path().join("cache.lan-1.secret").display()
    ));
    let text = document();
    let block = blocks(section(&text, "harmonia and nix-serve"), "toml")[0];
    let store = format!("\n[store]\nroot = \"{}\"\n", mesh.path().join("builder/root").display());
    migrating.succeed("narmesh init --name one --no-upstreams");
    migrating.write("/etc/narmesh/narmesh.toml", &format!("{block}{store}"));
    migrating.succeed("narmesh check-config");
    migrating.start("narmesh run");
    let client = format!("{CHROOT_NIX_CONF}substituters = http://cache.lan:5000\ntrusted-public-keys = {key}\n");
    migrating.write("/etc/nix/nix.conf", &client);
    wait_until("a client substitutes", promised(START), || {
        migrating.realise(&mesh.path().join("client"), &lib).status.success()
    });
}

#[test]
fn each_configuration_of_the_guide_is_accepted() {
    let scratch = scratch_dir("guide");
    let text = document();
    let blocks = blocks(&text, "toml");
    assert_eq!(blocks.len(), 5);
    for block in blocks {
        let file = scratch.path().join("narmesh.toml");
        fs::write(&file, block).unwrap();
        let mut command = Command::new(narmesh_binary());
        let said = finish(command.arg("--config").arg(&file).args(["check-config", "--offline"]));
        said.expect_success(block);
    }
}
