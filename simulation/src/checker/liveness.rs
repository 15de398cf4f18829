//! What must be true soon after the last fault.

use super::{Checker, Violation, find_missing};
use crate::machine::Machine;
use crate::network::Network;
use crate::number::{Number, part};
use narmesh_protocol::Generation;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A hundred honest peers may waste 0.05 probes for each absent path, all together.
const WASTED_PERMILLE_MAX: u64 = 50;
/// With fewer lookups the wasted probes are not judged.
const LOOKUPS_MIN: u64 = 2_000;

/// What a table has of an owner: its generation, and where it is to be found.
type Known = (Option<Generation>, Vec<SocketAddr>);

impl Checker {
    /// Whether every table seems to hold each owner's present generation, by the ledger alone. Cheap.
    pub(crate) fn seems_converged(&self, machines: &[Machine], reach: &[BTreeSet<Number>]) -> bool {
        reach.iter().enumerate().all(|(owner, holders)| {
            let Some(published) = machines.get(owner).map(|machine| machine.core.publication().generation) else {
                return true;
            };
            holders.iter().all(|holder| {
                let slot = self.slots.get(*holder).and_then(|slots| slots.get(owner));
                slot.and_then(|slot| slot.held).map(|(generation, _)| generation) == published
            })
        })
    }

    /// How many other machines' bodies a machine holds.
    pub(crate) fn bodies_held(&self, holder: Number) -> usize {
        self.slots.get(holder).into_iter().flatten().filter(|slot| slot.held.is_some()).count()
    }

    /// Compares each table with the present state of each reachable owner. Returns what differs.
    pub(crate) fn find_unconverged(&self, machines: &[Machine], reach: &[BTreeSet<Number>]) -> Vec<Violation> {
        let held: Vec<BTreeMap<Number, Known>> = machines
            .iter()
            .map(|machine| {
                let of = |view: crate::cores::gossip::PeerView| {
                    let generation = view.summary.map(|summary| summary.generation);
                    Some((self.number(&view.peer)?, (generation, view.addresses)))
                };
                machine.core.peers().filter_map(of).collect()
            })
            .collect();
        let mut found = Vec::new();
        let mut owners = Vec::new();
        for (owner, machine) in machines.iter().enumerate().filter(|(_, machine)| machine.is_honest()) {
            let published = machine.core.publication().generation;
            let ledger = self.owners.get(owner);
            let newest = published.and_then(|generation| ledger?.published.get(&generation));
            let announced = newest.map_or(0, |publication| publication.announced);
            if announced != machine.store.live.len() as u64 || newest.is_none() {
                found.push(Violation::NotAnnounced { owner, paths: machine.store.live.len(), announced });
            }
            owners.push((owner, machine, published));
        }
        // Holder by holder, because all tables of a large fleet together are far larger than a processor's cache.
        for (holder, asker) in machines.iter().enumerate() {
            let told = |owner: &Number| reach.get(*owner).is_some_and(|holders| holders.contains(&holder));
            for (owner, machine, published) in owners.iter().filter(|(owner, ..)| told(owner)).copied() {
                let known = held.get(holder).and_then(|held| held.get(&owner));
                let held = known.and_then(|(generation, _)| *generation);
                if held != published {
                    found.push(Violation::NotConverged { holder, owner, held, published });
                } else if known.is_none_or(|(_, addresses)| *addresses != machine.addresses(owner)) {
                    found.push(Violation::OldAddresses { holder, owner });
                } else if let Some(path) = find_missing(asker, machine, machine.store.version, holder) {
                    found.push(Violation::FalseNegative { holder, owner, path });
                } else {
                    found.extend(self.find_not_removed(holder, asker, owner, machine));
                }
            }
        }
        found
    }

    fn find_not_removed(&self, holder: Number, asker: &Machine, owner: Number, machine: &Machine) -> Option<Violation> {
        let removed = &self.owners.get(owner)?.removed;
        let gone = removed.iter().filter(|path| !machine.store.live.contains(path));
        let table = asker.core.table();
        let (mut removed, mut claimed) = (0, 0);
        for path in gone {
            removed += 1;
            claimed += usize::from(table.claims(&machine.peer, &part(*path)));
        }
        (claimed > 2).then_some(Violation::NotRemoved { holder, owner, claimed, removed })
    }

    /// Checks how many probes the lookups of absent paths wasted.
    pub(crate) fn check_wasted(&mut self, wasted: u64, lookups: u64) {
        if lookups >= LOOKUPS_MIN && wasted * 1_000 > lookups * WASTED_PERMILLE_MAX {
            self.add_violation(Violation::Wasted { wasted, lookups });
        }
    }
}

/// Who must hear of each owner: those who are linked to it through honest machines that it trusts and that trust it.
pub(crate) fn find_reachable(machines: &[Machine], network: &Network) -> Vec<BTreeSet<Number>> {
    let trusts = |a: Number, b: Number| machines.get(a).is_some_and(|machine| machine.trusted.contains(&b));
    let honest =
        |number: Number| machines.get(number).is_some_and(|machine| machine.is_honest() && machine.is_running());
    let reach = |owner: Number| {
        let mut reached = BTreeSet::from([owner]);
        let mut next = vec![owner];
        while let Some(from) = next.pop() {
            for (to, link) in network.neighbours_of(from) {
                let open = network.is_whole(*link) && trusts(from, *to) && trusts(*to, from);
                let meant = trusts(owner, *to) && trusts(*to, owner);
                if open && meant && honest(*to) && reached.insert(*to) {
                    next.push(*to);
                }
            }
        }
        reached.remove(&owner);
        reached
    };
    (0..machines.len()).map(|owner| if honest(owner) { reach(owner) } else { BTreeSet::new() }).collect()
}
