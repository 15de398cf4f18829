//! Fifty real machines of one mesh: how long a new one takes to substitute, and a removed one to be refused.

use std::time::{Duration, Instant};

use narmesh_tests::{Network, TestMesh, TestNode, promised, wait_until};
use serde_json::Value;

use crate::report::Table;

const MACHINES: usize = 50;
/// What the mesh is told is in force everywhere within this.
const HEARD: Duration = Duration::from_secs(2);

fn row(table: &mut Table, what: &str, mut times: Vec<Duration>, target: &str) {
    times.sort_unstable();
    let at = |percent: usize| format!("{} ms", times[(times.len() * percent / 100).min(times.len() - 1)].as_millis());
    table.row(&[what, &at(50), &at(99), target]);
}

/// How long after `begun` each of the machines first saw this.
fn first_seen(machines: &[&TestNode], begun: Instant, what: &str, seen: impl Fn(&TestNode) -> bool) -> Vec<Duration> {
    let mut left = machines.to_vec();
    let mut times = Vec::new();
    wait_until(what, promised(HEARD), || {
        left.retain(|machine| {
            let sees = seen(machine);
            times.extend(sees.then(|| begun.elapsed()));
            !sees
        });
        left.is_empty()
    });
    times
}

#[test]
#[ignore = "takes minutes: run by ./test.sh --full"]
fn fifty_machines_join_one_mesh_and_refuse_one_that_is_removed() {
    let Some(_turn) = crate::turn() else { return };
    let network = Network::on_a_bridge(MACHINES);
    let mesh = TestMesh::new();
    let mut machines: Vec<TestNode> = (0..MACHINES).map(|number| mesh.node(&format!("m{number}"))).collect();
    for (number, machine) in machines.iter_mut().enumerate() {
        machine.live_on(network.machine(number));
        machine.config.sign = true;
        machine.write_config();
    }
    let (founder, others) = machines.split_first_mut().unwrap();
    founder.start_as_written(None);
    let built = founder.store.build_fresh("for-all");
    founder.narmesh(&["mesh", "create", "home"]).expect_success("mesh create");
    let address = format!("/ip4/{}/tcp/7280", network.machine(0).address());
    let uses = (MACHINES - 1).to_string();
    let token =
        founder.narmesh(&["mesh", "invite", "--uses", &uses, "--address", &address]).expect_success("mesh invite");
    others.iter_mut().for_each(|machine| machine.start_as_written(None));

    let mut table = Table::new("members", &["50 machines of one mesh", "p50", "p99", "asked for"]);
    let (mut joined, mut substitutable) = (Vec::new(), Vec::new());
    for machine in others.iter() {
        let begun = Instant::now();
        machine.narmesh(&["join", &token]).expect_success("join");
        joined.push(begun.elapsed());
        wait_until("a path of the founder", promised(HEARD), || machine.get_narinfo(&built).status == 200);
        substitutable.push(begun.elapsed());
    }
    row(&mut table, "`narmesh join` returns", joined, "");
    row(&mut table, "from join to the first path of the founder", substitutable, "2 s");

    let members = |machine: &TestNode| -> usize {
        let list = machine.narmesh(&["mesh", "list", "--json"]).expect_success("mesh list");
        let list: Value = serde_json::from_str(&list).unwrap();
        list["members"].as_array().unwrap().len()
    };
    let (removed, stay) = others.split_last().unwrap();
    let stay: Vec<_> = stay.iter().collect();
    first_seen(&stay, Instant::now(), "all know all", |machine| members(machine) == MACHINES);
    let begun = Instant::now();
    founder.narmesh(&["mesh", "remove", &removed.name]).expect_success("mesh remove");
    let is_refused = |machine: &TestNode| machine.status().peer(&removed.name).is_none();
    let times = first_seen(&stay, begun, "the removed one is no peer", is_refused);
    row(&mut table, "from removal to refused, looked at one after the other", times, "seconds");
    removed.wait_status("nobody is connected with it", HEARD, |status| {
        status.0["peers"].as_array().is_some_and(|peers| peers.iter().all(|peer| peer["connected"] == false))
    });
}
