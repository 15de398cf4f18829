//! Tests the gateway with the real client: `nix-store` and `nix-build` with a store of their own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use narmesh_http_gateway::NoNar;
use narmesh_protocol::{NarHash, NarInfo, NarUrl, NixSecretKey, StoreDir, StorePath};
use tempfile::TempDir;

use crate::client::{TestGateway, pattern};
use crate::memory::{Fault, MemorySubstituter, Nar};

/// Size of the file in the test tree, bytes.
const BLOB_BYTES: usize = 3_000_000;

/// A Nix client with its own store, configuration and lookup cache.
struct Client {
    directory: TempDir,
}

impl Client {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let conf =
            "sandbox = true\nsandbox-fallback = false\nsandbox-paths = /bin/sh=/bin/busybox\nbuild-users-group =\n";
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        std::fs::write(directory.path().join("etc/nix.conf"), conf).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_remove("NIX_REMOTE").env_remove("NIX_PATH").env_remove("http_proxy");
        command
            .env("HOME", self.directory.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("NIX_CONF_DIR", self.path("etc"));
        command
    }

    /// Runs a Nix command with this client's store and the gateway as its only substituter.
    async fn run(&self, gateway: &TestGateway, program: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(program);
        command.args(["--store", &format!("local?root={}", self.path("root").display())]);
        command.args(["--option", "substituters", &format!("http://{}", gateway.address)]);
        command.args(["--option", "trusted-public-keys", &key().public().to_string()]).args(arguments);
        tokio::task::spawn_blocking(move || command.output().expect("nix is installed")).await.unwrap()
    }

    /// The file or directory on disk for a store path.
    fn real(&self, path: &StorePath) -> PathBuf {
        self.path("root/nix/store").join(path.to_string())
    }
}

fn key() -> NixSecretKey {
    NixSecretKey::from_seed("gateway-test-1", &[7; 32]).unwrap()
}

fn dump(path: &Path) -> Vec<u8> {
    let output = Command::new("nix-store").arg("--dump").arg(path).output().expect("nix is installed");
    assert!(output.status.success());
    output.stdout
}

/// A tree with a file, an executable, a symlink and an empty directory, as a NAR made by Nix.
fn tree_nar(client: &Client) -> Vec<u8> {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let tree = client.path("tree");
    std::fs::create_dir_all(tree.join("empty")).unwrap();
    std::fs::write(tree.join("blob"), pattern(BLOB_BYTES)).unwrap();
    std::fs::write(tree.join("run"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(tree.join("run"), std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("blob", tree.join("link")).unwrap();
    dump(&tree)
}

/// A substituter that has `path` with these NAR bytes and a signed narinfo.
fn serving(path: &StorePath, bytes: &[u8], fault: Option<(u64, Fault)>, gone_when_resumed: bool) -> MemorySubstituter {
    let store_dir = StoreDir::parse("/nix/store").unwrap();
    let nar_hash = NarHash(hash(bytes));
    let url = NarUrl::new(path.hash_part(), nar_hash, bytes.len() as u64);
    let mut info = NarInfo {
        path: path.clone(),
        nar_hash,
        nar_size: url.nar_size,
        references: Vec::new(),
        deriver: None,
        signatures: Vec::new(),
        content_address: None,
    };
    info.signatures.push(key().sign(&info.fingerprint(&store_dir)));
    let nar = Nar { fault, none_when_resumed: gone_when_resumed.then_some(NoNar::Gone), ..Nar::good(bytes.to_vec()) };
    MemorySubstituter {
        narinfos: HashMap::from([(path.hash_part(), info.render(&store_dir, &url.to_string()).into())]),
        nars: HashMap::from([(url, nar)]),
        ..MemorySubstituter::default()
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

fn some_path() -> StorePath {
    StorePath::parse("0c0yaa1b2d3f4g5h6i7j8k9l0m1n2p3q-gateway-test").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_substitutes_a_path() {
    let client = Client::new();
    let (path, nar) = (some_path(), tree_nar(&client));
    let gateway = TestGateway::start(serving(&path, &nar, None, false)).await;
    let output = client.run(&gateway, "nix-store", &["--realise", &format!("/nix/store/{path}")]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(dump(&client.real(&path)) == nar, "what Nix unpacked is not what was served");
    assert_eq!(*gateway.substituter.nar_calls.lock().unwrap(), [(0, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_resumes_a_body_that_was_closed_early() {
    let client = Client::new();
    let (path, nar) = (some_path(), tree_nar(&client));
    let gateway = TestGateway::start(serving(&path, &nar, Some((1_000_000, Fault::Abort)), false)).await;
    let output = client.run(&gateway, "nix-store", &["--realise", &format!("/nix/store/{path}")]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(dump(&client.real(&path)) == nar, "what Nix unpacked is not what was served");
    let calls = gateway.substituter.nar_calls.lock().unwrap().clone();
    assert_eq!(calls, [(0, false), (1_000_000, true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_builds_a_path_that_is_gone_when_it_resumes() {
    let client = Client::new();
    let expression = "derivation { name = \"gateway-test\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
                      args = [ \"-c\" \"echo built > $out\" ]; }";
    let output = client
        .command("nix-instantiate")
        .args(["--eval", "--expr", &format!("({expression}).outPath")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let path = StoreDir::parse("/nix/store").unwrap().parse_path(text.trim().trim_matches('"')).unwrap();

    let gateway = TestGateway::start(serving(&path, &tree_nar(&client), Some((1_000_000, Fault::Abort)), true)).await;
    let output = client.run(&gateway, "nix-build", &["--no-out-link", "--expr", expression]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(client.real(&path)).unwrap(), "built\n");
    let calls = gateway.substituter.nar_calls.lock().unwrap().clone();
    assert!(matches!(*calls, [(0, false), (_, true)]), "{calls:?}");
}
