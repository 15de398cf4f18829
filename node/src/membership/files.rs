//! What a machine keeps of its mesh, in the state directory: the newest roster and, where members are admitted, the mesh
//! key, the invitations, and the edits of this machine.

use super::invitations::Invitations;
use crate::regular_file::{clear, lock, open_to_read, replace};
use crate::settings::{create_secret, read_mesh_key};
use crate::state_files::{EDITS_FILE, INVITATIONS_FILE, MESH_KEY_FILE, MESH_LOCK_FILE, OTHER_ROSTER_FILE, ROSTER_FILE};
use anyhow::Context as _;
use libp2p::PeerId;
use narmesh_mesh::Journal;
use narmesh_protocol::{Member, NixPublicKey, NixSecretKey, Roster, SignedRoster, Standing, node_key_of};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Largest file of invitations, bytes.
const INVITATIONS_BYTES_MAX: u64 = 256 << 10;

/// The files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MeshFiles {
    state_dir: PathBuf,
}

impl MeshFiles {
    /// Those in this state directory; none of them need be there.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned() }
    }

    /// The file of the mesh key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.state_dir.join(MESH_KEY_FILE)
    }

    pub(super) fn in_state_dir(&self, name: &str) -> PathBuf {
        self.state_dir.join(name)
    }

    fn roster_file(&self) -> PathBuf {
        self.state_dir.join(ROSTER_FILE)
    }

    fn edits_file(&self) -> PathBuf {
        self.state_dir.join(EDITS_FILE)
    }

    fn invitations_file(&self) -> PathBuf {
        self.state_dir.join(INVITATIONS_FILE)
    }

    /// The mesh key, if this machine has it.
    pub(crate) fn read_key(&self) -> anyhow::Result<Option<NixSecretKey>> {
        self.read_key_file(&self.key_file())
    }

    pub(super) fn read_key_file(&self, file: &Path) -> anyhow::Result<Option<NixSecretKey>> {
        Ok(read_mesh_key(file)?)
    }

    /// Writes a new mesh key; there must be none yet.
    pub(crate) fn create_key(&self, key: &NixSecretKey) -> anyhow::Result<()> {
        let file = self.key_file();
        self.make_state_dir()?;
        create_secret(&file, &format!("{}\n", key.expose_secret()))
            .and_then(|()| self.give_to_daemon(&open_to_read(&file)?))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// The newest roster of this mesh that this machine has heard of.
    pub(crate) fn read_roster(&self, mesh: &NixPublicKey) -> anyhow::Result<Option<SignedRoster>> {
        read_roster_file(mesh, &self.roster_file())
    }

    pub(super) fn read_roster_bytes(&self, file: &Path) -> anyhow::Result<Option<Vec<u8>>> {
        read_roster_bytes(file)
    }

    pub(super) fn write_kept(&self, roster: &SignedRoster) -> anyhow::Result<()> {
        self.write(&self.roster_file(), roster.as_bytes())
    }

    /// Signs the first roster of a mesh, with this member alone.
    pub(crate) fn create_roster(&self, key: &NixSecretKey, member: Member) -> anyhow::Result<()> {
        let _lock = self.lock()?;
        let roster = Roster {
            version: 1,
            issued_at_ms: unix_ms(),
            members: vec![member],
            edits: Vec::new(),
            removals: Vec::new(),
        };
        self.forget_edits()?;
        self.write(&self.roster_file(), SignedRoster::sign(key, roster)?.as_bytes())
    }

    /// Changes the newest roster, which is the kept one or the `given` one, signs it as the next version, and keeps it. Others
    /// who change it at the same time wait. If `change` fails or changes nothing, nothing is written.
    ///
    /// # Errors
    /// When this machine does not have the mesh key, or has another one, or no roster, or the change makes no valid one. A
    /// machine that has lost its roster must not begin anew: it would put out all others.
    pub(crate) fn edit<T>(
        &self,
        mesh: &NixPublicKey,
        signer: &PeerId,
        given: Option<&SignedRoster>,
        change: impl FnOnce(&mut Roster) -> anyhow::Result<T>,
    ) -> anyhow::Result<(SignedRoster, T)> {
        // Two commands at once would both sign the same next version, and one of the changes would be lost.
        let _lock = self.lock()?;
        let before = newest(self.read_roster(mesh)?, given.cloned()).with_context(|| no_roster(mesh))?;
        let key = self.key_of(&before)?;
        anyhow::ensure!(
            // A machine that was removed may still have the mesh key: it must not go on to change the mesh by mistake.
            Self::is_on(&before, signer) && self.read_removal(&before, signer).is_none(),
            "this machine is not on roster version {} of the mesh: it was removed, and changes nothing any more. \
             `narmesh join TOKEN` makes it a member again",
            before.roster().version
        );
        let signer = node_key_of(signer).context("the node key is no Ed25519 key")?;
        let mut journal = self.read_journal();
        // A machine that got a new mesh key later than it heard of it may have edits that are in no roster of that key.
        let known = journal.complete(signer, before.roster()).unwrap_or_else(|| before.roster().clone());
        let mut roster = known.clone();
        let changed = change(&mut roster)?;
        // A version that changes nothing would still have to be brought to every member.
        if roster == *before.roster() {
            return Ok((before, changed));
        }
        roster.issued_at_ms = unix_ms();
        journal.note(signer, &known, &mut roster);
        let signed = self.sign_as_next(&key, &before, roster)?;
        // After the roster: what is noted was done.
        self.write_journal(&mut journal)?;
        Ok((signed, changed))
    }

    /// Signs the next version of a kept roster that lacks edits of this machine, as one does that another machine signed at the
    /// same time. `None` if it lacks none, or this machine has no key of the mesh.
    pub(crate) fn make_lost_edits_again(
        &self,
        mesh: &NixPublicKey,
        signer: &PeerId,
    ) -> anyhow::Result<Option<SignedRoster>> {
        let _lock = self.lock()?;
        let (Some(kept), Some(signer)) = (self.read_roster(mesh)?, node_key_of(signer)) else { return Ok(None) };
        // Edits of a machine that was removed meanwhile count no more.
        let Some(key) = self.key_of(&kept).ok().filter(|_| kept.member(&signer).is_some()) else { return Ok(None) };
        let completed = self.read_journal().complete(signer, kept.roster());
        completed.map(|roster| self.sign_as_next(&key, &kept, roster)).transpose()
    }

    /// Signs a roster as the version after the one before, and keeps it.
    fn sign_as_next(
        &self,
        key: &NixSecretKey,
        before: &SignedRoster,
        mut roster: Roster,
    ) -> anyhow::Result<SignedRoster> {
        roster.version = before.roster().version.checked_add(1).context("there is no higher version of this roster")?;
        roster.issued_at_ms = unix_ms();
        roster.note_removals(key, before.roster());
        let signed = SignedRoster::sign_with_lineage(key, before.lineage(), roster)?;
        self.write_kept(&signed)?;
        Ok(signed)
    }

    pub(super) fn write_journal(&self, journal: &mut Journal) -> anyhow::Result<()> {
        self.write(&self.edits_file(), &journal.encode())
    }

    /// The edits of this machine. Of a damaged file nothing is made again; the roster itself is not touched.
    pub(super) fn read_journal(&self) -> Journal {
        let file = self.edits_file();
        let read = read_bounded(&file, Journal::BYTES_MAX as u64);
        let decoded = read.map(|bytes| Journal::decode(&bytes));
        match decoded {
            Ok(Ok(journal)) => journal,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Journal::default(),
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(file = %file.display(), "cannot be used: edits that were lost are not made again");
                Journal::default()
            }
        }
    }

    /// Forgets the edits of this machine: it is another member now than when it made them.
    pub(crate) fn forget_edits(&self) -> anyhow::Result<()> {
        let file = self.edits_file();
        clear(&file).with_context(|| format!("cannot delete {}", file.display()))
    }

    /// The invitations that are open or were.
    pub(crate) fn read_invitations(&self) -> anyhow::Result<Invitations> {
        let file = self.invitations_file();
        let text = match read_bounded(&file, INVITATIONS_BYTES_MAX) {
            Ok(bytes) => String::from_utf8(bytes).context("it is no text"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error.into()),
        };
        text.and_then(|text| Invitations::parse(&text)).with_context(|| format!("cannot use {}", file.display()))
    }

    /// Changes the invitations. Others who change them at the same time wait.
    pub(crate) fn change_invitations<T>(
        &self,
        change: impl FnOnce(&mut Invitations) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        // The daemon and a command may change them at the same moment.
        let _lock = self.lock()?;
        let mut invitations = self.read_invitations()?;
        let changed = change(&mut invitations)?;
        self.write(&self.invitations_file(), invitations.render().as_bytes())?;
        Ok(changed)
    }

    /// Closes all invitations. The caller holds the lock.
    pub(super) fn close_invitations(&self) -> anyhow::Result<()> {
        let file = self.invitations_file();
        clear(&file).with_context(|| format!("cannot delete {}", file.display()))
    }

    /// Forgets the mesh: what it kept of it is deleted, but for the mesh key.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        let _lock = self.lock()?;
        for file in [self.roster_file(), self.in_state_dir(OTHER_ROSTER_FILE), self.invitations_file()] {
            clear(&file).with_context(|| format!("cannot delete {}", file.display()))?;
        }
        self.forget_removal()?;
        self.forget_edits()
    }

    pub(super) fn lock(&self) -> anyhow::Result<File> {
        self.make_state_dir()?;
        let path = self.state_dir.join(MESH_LOCK_FILE);
        let locked = lock(&path).and_then(|file| self.give_to_daemon(&file).map(|()| file));
        locked.with_context(|| format!("cannot lock {}", path.display()))
    }

    fn make_state_dir(&self) -> anyhow::Result<()> {
        let made = DirBuilder::new().recursive(true).mode(0o750).create(&self.state_dir);
        made.with_context(|| format!("cannot make {}", self.state_dir.display()))
    }

    /// Writes a file in one step.
    pub(super) fn write(&self, file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let written = replace(file, bytes, |written| self.give_to_daemon(written));
        written.and_then(|()| self.sync_state_dir()).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Without this, a power cut could undo a rename.
    pub(super) fn sync_state_dir(&self) -> io::Result<()> {
        File::open(&self.state_dir)?.sync_all()
    }

    /// What root writes here belongs to the owner of the directory, which is the daemon's user.
    fn give_to_daemon(&self, file: &File) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = fs::metadata(&self.state_dir)?;
        fchown(file, Some(owner.uid()), Some(owner.gid()))
    }
}

