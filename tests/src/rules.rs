//! The builders and the quorum policy of a configuration, and attestations carried from node to node as files.

use std::fs;
use std::time::Duration;

use crate::mesh::TestMesh;
use crate::node::TestNode;
use crate::wait::{promised, wait_for};

/// A build is promised to be attested this soon after Nix registered it.
const ATTESTED: Duration = Duration::from_secs(1);

/// Imported attestations are promised to be known this soon.
const LEARNT: Duration = Duration::from_secs(2);

/// The sections `[quorum]`, `[[builder]]` and `[[revoked_builders]]` of a configuration.
#[derive(Debug, Clone)]
pub struct Rules {
    mode: &'static str,
    k: usize,
    builders: String,
    revoked: String,
    quorum: String,
}

impl Rules {
    /// At least `k` of these builders must agree; each counts by itself.
    #[must_use]
    pub fn new(mode: &'static str, k: usize, builders: &[&TestNode]) -> Self {
        let builder =
            |node: &&TestNode| format!("[[builder]]\nname = '{}'\npublic_key = '{}'\n", node.name, node.builder_key());
        Self {
            mode,
            k,
            builders: builders.iter().map(builder).collect(),
            revoked: String::new(),
            quorum: String::new(),
        }
    }

    /// As [`Rules::new`], with `mode = "require"`.
    #[must_use]
    pub fn require(k: usize, builders: &[&TestNode]) -> Self {
        Self::new("require", k, builders)
    }

    /// Revokes the builder key of `node`, with everything that it ever signed.
    #[must_use]
    pub fn revoke(mut self, node: &TestNode) -> Self {
        let key = node.builder_key();
        self.revoked += &format!("[[revoked_builders]]\npublic_key = '{key}'\nfrom = 2020-01-01\nwhy = 'stolen'\n");
        self
    }

    /// Names the peer that is each builder's machine, so that its attestations travel. `own` is the node that follows these
    /// rules; as a builder it gets no peer.
    #[must_use]
    pub fn told_by_their_machines(mut self, own: &str) -> Self {
        let named = |line: &str| match line.strip_prefix("name = ") {
            Some(name) if name != format!("'{own}'") => format!("{line}\npeer = {name}\n"),
            Some(_) | None => format!("{line}\n"),
        };
        self.builders = self.builders.lines().map(named).collect();
        self
    }

    /// `node` signs only its own builds: its bare signatures count.
    #[must_use]
    pub fn signs_only_own_builds(mut self, node: &TestNode) -> Self {
        let named = format!("name = '{}'\n", node.name);
        self.builders = self.builders.replace(&named, &format!("{named}signs_only_own_builds = true\n"));
        self
    }

    /// Adds lines to `[quorum]`.
    #[must_use]
    pub fn with(mut self, lines: &str) -> Self {
        self.quorum += lines;
        self.quorum.push('\n');
        self
    }

    /// The text for the end of the configuration file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let Self { mode, k, builders, revoked, quorum } = self;
        format!("\n[quorum]\nmode = '{mode}'\nk = {k}\n{quorum}{builders}{revoked}")
    }
}

impl TestNode {
    /// Gives this node a policy, from the next start or reload on.
    pub fn follow(&mut self, rules: &Rules) {
        self.config.more = rules.to_toml();
    }

    /// The public key of the gateway, as `status` shows it.
    ///
    /// # Panics
    /// When no daemon runs that requires agreement.
    #[track_caller]
    #[must_use]
    pub fn gateway_key(&self) -> String {
        self.status().text("/gateway_public_key").expect("a policy that requires agreement").to_owned()
    }

    /// From now on, its Nix trusts the gateway key and no other.
    ///
    /// # Panics
    /// As [`TestNode::gateway_key`].
    #[track_caller]
    pub fn trust_the_gateway_alone(&mut self) {
        self.nix_keys = Some(vec![self.gateway_key()]);
    }

    /// Waits until a running builder has attested `path`; returns all its attestations.
    ///
    /// # Panics
    /// When that takes ten times as long as promised.
    #[track_caller]
    #[must_use]
    pub fn attested(&self, path: &str) -> String {
        wait_for("the build is attested", promised(ATTESTED), || {
            (self.narmesh(&["quorum", "export", path]).stdout.lines().count() > 1).then_some(())
        });
        self.narmesh(&["quorum", "export"]).expect_success("export") + "\n"
    }

    /// Imports attestations from a file, as an operator does who was sent one.
    ///
    /// # Panics
    /// When they are refused.
    #[track_caller]
    pub fn import(&self, attestations: &str) {
        let file = self.dir().join("attestations");
        fs::write(&file, attestations).expect("our own directory");
        self.narmesh(&["quorum", "import", file.to_str().expect("UTF-8")]).expect_success("import");
    }
}

/// Builders that each built and attested the same paths, and a client that judges by them. All of them run, connected.
#[derive(Debug)]
pub struct Jury {
    /// In the order of the names given.
    pub builders: Vec<TestNode>,
    /// Its daemon trusts no public key; its Nix trusts the gateway key alone, if there is one.
    pub client: TestNode,
    /// The paths that each builder built, in the order of the attributes; their contents may differ between builders.
    pub paths: Vec<String>,
}

impl Jury {
    /// Builders with these `names` that build these `attributes`, and a client that follows `rules` and knows what they
    /// attest.
    ///
    /// # Panics
    /// When any of that takes ten times as long as promised.
    #[track_caller]
    #[must_use]
    pub fn new(
        mesh: &TestMesh,
        names: &[&str],
        attributes: &[&str],
        rules: impl FnOnce(&[&TestNode]) -> Rules,
    ) -> Self {
        let mut jury = Self::unheard(mesh, names, attributes, rules);
        for builder in &jury.builders {
            let last = jury.paths.last().expect("something was built");
            jury.client.import(&builder.attested(last));
        }
        jury.client.wait_status("the attestations are known", LEARNT, |status| {
            status.number("/quorum/attestations") >= (names.len() * attributes.len()) as u64
        });
        if jury.client.status().text("/gateway_public_key").is_some() {
            jury.client.trust_the_gateway_alone();
        }
        jury
    }

    /// As [`Jury::new`], but the client was told of no attestation.
    ///
    /// # Panics
    /// As [`Jury::new`].
    #[track_caller]
    #[must_use]
    pub fn unheard(
        mesh: &TestMesh,
        names: &[&str],
        attributes: &[&str],
        rules: impl FnOnce(&[&TestNode]) -> Rules,
    ) -> Self {
        let mut builders: Vec<_> = names.iter().map(|name| mesh.node(name)).collect();
        let mut paths = Vec::new();
        for builder in &mut builders {
            paths = attributes.iter().map(|attribute| builder.store.build_one(attribute)).collect();
        }
        let mut client = mesh.node("client");
        let mut all: Vec<_> = builders.iter_mut().chain([&mut client]).collect();
        TestMesh::introduce(&mut all);
        client.config.trusted_public_keys.clear();
        client.follow(&rules(&builders.iter().collect::<Vec<_>>()));
        TestMesh::start_introduced(&mut builders.iter_mut().chain([&mut client]).collect::<Vec<_>>());
        for builder in &builders {
            builder.wait_all_advertised(&[&client]);
        }
        Self { builders, client, paths }
    }
}
