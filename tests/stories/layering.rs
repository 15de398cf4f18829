//! Compares the arrows between crates in `docs/architecture.md` with what Cargo says, so that the map stays true.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use narmesh_tests::repository_root;

/// For each of our crates (rooms), which of our other crates it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("narmesh-protocol", &[]),
    ("narmesh-machine", &[]),
    ("narmesh-gossip", &["narmesh-protocol", "narmesh-machine"]),
    ("narmesh-quorum", &["narmesh-protocol", "narmesh-machine"]),
    ("narmesh-roster", &["narmesh-protocol", "narmesh-machine"]),
    ("narmesh-store", &["narmesh-protocol"]),
    ("narmesh-resolver", &["narmesh-protocol", "narmesh-quorum", "narmesh-store"]),
    (
        "narmesh-mesh",
        &["narmesh-protocol", "narmesh-machine", "narmesh-gossip", "narmesh-quorum", "narmesh-roster", "narmesh-store"],
    ),
    ("narmesh-lan", &["narmesh-machine"]),
    ("narmesh-http-gateway", &["narmesh-protocol"]),
    ("narmesh-upstream", &["narmesh-protocol"]),
    (
        "narmesh-simulation",
        &["narmesh-gossip", "narmesh-quorum", "narmesh-roster", "narmesh-protocol", "narmesh-machine"],
    ),
    // It runs the binary, as a user does.
    ("narmesh-demo", &[]),
    (
        "narmesh",
        &[
            "narmesh-demo",
            "narmesh-protocol",
            "narmesh-gossip",
            "narmesh-quorum",
            "narmesh-store",
            "narmesh-resolver",
            "narmesh-mesh",
            "narmesh-lan",
            "narmesh-http-gateway",
            "narmesh-upstream",
        ],
    ),
    (
        "narmesh-bench",
        &[
            "narmesh-protocol",
            "narmesh-gossip",
            "narmesh-quorum",
            "narmesh-store",
            "narmesh-mesh",
            "narmesh-http-gateway",
            "narmesh",
            // It gives a real Nix a store and an environment of its own.
            "narmesh-tests",
        ],
    ),
    // It fuzzes everything that takes foreign bytes.
    (
        "narmesh-fuzz",
        &["narmesh-protocol", "narmesh-gossip", "narmesh-quorum", "narmesh-http-gateway", "narmesh-lan", "narmesh"],
    ),
    // The stories see the binary from outside.
    ("narmesh-tests", &[]),
];

/// For each of our crates, which libraries it must not use, not even indirectly.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("narmesh-protocol", &["tokio", "libp2p", "libp2p-swarm", "axum", "hyper", "rusqlite", "futures"]),
    (
        "narmesh-machine",
        &["tokio", "libp2p", "libp2p-swarm", "axum", "hyper", "rusqlite", "libp2p-identity", "futures"],
    ),
    ("narmesh-gossip", &["tokio", "libp2p", "libp2p-swarm", "axum", "hyper", "rusqlite"]),
    ("narmesh-quorum", &["tokio", "libp2p", "libp2p-swarm", "axum", "hyper", "rusqlite"]),
    ("narmesh-roster", &["tokio", "libp2p", "libp2p-swarm", "axum", "hyper", "rusqlite"]),
    ("narmesh-store", &["tokio", "libp2p", "libp2p-swarm", "axum", "hyper"]),
    // It knows sources of any kind, whatever protocol they speak; SQLite belongs to the store.
    ("narmesh-resolver", &["libp2p", "libp2p-swarm", "narmesh-http-gateway", "axum", "hyper"]),
    // SQLite belongs to the store. Cargo counts hyper in for a part of libp2p that is not built.
    ("narmesh-mesh", &["narmesh-http-gateway", "axum", "clap", "toml"]),
    ("narmesh-lan", &["narmesh-protocol", "libp2p", "libp2p-swarm", "axum", "hyper", "rusqlite"]),
    ("narmesh-http-gateway", &["libp2p", "libp2p-swarm", "rusqlite"]),
    ("narmesh-upstream", &["libp2p", "libp2p-swarm", "axum", "rusqlite"]),
    ("narmesh-simulation", &["tokio", "libp2p", "libp2p-swarm", "axum", "hyper", "rusqlite"]),
    ("narmesh-demo", &["tokio", "libp2p", "libp2p-swarm", "axum", "hyper", "rusqlite"]),
    ("narmesh-tests", &["libp2p", "axum", "rusqlite"]),
];

