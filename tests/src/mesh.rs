//! The surroundings of one story: a temporary directory, and nodes in it.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::nix::NixStoreFixture;
use crate::node::TestNode;
use crate::wait::{promised, wait_until};

/// Two running nodes are promised to connect and exchange summaries within this.
const MEETING: Duration = Duration::from_secs(5);

/// The nodes of one story, under one temporary directory that is removed with it.
#[derive(Debug)]
pub struct TestMesh {
    dir: TempDir,
}

impl TestMesh {
    /// An empty mesh.
    ///
    /// # Panics
    /// When the temporary directory cannot be made, or the binary does not build.
    #[must_use]
    pub fn new() -> Self {
        // Built first, so that no timeout of the story has to allow for a compiler.
        let _binary = crate::narmesh_binary();
        Self { dir: scratch_dir("mesh") }
    }

    /// The directory of this mesh.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A node that has keys and an empty chroot store of its own, knows nobody, and does not run yet.
    #[must_use]
    pub fn node(&self, name: &str) -> TestNode {
        let dir = self.dir.path().join(name);
        let store = NixStoreFixture::chroot(&dir);
        TestNode::init(name, &dir, store)
    }

    /// A node with a store that the caller made.
    #[must_use]
    pub fn node_with_store(&self, name: &str, store: NixStoreFixture) -> TestNode {
        TestNode::init(name, &self.dir.path().join(name), store)
    }

    /// Starts `nodes` so that everyone allows and trusts everyone, each later one knows the address of each earlier
    /// one, and returns when all have connected and hold each other's summaries.
    ///
    /// # Panics
    /// When that takes ten times as long as promised.
    #[track_caller]
    pub fn start_all(nodes: &mut [&mut TestNode]) {
        Self::introduce(nodes);
        Self::start_introduced(nodes);
    }

    /// As [`TestMesh::start_all`], for nodes that were introduced already.
    ///
    /// # Panics
    /// As [`TestMesh::start_all`].
    #[track_caller]
    pub fn start_introduced(nodes: &mut [&mut TestNode]) {
        for place in 0..nodes.len() {
            let (earlier, rest) = nodes.split_at_mut(place);
            if let Some(node) = rest.first_mut() {
                for known in earlier {
                    node.learn_address(&known.name, &known.p2p_address());
                }
                node.start();
            }
        }
        Self::wait_met(nodes);
    }

    /// Has every node allow and trust every other; no node has an address of another yet.
    pub fn introduce(nodes: &mut [&mut TestNode]) {
        let cards: Vec<_> = nodes.iter().map(|node| node.card()).collect();
        for node in nodes.iter_mut() {
            for card in &cards {
                if card.name != node.name {
                    node.allow(card);
                }
            }
        }
    }

    /// Waits until all nodes are connected to all others and hold their summaries.
    ///
    /// # Panics
    /// As [`TestMesh::start_all`].
    #[track_caller]
    pub fn wait_met(nodes: &[&mut TestNode]) {
        for node in nodes {
            for other in nodes.iter().filter(|other| other.name != node.name) {
                wait_until(&format!("{} has met {}", node.name, other.name), promised(MEETING), || {
                    let status = node.status();
                    status.connected(&other.name) && status.summary_paths(&other.name).is_some()
                });
            }
        }
    }
}

impl Default for TestMesh {
    fn default() -> Self {
        Self::new()
    }
}

/// A temporary directory that anyone may look into: builders and unprivileged daemons run as other users.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn scratch_dir(name: &str) -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let parent: PathBuf = env::temp_dir();
    let mut builder = tempfile::Builder::new();
    builder.prefix("narmesh-").suffix(name).permissions(std::fs::Permissions::from_mode(0o755));
    if env::var_os("NARMESH_TESTS_KEEP").is_some() {
        builder.disable_cleanup(true);
    }
    builder.tempdir_in(parent).expect("a temporary directory")
}
