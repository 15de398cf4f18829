//! A machine changes its network while a NAR is under way: the NAR goes on, and Nix hears nothing of it.

use std::thread;
use std::time::Duration;

use narmesh_tests::{Nat, Network, Place, TestMesh, TestNode, promised, wait_until};

use crate::nat::{meet, way};

/// A connection is made within this.
const MEETING: Duration = Duration::from_secs(5);
/// Two machines of one network have a connection without the relay within this.
const UPGRADED: Duration = Duration::from_secs(12);
/// Slow enough that the NAR is under way for some ten seconds.
const BYTES_PER_S: u32 = 3 << 20;
const NAR_BYTES: u64 = 32 << 20;

/// Two machines at home; one of them goes to another home, behind a router through which only the relay leads.
fn move_in_the_middle(holder_moves: bool) {
    let places = [Place::Public, Place::Behind(Nat::Keeping), Place::WithMachine(1), Place::Behind(Nat::Symmetric)];
    let (mut network, mesh) = (Network::behind_nats(&places), TestMesh::new());
    let mut nodes = meet(&network, &mesh, 1, &["relay", "stays", "roams"]);
    let (holds, asks) = if holder_moves { (2, 1) } else { (1, 2) };
    nodes[holds].config.upload_bytes_per_s = Some(BYTES_PER_S);
    let paths = nodes[holds].store.hold_noise(1, NAR_BYTES, 1);
    nodes.iter_mut().for_each(TestNode::start);
    let (holder, asker) = (&nodes[holds], &nodes[asks]);
    asker.wait_connected(&holder.name, true, MEETING);
    wait_until("they meet at home", promised(UPGRADED), || {
        way(asker, &holder.name).is_some_and(|way| way != "relayed")
    });
    holder.wait_all_advertised(&[asker]);
    let begun = network.machine(asks).traffic().received_bytes;
    let said = thread::scope(|scope| {
        let fetched = scope.spawn(|| asker.realise(&paths));
        wait_until("a quarter has come", promised(MEETING), || {
            fetched.is_finished() || network.machine(asks).traffic().received_bytes - begun > NAR_BYTES / 4
        });
        assert!(!fetched.is_finished(), "it is under way");
        network.take_into_home(2, 3);
        fetched.join().unwrap()
    });
    said.expect_success("nix-store --realise while a machine moves");
    asker.store.verify_contents();
    assert_eq!(way(asker, &holder.name).as_deref(), Some("relayed"));
}

#[test]
fn nar_goes_on_when_who_receives_it_moves_behind_a_nat() {
    if !crate::is_permitted() {
        return;
    }
    move_in_the_middle(false);
}

#[test]
fn nar_goes_on_when_who_holds_it_moves_behind_a_nat() {
    if !crate::is_permitted() {
        return;
    }
    move_in_the_middle(true);
}
