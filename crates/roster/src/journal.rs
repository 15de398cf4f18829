//! The edits of one signer, kept so that none is lost when two sign at once.
//!
//! Of two rosters of one version one counts, and the other one's edit is not in it. Each roster counts the edits of each
//! signer that it holds ([`Roster::edits`]), so a signer sees which of its own the newest one lacks, and signs the next
//! version with them. What was lost is found by these numbers alone and never by what a roster says: a member that another
//! signer removed, knowing of the edit that added it, stays removed.

use narmesh_protocol::codec::{self, CodecError};
use narmesh_protocol::{Member, MemberRole, Roster};

/// One edit of a roster.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
struct Edit {
    number: u64,
    /// The members that are new.
    added: Vec<Member>,
    /// Those that were members before and are others now: as they were, and as they are.
    changed: Vec<(Member, Member)>,
    /// The node keys of those that are gone.
    removed: Vec<[u8; 32]>,
}

/// The last edits of one signer, at most [`Journal::EDITS_MAX`].
#[derive(Clone, PartialEq, Eq, Debug, Default, bincode::Encode, bincode::Decode)]
pub struct Journal {
    edits: Vec<Edit>,
}

impl Journal {
    /// Edits that are kept; of more, the oldest are forgotten. A day of joins, one each minute and a half.
    pub const EDITS_MAX: usize = 1_024;
    /// Largest encoding, bytes; of more, the oldest edits are forgotten.
    pub const BYTES_MAX: usize = 2 << 20;

    /// Encodes it, without the oldest edits if all are too many.
    pub fn encode(&mut self) -> Vec<u8> {
        loop {
            match codec::encode::<{ Self::BYTES_MAX }>(self) {
                Ok(bytes) => return bytes,
                // An edit of the largest roster is shorter than the bound, so this ends.
                Err(_) => drop(self.edits.drain(..self.edits.len().div_ceil(2))),
            }
        }
    }

    /// Decodes what [`Self::encode`] gave.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode::<Self, { Self::BYTES_MAX }>(bytes)
    }

    /// Notes what `signer` changed, and counts it in `after`, which says when that was.
    pub fn note(&mut self, signer: [u8; 32], before: &Roster, after: &mut Roster) {
        let last = self.edits.last().map_or(0, |edit| edit.number);
        // A signer that was restored from a backup does not know how many edits of its own the others have. Numbers are times,
        // so a new edit has a higher one than those, and is made again when they are heard of.
        let number = last.max(before.edits_of(&signer)).saturating_add(1).max(after.issued_at_ms);
        after.set_edits_of(signer, number);
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for member in &after.members {
            match find(before, &member.node_key) {
                None => added.push(member.clone()),
                Some(was) if was != member => changed.push((was.clone(), member.clone())),
                Some(_) => {}
            }
        }
        let left = before.members.iter().map(|member| member.node_key).filter(|key| !is_member(after, key));
        self.edits.push(Edit { number, added, changed, removed: left.collect() });
        let excess = self.edits.len().saturating_sub(Self::EDITS_MAX);
        self.edits.drain(..excess);
    }

    /// The newest roster with the edits of `signer` that it lacks; `None` if it lacks none. A member that is added again under
    /// a name that somebody else has taken meanwhile gets a number, and becomes a client if somebody else's builder key has
    /// the name of its own. A changed member that another signer has removed meanwhile is not added again, and what another
    /// signer changed of a member stays.
    pub fn complete(&self, signer: [u8; 32], newest: &Roster) -> Option<Roster> {
        // The roster itself says how many edits of each signer it has, so that nothing is made twice.
        let count = newest.edits_of(&signer);
        let mut completed = newest.clone();
        for edit in self.edits.iter().filter(|edit| edit.number > count) {
            // Removals first: whoever was removed and added again in one edit is added with what was said last.
            completed.members.retain(|member| !edit.removed.contains(&member.node_key));
            edit.added.iter().for_each(|member| put_again(&mut completed, member));
            for (was, is) in &edit.changed {
                // Another signer removed them meanwhile: a change adds nobody.
                if let Some(present) = find(&completed, &is.node_key).cloned() {
                    put_again(&mut completed, &change_again(present, was, is));
                }
            }
            completed.set_edits_of(signer, edit.number);
        }
        (completed.edits_of(&signer) > count).then_some(completed)
    }
}

