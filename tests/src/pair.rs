//! A holder and a client, on loopback or with a line between them.

use std::time::Duration;

use crate::{HttpAnswer, Link, Network, NixVersion, TestMesh, TestNode, Traffic, get, hash_part, promised, wait_until};

/// Two running nodes are promised to connect and to know each other's summaries within this.
const MEETING: Duration = Duration::from_secs(5);

/// One node that has paths, and one that asks for them.
#[derive(Debug)]
pub struct Pair {
    /// Has what stories put into its store.
    pub holder: TestNode,
    /// Has nothing at first.
    pub client: TestNode,
    /// The network between them; `None` on loopback.
    pub network: Option<Network>,
    /// The directory of both; dropped last.
    pub mesh: TestMesh,
}

impl Pair {
    /// Both on loopback, not yet running.
    #[must_use]
    pub fn on_loopback() -> Self {
        let mesh = TestMesh::new();
        let [holder, client] = ["holder", "client"].map(|name| mesh.node(name));
        let mut pair = Self { holder, client, network: None, mesh };
        TestMesh::introduce(&mut [&mut pair.holder, &mut pair.client]);
        pair
    }

    /// On a network in which the holder's uplink has this rate.
    ///
    /// # Panics
    /// Where networks cannot be made; [`Network::not_permitted`] says why.
    #[must_use]
    pub fn over_a_line(kilobits_per_s: u32) -> Self {
        let network = Network::on_a_bridge(2);
        network.send_real_packets();
        network.set_uplink(0, kilobits_per_s);
        Self::on(network)
    }

    /// In two sites with this delay between them.
    ///
    /// # Panics
    /// As [`Pair::over_a_line`].
    #[must_use]
    pub fn apart(one_way: Duration) -> Self {
        Self::on(Network::in_sites(&[1, 1], Link::PERFECT, Link { delay: one_way, ..Link::PERFECT }, 1))
    }

    fn on(network: Network) -> Self {
        let mut pair = Self::on_loopback();
        pair.holder.live_on(network.machine(0));
        pair.client.live_on(network.machine(1));
        pair.network = Some(network);
        pair
    }

    /// Sets the version of Nix that the client asks with.
    pub fn use_nix(&mut self, version: NixVersion) {
        self.client.store.use_nix(version);
    }

    /// Starts both; returns when the client knows what the holder has.
    ///
    /// # Panics
    /// When that takes much longer than promised.
    pub fn start(&mut self) {
        self.holder.start();
        self.client.learn_address("holder", &self.holder.p2p_address());
        self.client.start();
        self.wait_met();
    }

    /// Kills the client's daemon and starts it again, so that its connection with the holder is new.
    ///
    /// # Panics
    /// As [`Pair::start`].
    pub fn restart_client(&mut self) {
        self.client.kill();
        self.client.start();
        self.wait_met();
    }

    fn wait_met(&self) {
        let paths = self.holder.store.outputs().len() as u64;
        wait_until("the client has met the holder", promised(MEETING), || {
            let status = self.client.status();
            status.connected("holder") && status.summary_paths("holder") == Some(paths)
        });
    }

    /// What the kernel counted on the holder's interface.
    ///
    /// # Panics
    /// On loopback.
    #[must_use]
    pub fn holder_traffic(&self) -> Traffic {
        self.holder.network().expect("a line").traffic()
    }

    /// How many of these paths are in the client's store.
    #[must_use]
    pub fn arrived(&self, paths: &[String]) -> usize {
        let has = self.client.store.outputs();
        paths.iter().filter(|path| has.contains(*path)).count()
    }
}

/// `GET` from a node's gateway, in the network of the node if it has one.
///
/// # Panics
/// When nothing listens there.
#[must_use]
pub fn get_from(node: &TestNode, url: &str) -> HttpAnswer {
    let ask = || get(node.gateway(), url).expect("the gateway answers");
    match node.network() {
        Some(machine) => machine.enter(ask),
        None => ask(),
    }
}

/// The URL path of a store path's narinfo.
#[must_use]
pub fn narinfo_url(path: &str) -> String {
    format!("/{}.narinfo", hash_part(path))
}

/// The URL path of the NAR that a narinfo names; `None` when the answer is not 200.
#[must_use]
pub fn nar_url(narinfo: &HttpAnswer) -> Option<String> {
    let text = narinfo.text();
    let url = text.lines().find_map(|line| line.strip_prefix("URL: "))?;
    (narinfo.status == 200).then(|| format!("/{url}"))
}
