//! The mesh key, and how another one takes its place.
//!
//! A new key is written beside the old one before a roster names it, and takes its file after that: whenever the machine is
//! stopped, it has the key that its roster names.

use super::files::{MeshFiles, newest, no_roster, unix_ms};
use crate::regular_file::clear;
use crate::settings::new_nix_key;
use crate::state_files::{NEXT_MESH_KEY_FILE, OTHER_ROSTER_FILE};
use anyhow::Context as _;
use libp2p::PeerId;
use narmesh_protocol::{Member, NixPublicKey, NixSecretKey, Roster, SignedRoster, Standing, Succession, node_key_of};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

/// How long a roster that contradicts stays before a later one of the same key takes its place: whoever stole the key may sign
/// one each second, of a megabyte.
const OTHER_STAYS: Duration = Duration::from_secs(600);

/// What became of a roster that was to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Taken {
    /// It is kept in the place of an older one.
    Newer,
    /// It is newer, and the first of a mesh key that has taken the place of the one before.
    NewKey,
    /// One that is as new is kept already.
    NotNewer,
    /// It contradicts the kept one, and lies beside it for people to look at: it counts nothing.
    Contradicts,
}

impl MeshFiles {
    fn next_key_file(&self) -> PathBuf {
        self.in_state_dir(NEXT_MESH_KEY_FILE)
    }

    fn other_roster_file(&self) -> PathBuf {
        self.in_state_dir(OTHER_ROSTER_FILE)
    }

    /// The secret half of this mesh key.
    ///
    /// # Errors
    /// When this machine does not have it: what it has instead, and what to do.
    pub(crate) fn key_of(&self, roster: &SignedRoster) -> anyhow::Result<NixSecretKey> {
        let (mesh, file) = (roster.key(), self.key_file());
        let is_it = |key: &NixSecretKey| key.public().bytes() == mesh.bytes();
        let present = self.read_key()?;
        if let Some(key) = present.as_ref().filter(|key| is_it(key)) {
            return Ok(key.clone());
        }
        // A rekey that was interrupted after it signed.
        if let Some(key) = self.read_key_file(&self.next_key_file())?.filter(is_it) {
            self.put_next_key_in_place()?;
            return Ok(key);
        }
        let key =
            present.with_context(|| format!("{} is not there: this machine cannot change the mesh", file.display()))?;
        anyhow::ensure!(
            // Said by name, because the file looks right: it is a mesh key of this very mesh.
            !roster.lineage().replaced(&key.public().bytes()),
            "{} is a mesh key that was replaced, by {mesh}: what it signs counts no more. Copy the new one there from the \
             machine on which `narmesh mesh rekey` was run",
            file.display()
        );
        anyhow::bail!("{} is the key of another mesh than {mesh}", file.display())
    }

    /// Whether this machine has the key that signed this roster.
    pub(crate) fn has_key_of(&self, roster: &SignedRoster) -> bool {
        self.key_of(roster).is_ok()
    }

    /// Makes another mesh key, which signs the newest roster without those whom `change` removes. It is the next version, and
    /// the old key says in it that the new one has taken its place. Invitations end. This machine becomes a member if it is
    /// none, since who stole the key may have removed it.
    pub(crate) fn rekey(
        &self,
        mesh: &NixPublicKey,
        this: Member,
        given: Option<&SignedRoster>,
        change: impl FnOnce(&mut Roster) -> anyhow::Result<()>,
    ) -> anyhow::Result<SignedRoster> {
        let _lock = self.lock()?;
        let before = newest(self.read_roster(mesh)?, given.cloned()).with_context(|| no_roster(mesh))?;
        let old = self.key_of(&before)?;
        let mut journal = self.read_journal();
        let signer = this.node_key;
        let known = journal.complete(signer, before.roster()).unwrap_or_else(|| before.roster().clone());
        let mut roster = known.clone();
        if before.member(&signer).is_none() {
            roster.put(this);
        }
        change(&mut roster)?;
        roster.issued_at_ms = unix_ms();
        journal.note(signer, &known, &mut roster);
        let key = new_nix_key(old.name())?;
        let version = before.roster().version;
        // The old key says it, because members believe only that one so far.
        let succession = Succession::sign(&old, &key.public().bytes(), version);
        let lineage = before.lineage().continued(succession).context("there is no higher version of this roster")?;
        roster.version = version.checked_add(1).context("there is no higher version of this roster")?;
        // Whoever is removed knows no other key than the old one.
        roster.note_removals(&old, before.roster());
        let signed = SignedRoster::sign_with_lineage(&key, &lineage, roster)?;
        // Before the roster: a roster that is signed by a key which is lost would end the mesh.
        self.write(&self.next_key_file(), format!("{}\n", key.expose_secret()).as_bytes())?;
        self.write_roster(Some(&before), &signed)?;
        // After the roster: until it is written, the old key is the one that counts.
        self.put_next_key_in_place()?;
        self.write_journal(&mut journal)?;
        Ok(signed)
    }