fn put_again(roster: &mut Roster, member: &Member) {
    let mut member = member.clone();
    if roster.find_builder_key(&member).is_some() {
        (member.role, member.builder_key) = (MemberRole::Client, None);
    }
    roster.put(member);
}

/// The member with what changed from `was` to `is`, and nothing else of them.
fn change_again(mut member: Member, was: &Member, is: &Member) -> Member {
    fn set<T: PartialEq + Clone>(present: &mut T, was: &T, is: &T) {
        if was != is {
            present.clone_from(is);
        }
    }
    let Member { node_key: _, name, role, builder_key, group, relay, ephemeral_s, addresses } = &mut member;
    set(name, &was.name, &is.name);
    set(role, &was.role, &is.role);
    set(builder_key, &was.builder_key, &is.builder_key);
    set(group, &was.group, &is.group);
    set(relay, &was.relay, &is.relay);
    set(ephemeral_s, &was.ephemeral_s, &is.ephemeral_s);
    set(addresses, &was.addresses, &is.addresses);
    member
}

fn find<'a>(roster: &'a Roster, node_key: &[u8; 32]) -> Option<&'a Member> {
    roster.members.iter().find(|member| member.node_key == *node_key)
}

fn is_member(roster: &Roster, node_key: &[u8; 32]) -> bool {
    find(roster, node_key).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::NixSecretKey;

    fn member(number: u8, name: &str) -> Member {
        Member {
            node_key: [number; 32],
            name: name.to_owned(),
            role: MemberRole::Client,
            builder_key: None,
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses: Vec::new(),
        }
    }

    fn roster(members: Vec<Member>) -> Roster {
        Roster { version: 1, issued_at_ms: 0, members, edits: Vec::new(), removals: Vec::new() }
    }

    fn edit(journal: &mut Journal, signer: u8, before: &Roster, change: impl FnOnce(&mut Roster)) -> Roster {
        let mut after = before.clone();
        change(&mut after);
        after.version += 1;
        journal.note([signer; 32], before, &mut after);
        after
    }

    fn names(roster: &Roster) -> Vec<&str> {
        let mut names: Vec<&str> = roster.members.iter().map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn edits_that_a_roster_of_another_signer_lacks_are_made_again() {
        let (mut one, mut other) = (Journal::default(), Journal::default());
        let first = roster(vec![member(1, "one"), member(2, "other"), member(3, "old")]);
        let lost = edit(&mut one, 1, &first, |roster| roster.put(member(4, "new")));
        let lost = edit(&mut one, 1, &lost, |roster| roster.members.retain(|member| member.name != "old"));
        assert_eq!(names(&lost), ["new", "one", "other"]);
        let counts = edit(&mut other, 2, &first, |roster| roster.put(member(5, "new")));
        let completed = one.complete([1; 32], &counts).unwrap();
        assert_eq!(names(&completed), ["new", "new-2", "one", "other"]);
        assert_eq!((completed.edits_of(&[1; 32]), completed.edits_of(&[2; 32])), (2, 1));
        assert_eq!(one.complete([1; 32], &completed), None, "it holds all of them");
        assert_eq!(other.complete([2; 32], &completed), None);
    }

    #[test]
    fn what_another_signer_undid_is_not_done_again() {
        let (mut one, mut other) = (Journal::default(), Journal::default());
        let first = roster(vec![member(1, "one"), member(2, "other")]);
        let added = edit(&mut one, 1, &first, |roster| roster.put(member(4, "new")));
        let removed = edit(&mut other, 2, &added, |roster| roster.members.retain(|member| member.name != "new"));
        assert_eq!(one.complete([1; 32], &removed), None);
        let change = |roster: &mut Roster| roster.members.iter_mut().for_each(|member| member.name += "er");
        edit(&mut one, 1, &added, change);
        assert_eq!(names(&one.complete([1; 32], &removed).unwrap()), ["oneer", "otherer"]);
        // A signer that has lost its journal knows nothing to do again, and goes on counting above what the others know.
        let mut lost = Journal::default();
        assert_eq!(lost.complete([1; 32], &first), None);
        assert_eq!(edit(&mut lost, 1, &removed, |roster| roster.put(member(5, "next"))).edits_of(&[1; 32]), 2);
    }

    /// It edits an older roster than its own last one, with the journal of that time.
    #[test]
    fn the_edit_of_a_restored_signer_is_made_again_on_the_newest_roster() {
        let mut journal = Journal::default();
        let at = |ms: u64, name: &'static str| {
            move |roster: &mut Roster| {
                roster.issued_at_ms = ms;
                roster.put(member(ms.to_le_bytes()[0], name));
            }
        };
        let backup = edit(&mut journal, 1, &roster(vec![member(1, "one")]), at(10, "a"));
        let mut restored = journal.clone();
        let newest = [(20, "b"), (30, "c")]
            .into_iter()
            .fold(backup.clone(), |roster, (ms, name)| edit(&mut journal, 1, &roster, at(ms, name)));
        edit(&mut restored, 1, &backup, at(40, "d"));
        assert_eq!(names(&restored.complete([1; 32], &newest).unwrap()), ["a", "b", "c", "d", "one"]);
    }

    #[test]
    fn two_signers_may_change_one_member_each_something_else() {
        let mut one = Journal::default();
        let first = roster(vec![member(1, "one"), member(2, "other")]);
        let rename = |roster: &mut Roster, name: &str| roster.members[1].name = name.to_owned();
        let renamed = edit(&mut one, 1, &first, |roster| rename(roster, "second"));
        edit(&mut one, 1, &renamed, |roster| rename(roster, "third"));
        let mut newest = first.clone();
        (newest.members[1].relay, newest.members[1].role) = (true, MemberRole::Builder);
        let completed = one.complete([1; 32], &newest).unwrap();
        let expected = Member { relay: true, role: MemberRole::Builder, ..member(2, "third") };
        assert_eq!(find(&completed, &[2; 32]), Some(&expected));
    }

    #[test]
    fn a_builder_key_whose_name_was_taken_meanwhile_is_left_out() {
        let builder = |number: u8, name: &str| {
            let key = NixSecretKey::from_seed("b-1", &[number; 32]).unwrap().public().to_string();
            Member { role: MemberRole::Builder, builder_key: Some(key), ..member(number, name) }
        };
        let mut one = Journal::default();
        let first = roster(vec![member(1, "one")]);
        edit(&mut one, 1, &first, |roster| roster.put(builder(4, "mine")));
        let mut newest = first.clone();
        newest.put(builder(5, "theirs"));
        let completed = one.complete([1; 32], &newest).unwrap();
        let mine = completed.members.iter().find(|member| member.name == "mine").unwrap();
        assert_eq!((mine.role, &mine.builder_key), (MemberRole::Client, &None));
    }

    #[test]
    fn what_is_kept_is_bounded_and_comes_back() {
        let mut journal = Journal::default();
        let mut present = roster(vec![member(1, "one")]);
        for round in 0..Journal::EDITS_MAX + 9 {
            present = edit(&mut journal, 1, &present, |roster| roster.put(member(2, &format!("name {round}"))));
        }
        assert_eq!(journal.edits.len(), Journal::EDITS_MAX);
        let bytes = journal.encode();
        assert_eq!(Journal::decode(&bytes).unwrap(), journal);
        assert!(Journal::decode(&bytes[1..]).is_err());
    }
}
