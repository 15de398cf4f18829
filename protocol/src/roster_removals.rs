//! Which machines a new roster tells of, that they were removed.

use crate::removal::{Removal, Removed};
use crate::{NixSecretKey, Roster};

impl Roster {
    /// Signs a removal for each member of the roster `before` this one that is no member any more, by the mesh key that those
    /// members know, and forgets those of machines that are members again. Ephemeral members get none: they come and go by
    /// themselves, and so many that those who were removed by a person would be forgotten for them.
    pub fn note_removals(&mut self, mesh: &NixSecretKey, before: &Self) {
        let is_gone = |node_key: &[u8; 32]| self.members.iter().all(|member| member.node_key != *node_key);
        let gone = before.members.iter().filter(|member| member.ephemeral_s == 0 && is_gone(&member.node_key));
        let removed: Vec<_> = gone
            .map(|member| {
                let node_key = member.node_key;
                Removed { node_key, removal: Removal::sign(mesh, &node_key, self.version) }
            })
            .collect();
        let still = self.removals.iter().filter(|known| {
            is_gone(&known.node_key) && removed.iter().all(|removed| removed.node_key != known.node_key)
        });
        let mut removals: Vec<_> = still.copied().chain(removed.iter().copied()).collect();
        // The last ones are kept; the node key decides between those of one version, so that all signers keep the same.
        removals.sort_unstable_by_key(|removed| (std::cmp::Reverse(removed.removal.version), removed.node_key));
        removals.truncate(Self::REMOVALS_MAX);
        removals.sort_unstable_by_key(|removed| removed.node_key);
        self.removals = removals;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Member, MemberRole, SignedRoster};

    fn key(seed: u8) -> NixSecretKey {
        NixSecretKey::from_seed("home", &[seed; 32]).unwrap()
    }

    fn member(number: u8, ephemeral_s: u32) -> Member {
        Member {
            node_key: [number; 32],
            name: format!("machine {number}"),
            role: MemberRole::Client,
            builder_key: None,
            group: None,
            relay: false,
            ephemeral_s,
            addresses: Vec::new(),
        }
    }

    fn roster(version: u64, members: Vec<Member>) -> Roster {
        Roster { version, issued_at_ms: 1, members, edits: Vec::new(), removals: Vec::new() }
    }

    fn removed(roster: &Roster) -> Vec<(u8, u64)> {
        roster.removals.iter().map(|removed| (removed.node_key[0], removed.removal.version)).collect()
    }

    #[test]
    fn whoever_is_gone_has_a_removal_until_it_is_back() {
        let first = roster(1, vec![member(1, 0), member(2, 0), member(3, 60)]);
        let mut second = roster(2, vec![member(1, 0)]);
        second.note_removals(&key(1), &first);
        assert_eq!(removed(&second), [(2, 2)], "an ephemeral member has none");
        let mut third = Roster { version: 3, ..second.clone() };
        third.note_removals(&key(1), &second);
        assert_eq!(removed(&third), [(2, 2)], "it stays as it was signed");
        let mut back = Roster { version: 4, members: vec![member(1, 0), member(2, 0)], ..third.clone() };
        back.note_removals(&key(1), &third);
        assert_eq!(removed(&back), []);
        let mut again = Roster { version: 5, members: vec![member(1, 0)], ..back.clone() };
        again.note_removals(&key(1), &back);
        assert_eq!(removed(&again), [(2, 5)]);
    }

    #[test]
    fn the_last_removals_are_kept_and_come_back_from_the_bytes() {
        let mut present = roster(1, (0..=99).map(|number| member(number, 0)).collect());
        while present.members.len() > 1 {
            let before = present.clone();
            present.version += 1;
            // The highest node key goes first, so that the order of keys is not that of time.
            present.members.pop();
            present.note_removals(&key(1), &before);
        }
        let expected: Vec<_> = (1..=64).map(|number| (number, 101 - u64::from(number))).collect();
        assert_eq!(removed(&present), expected);
        let signed = SignedRoster::sign(&key(1), present.clone()).unwrap();
        assert_eq!(SignedRoster::open(&key(1).public(), signed.as_bytes()).unwrap().roster(), &present);
        let removals = present.removals.clone();
        present.removals.push(removals[0]);
        assert!(SignedRoster::sign(&key(1), present).unwrap_err().to_string().contains("65 removals"));
    }
}
