//! Addresses of a peer that were found on the local network. The peer, or another machine that knows the mesh key, named
//! them a moment ago.
//!
//! Where the peer proved who it is, it is dialled again like at a configured address, until it has been gone for long. Any
//! other address is dialled once when it is found, and again only when it is heard of later. They are forgotten when they
//! are not heard of any more.

use crate::addresses::socket_address;
use libp2p::Multiaddr;
use narmesh_gossip::Moment;
use std::net::SocketAddr;

/// The most addresses that are kept: as many as are announced at once.
const ADDRESSES_MAX: usize = 8;
/// An address that was not heard of for this long is forgotten. Members announce themselves every 55 seconds at least, and
/// one announcement may be lost.
const HEARD_MS: u64 = 120_000;
/// What is heard of has us dial no more often than this.
const PAUSE_MS: u64 = 5_000;

#[derive(Debug)]
struct Sighting {
    address: Multiaddr,
    heard: Moment,
    dialled: Option<Moment>,
    /// The peer proved who it is at this address.
    is_proven: bool,
}

/// The addresses of one peer that were found.
#[derive(Debug, Default)]
pub(super) struct Found {
    sightings: Vec<Sighting>,
    /// When something was heard that was worth a dial.
    hastened: Option<Moment>,
}

impl Found {
    /// Notes where the peer is said to be. Returns whether that is worth a dial at once.
    pub(super) fn hear(&mut self, now: Moment, addresses: Vec<Multiaddr>) -> bool {
        // What was not heard for long makes room first.
        self.forget(now);
        for address in addresses.into_iter().take(ADDRESSES_MAX) {
            match self.sightings.iter_mut().find(|known| known.address == address) {
                Some(known) => known.heard = now,
                None => self.sightings.push(Sighting { address, heard: now, dialled: None, is_proven: false }),
            }
        }
        // Those that were heard of last are kept, and where it was, before others.
        self.sightings.sort_by_key(|known| std::cmp::Reverse((known.is_proven, known.heard)));
        self.sightings.truncate(ADDRESSES_MAX);
        // Anybody who knows the public half of the mesh key can say this without end.
        let may_hasten = self.hastened.is_none_or(|before| now.since(before) >= PAUSE_MS);
        let is_worth_it = may_hasten && self.sightings.iter().any(|known| known.is_dialable());
        if is_worth_it {
            self.hastened = Some(now);
        }
        is_worth_it
    }

    /// Notes that the peer proved who it is at `via`, if it was found there.
    pub(super) fn prove(&mut self, via: SocketAddr) {
        for known in &mut self.sightings {
            known.is_proven = socket_address(&known.address) == Some(via);
        }
    }

    /// Notes that a dial failed. `is_gone`: it has failed for so long that the peer is not expected back soon.
    pub(super) fn on_failed(&mut self, is_gone: bool) {
        if is_gone {
            self.sightings.iter_mut().for_each(|known| known.is_proven = false);
        }
    }

    /// All that are known.
    pub(super) fn all(&self) -> impl Iterator<Item = &Multiaddr> {
        self.sightings.iter().map(|known| &known.address)
    }

    /// Those that may be dialled now.
    pub(super) fn dialable(&self, now: Moment) -> impl Iterator<Item = &Multiaddr> {
        let usable = move |known: &&Sighting| known.is_dialable() && !known.is_over(now);
        self.sightings.iter().filter(usable).map(|known| &known.address)
    }

    /// Notes that those that may be dialled are.
    pub(super) fn start(&mut self, now: Moment) {
        self.forget(now);
        for known in self.sightings.iter_mut().filter(|known| known.is_dialable()) {
            known.dialled = Some(now);
        }
    }

    fn forget(&mut self, now: Moment) {
        self.sightings.retain(|known| !known.is_over(now));
    }
}

impl Sighting {
    fn is_dialable(&self) -> bool {
        self.is_proven || self.dialled.is_none_or(|dialled| self.heard.since(dialled) >= PAUSE_MS)
    }

    fn is_over(&self, now: Moment) -> bool {
        !self.is_proven && now.since(self.heard) >= HEARD_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/192.0.2.1/tcp/{port}").parse().unwrap()
    }

    fn dialable(found: &Found, now: u64) -> Vec<Multiaddr> {
        found.dialable(Moment(now)).cloned().collect()
    }

    #[test]
    fn an_address_that_does_not_lead_there_is_dialled_once_for_each_time_it_is_heard_of_and_then_forgotten() {
        let mut found = Found::default();
        assert!(found.hear(Moment(0), vec![address(1)]));
        assert_eq!(dialable(&found, 0), [address(1)]);
        found.start(Moment(0));
        found.on_failed(false);
        assert_eq!(dialable(&found, 60_000), []);
        assert!(!found.hear(Moment(PAUSE_MS - 1), vec![address(1)]), "not so soon");
        assert!(found.hear(Moment(50_000), vec![address(1)]));
        assert_eq!(dialable(&found, 50_000), [address(1)]);
        found.start(Moment(50_000 + HEARD_MS));
        assert_eq!(found.all().count(), 0);
    }

    #[test]
    fn where_the_peer_was_it_is_dialled_until_it_is_gone_for_long() {
        let mut found = Found::default();
        found.hear(Moment(0), vec![address(1), address(2)]);
        found.start(Moment(0));
        found.prove(socket_address(&address(2)).unwrap());
        found.on_failed(false);
        assert_eq!(dialable(&found, 10 * HEARD_MS), [address(2)]);
        found.on_failed(true);
        assert_eq!(dialable(&found, 10 * HEARD_MS), []);
    }

    #[test]
    fn who_names_other_addresses_without_end_has_us_dial_and_keep_few() {
        let mut found = Found::default();
        found.hear(Moment(0), vec![address(1)]);
        found.prove(socket_address(&address(1)).unwrap());
        let (mut hastened, mut dials) = (0, 0);
        for at in 0..60_000 {
            let port = u16::try_from(at % 50_000 + 2).unwrap();
            if found.hear(Moment(at), (0..20).map(|more| address(port + more)).collect()) {
                hastened += 1;
                dials += dialable(&found, at).len();
                found.start(Moment(at));
            }
            assert!(found.all().count() <= ADDRESSES_MAX);
        }
        assert!(hastened <= 60_000 / PAUSE_MS && dials <= 8 * 12, "{hastened} {dials}");
        assert!(found.all().any(|known| *known == address(1)), "where it is stays known");
    }
}