    fn put_next_key_in_place(&self) -> anyhow::Result<()> {
        let file = self.key_file();
        let renamed = match fs::rename(self.next_key_file(), &file) {
            // Another command has done so meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        };
        renamed.and_then(|()| self.sync_state_dir()).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Keeps a roster unless a newer one is kept already.
    pub(crate) fn take(&self, mesh: &NixPublicKey, roster: &SignedRoster) -> anyhow::Result<Taken> {
        let _lock = self.lock()?;
        // One that cannot be read is replaced: it came from a member, and comes again.
        let kept = self.read_roster(mesh).ok().flatten();
        let standing = kept.as_ref().map_or(Standing::Newer, |kept| kept.standing_of(roster));
        match standing {
            Standing::Newer => {
                self.write_roster(kept.as_ref(), roster)?;
                let is_new_key = kept.is_some_and(|kept| kept.key().bytes() != roster.key().bytes());
                Ok(if is_new_key { Taken::NewKey } else { Taken::Newer })
            }
            Standing::Same | Standing::Older | Standing::Unrelated => Ok(Taken::NotNewer),
            Standing::Contradicts => self.take_other(mesh, roster),
        }
    }

    /// Keeps one that contradicts, and of several the first: whoever stole the key may make any number of them.
    fn take_other(&self, mesh: &NixPublicKey, roster: &SignedRoster) -> anyhow::Result<Taken> {
        let is_first = match self.read_other(mesh)? {
            Some(_) if is_younger(&self.other_roster_file(), OTHER_STAYS) => return Ok(Taken::NotNewer),
            Some(other) if other.key().bytes() != roster.key().bytes() => return Ok(Taken::NotNewer),
            Some(other) if other.version() >= roster.version() => return Ok(Taken::NotNewer),
            known => known.is_none(),
        };
        self.write(&self.other_roster_file(), roster.as_bytes())?;
        Ok(if is_first { Taken::Contradicts } else { Taken::NotNewer })
    }

    /// The roster that contradicts the kept one, if one was heard.
    pub(crate) fn read_other(&self, mesh: &NixPublicKey) -> anyhow::Result<Option<SignedRoster>> {
        let Some(kept) = self.read_roster(mesh)? else { return Ok(None) };
        let bytes = self.read_roster_bytes(&self.other_roster_file())?;
        // A damaged one is heard again.
        let other = bytes.and_then(|bytes| SignedRoster::open_unknown(mesh.name(), &bytes).ok());
        Ok(other.filter(|other| kept.standing_of(other) == Standing::Contradicts))
    }

    /// Keeps this roster, whatever is kept: a person has decided so.
    pub(crate) fn put_accepted(&self, roster: &SignedRoster) -> anyhow::Result<()> {
        let _lock = self.lock()?;
        self.forget_other()?;
        self.write_roster(None, roster)?;
        self.close_invitations()
    }

    /// Forgets the roster that contradicts the kept one.
    pub(crate) fn forget_other(&self) -> anyhow::Result<()> {
        let other = self.other_roster_file();
        clear(&other).with_context(|| format!("cannot delete {}", other.display()))
    }

    /// Writes a roster. If its mesh key is another one than that of the roster before, invitations end: their tokens name the
    /// key before.
    fn write_roster(&self, before: Option<&SignedRoster>, roster: &SignedRoster) -> anyhow::Result<()> {
        self.write_kept(roster)?;
        match before {
            Some(before) if before.key().bytes() != roster.key().bytes() => self.close_invitations(),
            Some(_) | None => Ok(()),
        }
    }

    /// Whether this machine is on the roster.
    pub(crate) fn is_on(roster: &SignedRoster, me: &PeerId) -> bool {
        node_key_of(me).is_some_and(|key| roster.member(&key).is_some())
    }
}

/// Whether the file was written less than so long ago. One of the future is taken for old: the clock was set back.
fn is_younger(file: &Path, than: Duration) -> bool {
    let written = fs::metadata(file).and_then(|metadata| metadata.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age < than))
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::Lineage;
    use std::fs::File;
    use std::time::SystemTime;

    fn key(seed: u8) -> NixSecretKey {
        NixSecretKey::from_seed("home", &[seed; 32]).unwrap()
    }

    /// One of the key that has taken the place of key 1.
    fn after_first(seed: u8, version: u64) -> SignedRoster {
        let succession = Succession::sign(&key(1), &key(seed).public().bytes(), 1);
        let lineage = Lineage::default().continued(succession).unwrap();
        let roster = Roster { version, issued_at_ms: 1, members: Vec::new(), edits: Vec::new(), removals: Vec::new() };
        SignedRoster::sign_with_lineage(&key(seed), &lineage, roster).unwrap()
    }

    #[test]
    fn rosters_that_contradict_without_end_are_written_once_in_ten_minutes() {
        let dir = tempfile::tempdir().unwrap();
        let (files, mesh) = (MeshFiles::new(dir.path()), key(1).public());
        assert_eq!(files.take(&mesh, &after_first(2, 5)).unwrap(), Taken::Newer);
        assert_eq!(files.take(&mesh, &after_first(3, 5)).unwrap(), Taken::Contradicts);
        let shown = || files.read_other(&mesh).unwrap().unwrap().roster().version;
        for version in 6..9 {
            assert_eq!(files.take(&mesh, &after_first(3, version)).unwrap(), Taken::NotNewer);
        }
        assert_eq!(shown(), 5, "it stays");
        let other = File::options().write(true).open(files.other_roster_file()).unwrap();
        other.set_modified(SystemTime::now() - OTHER_STAYS).unwrap();
        assert_eq!(files.take(&mesh, &after_first(4, 99)).unwrap(), Taken::NotNewer, "the first key");
        assert_eq!(files.take(&mesh, &after_first(3, 9)).unwrap(), Taken::NotNewer);
        assert_eq!(shown(), 9, "for people to accept the newest");
    }
}