fn metadata() -> Metadata {
    MetadataCommand::new().current_dir(repository_root()).other_options(vec!["--locked".to_owned()]).exec().unwrap()
}

fn rooms(metadata: &Metadata) -> BTreeMap<String, &Package> {
    metadata.workspace_packages().into_iter().map(|package| (package.name.to_string(), package)).collect()
}

#[test]
fn every_crate_is_on_the_map_and_uses_only_crates_that_its_arrows_allow() {
    let metadata = metadata();
    let rooms = rooms(&metadata);
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for (name, package) in &rooms {
        let allowed = arrows.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not on the map of rooms"));
        for dependency in &package.dependencies {
            let ours = rooms.contains_key(&dependency.name);
            // The tests of a crate may use other crates; its shipped code may not.
            let shipped = dependency.kind != DependencyKind::Development;
            assert!(
                !ours || !shipped || allowed.contains(&dependency.name.as_str()),
                "{name} must not use {}",
                dependency.name
            );
        }
    }
}

#[test]
fn the_rooms_of_the_document_are_the_crates() {
    let metadata = metadata();
    let folder = |package: &&Package| {
        let folder = package.manifest_path.parent().unwrap().strip_prefix(repository_root()).unwrap();
        format!("{folder}/")
    };
    let crates: BTreeSet<String> = rooms(&metadata).values().map(folder).collect();
    let document = std::fs::read_to_string(repository_root().join("docs/architecture.md")).unwrap();
    let table = document.lines().skip_while(|line| *line != "## Rooms").skip_while(|line| !line.starts_with("| `"));
    let named = table.map_while(|line| line.strip_prefix("| `")?.split_once('`')).map(|(room, _)| room.to_owned());
    assert_eq!(named.collect::<BTreeSet<_>>(), crates);
}

#[test]
fn no_crate_reaches_a_library_that_is_forbidden_to_it() {
    let metadata = metadata();
    let rooms = rooms(&metadata);
    for (name, forbidden) in FORBIDDEN {
        let package = rooms[*name];
        let reached = reachable(&metadata, package);
        for library in *forbidden {
            assert!(!reached.contains(*library), "{name} reaches {library}");
        }
    }
    // The graph really is walked: the daemon does reach both.
    let daemon = reachable(&metadata, rooms["narmesh"]);
    assert!(daemon.contains("tokio") && daemon.contains("libp2p-swarm"));
}

/// The names of all packages that `package` is built from, without its tests.
fn reachable(metadata: &Metadata, package: &Package) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().expect("cargo resolved the graph");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut seen = BTreeSet::new();
    let mut open = vec![&package.id];
    while let Some(id) = open.pop() {
        for dependency in &nodes[id].deps {
            let shipped = dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
            if shipped && seen.insert(&dependency.pkg) {
                open.push(&dependency.pkg);
            }
        }
    }
    seen.into_iter().map(|id| metadata[id].name.to_string()).collect()
}

#[test]
fn the_workspace_lints_apply_to_every_crate() {
    let metadata = metadata();
    for (name, package) in rooms(&metadata) {
        let manifest: toml::Table = std::fs::read_to_string(&package.manifest_path).unwrap().parse().unwrap();
        assert_eq!(manifest["lints"]["workspace"], toml::Value::Boolean(true), "{name}");
    }
}