/// Reads a signed roster, of this mesh key or one that has taken its place; `None` if there is no file.
pub(crate) fn read_roster_file(mesh: &NixPublicKey, file: &Path) -> anyhow::Result<Option<SignedRoster>> {
    let Some(bytes) = read_roster_bytes(file)? else { return Ok(None) };
    let opened = SignedRoster::open(mesh, &bytes);
    Ok(Some(opened.with_context(|| format!("{} is refused", file.display()))?))
}

/// Reads a signed roster of whatever mesh; its key gets the name `mesh`.
pub(crate) fn read_unknown(file: &Path) -> anyhow::Result<SignedRoster> {
    let bytes = read_roster_bytes(file)?.with_context(|| format!("{} is not there", file.display()))?;
    SignedRoster::open_unknown("mesh", &bytes).with_context(|| format!("{} is refused", file.display()))
}

fn read_roster_bytes(file: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match read_bounded(file, SignedRoster::BYTES_MAX as u64) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Why there is nothing to begin with.
pub(crate) fn no_roster(mesh: &NixPublicKey) -> String {
    format!(
        "there is no roster of the mesh {mesh} here; `narmesh mesh export FILE` on a member and `narmesh mesh import FILE` here bring it back"
    )
}

/// The newest of what is kept and what the configuration names.
pub(crate) fn newest(one: Option<SignedRoster>, other: Option<SignedRoster>) -> Option<SignedRoster> {
    match (one, other) {
        (Some(one), Some(other)) if one.standing_of(&other) == Standing::Newer => Some(other),
        (one, other) => one.or(other),
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn read_bounded(file: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than is accepted shows that there is more.
    open_to_read(file)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let why = format!("it is larger than {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::rekey::Taken;
    use narmesh_protocol::MemberRole;

    fn member(number: u8) -> Member {
        let name = format!("machine {number}");
        let addresses = Vec::new();
        Member {
            node_key: [number; 32],
            name,
            role: MemberRole::Client,
            builder_key: None,
            group: None,
            relay: false,
            ephemeral_s: 0,
            addresses,
        }
    }

    /// This machine, which made the mesh.
    fn me() -> PeerId {
        peer(9)
    }

    fn peer(seed: u8) -> PeerId {
        libp2p::identity::Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id()
    }

    fn add(roster: &mut Roster, number: u8) -> anyhow::Result<()> {
        roster.members.push(member(number));
        Ok(())
    }

    fn files() -> (tempfile::TempDir, MeshFiles, NixPublicKey) {
        let dir = tempfile::tempdir().unwrap();
        let files = MeshFiles::new(&dir.path().join("state"));
        let key = NixSecretKey::from_seed("home", &[1; 32]).unwrap();
        files.create_key(&key).unwrap();
        files.create_roster(&key, Member { node_key: node_key_of(&me()).unwrap(), ..member(100) }).unwrap();
        (dir, files, key.public())
    }

    #[test]
    fn no_edit_is_lost_when_many_come_at_once() {
        let (_dir, files, mesh) = files();
        std::thread::scope(|scope| {
            for number in 1..=8 {
                let (files, mesh) = (&files, &mesh);
                scope.spawn(move || {
                    files.edit(mesh, &me(), None, |roster| add(roster, number)).unwrap();
                });
            }
        });
        let kept = files.read_roster(&mesh).unwrap().unwrap();
        assert_eq!((kept.roster().version, kept.roster().members.len()), (9, 9));
    }

    #[test]
    fn an_older_roster_replaces_no_newer_one_and_a_damaged_one_is_replaced() {
        let (_dir, files, mesh) = files();
        let (first, ()) = files.edit(&mesh, &me(), None, |roster| add(roster, 1)).unwrap();
        let (second, ()) = files.edit(&mesh, &me(), None, |roster| add(roster, 2)).unwrap();
        assert_eq!([&first, &second].map(|roster| files.take(&mesh, roster).unwrap()), [Taken::NotNewer; 2]);
        assert_eq!(files.read_roster(&mesh).unwrap().unwrap(), second);
        fs::write(files.roster_file(), [1; 300]).unwrap();
        let refused = format!("{:#}", files.read_roster(&mesh).unwrap_err());
        assert!(refused.contains("roster is refused"), "{refused}");
        assert_eq!(files.take(&mesh, &first).unwrap(), Taken::Newer);
        assert_eq!(files.read_roster(&mesh).unwrap().unwrap(), first);
    }

    #[test]
    fn a_machine_that_lost_its_roster_does_not_begin_anew() {
        let (_dir, files, mesh) = files();
        let (roster, ()) = files.edit(&mesh, &me(), None, |roster| add(roster, 1)).unwrap();
        fs::remove_file(files.roster_file()).unwrap();
        let refused = format!("{:#}", files.edit(&mesh, &me(), None, |roster| add(roster, 2)).unwrap_err());
        assert!(refused.contains("mesh import"), "{refused}");
        let (next, ()) = files.edit(&mesh, &me(), Some(&roster), |roster| add(roster, 2)).unwrap();
        assert_eq!((next.roster().version, next.roster().members.len()), (3, 3));
    }

    #[test]
    fn an_edit_that_changes_nothing_makes_no_version_and_a_removed_machine_makes_none() {
        let (_dir, files, mesh) = files();
        let (first, ()) = files.edit(&mesh, &me(), None, |roster| add(roster, 1)).unwrap();
        let (same, ()) = files.edit(&mesh, &me(), None, |_| Ok(())).unwrap();
        assert_eq!(same, first);
        let refused = format!("{:#}", files.edit(&mesh, &peer(8), None, |roster| add(roster, 2)).unwrap_err());
        assert!(refused.contains("not on roster version 2") && refused.contains("narmesh join"), "{refused}");
        assert_eq!(files.read_roster(&mesh).unwrap().unwrap(), first);
    }

    #[test]
    fn without_the_right_mesh_key_nothing_is_changed() {
        let (_dir, files, mesh) = files();
        let other = NixSecretKey::from_seed("other", &[2; 32]).unwrap().public();
        let edit = |mesh: &NixPublicKey| format!("{:#}", files.edit(mesh, &me(), None, |_| Ok(())).unwrap_err());
        assert!(edit(&other).contains("roster of another mesh"), "{}", edit(&other));
        fs::remove_file(files.key_file()).unwrap();
        assert!(edit(&mesh).contains("this machine cannot change the mesh"), "{}", edit(&mesh));
        assert_eq!(files.read_roster(&mesh).unwrap().unwrap().roster().version, 1);
    }
}
