//! Who may join the mesh: invitations, each with a secret of which only the digest is kept.
//!
//! The file has one line each: `sha256:<digest> role=… uses=… until=… ephemeral=… relay=… group=… [name]`, the group in
//! base64, because it may have spaces. narmesh chooses the secrets: 16 random bytes each, so a plain digest is enough: a slow one would only help against guessing what people choose.

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use narmesh_protocol::MemberRole;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use subtle::ConstantTimeEq as _;

/// Bytes of the secret of an invitation.
pub(crate) const SECRET_BYTES: usize = 16;
/// Most invitations that are kept. Each request to join is compared with all of them.
pub(crate) const INVITATIONS_MAX: usize = 256;
const HEADER: &str = "# Invitations, changed by `narmesh mesh`. Their secrets are nowhere.\n";
const DIGEST_PREFIX: &str = "sha256:";

/// What whoever shows the secret becomes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Invitation {
    digest: [u8; 32],
    /// What the new member may do.
    pub(crate) role: MemberRole,
    /// How many machines may still use it.
    pub(crate) uses: u32,
    /// The time at which it ends.
    pub(crate) until: Timestamp,
    /// After how long without a sign of life the member is forgotten, seconds; 0 for never.
    pub(crate) ephemeral_s: u32,
    /// Whether the member relays.
    pub(crate) relay: bool,
    /// Its group among the builders of a quorum, if any.
    pub(crate) group: Option<String>,
    /// The member's name; its own choice if absent.
    pub(crate) name: Option<String>,
}

impl Invitation {
    /// Makes one for this secret.
    pub(crate) fn new(secret: &[u8; SECRET_BYTES], role: MemberRole, uses: u32, until: Timestamp) -> Self {
        let digest = digest_of(secret);
        Self { digest, role, uses, until, ephemeral_s: 0, relay: false, group: None, name: None }
    }

    fn is_open(&self, now: Timestamp) -> bool {
        self.uses > 0 && now < self.until
    }
}

/// All invitations of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Invitations(Vec<Invitation>);

impl Invitations {
    /// Parses the text of the file.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let parse = |(number, line): (usize, &str)| {
            parse_line(line).with_context(|| format!("line {number} is no invitation that `narmesh mesh invite` wrote"))
        };
        Ok(Self(lines.take(INVITATIONS_MAX + 1).map(parse).collect::<anyhow::Result<_>>()?))
    }

    /// The text of the file.
    pub(crate) fn render(&self) -> String {
        let mut text = HEADER.to_owned();
        for Invitation { digest, role, uses, until, ephemeral_s, relay, group, name } in &self.0 {
            let (digest, role) = (URL_SAFE_NO_PAD.encode(digest), role_word(*role));
            let group = URL_SAFE_NO_PAD.encode(group.as_deref().unwrap_or_default());
            write!(
                text,
                "{DIGEST_PREFIX}{digest} role={role} uses={uses} until={until} ephemeral={ephemeral_s} relay={relay} group={group}"
            )
            .expect("a String takes everything");
            if let Some(name) = name {
                write!(text, " {name}").expect("a String takes everything");
            }
            text.push('\n');
        }
        text
    }

    /// Whether anybody may join.
    pub(crate) fn is_any_open(&self, now: Timestamp) -> bool {
        self.0.iter().any(|invitation| invitation.is_open(now))
    }

    /// How many are open.
    pub(crate) fn count_open(&self, now: Timestamp) -> usize {
        self.0.iter().filter(|invitation| invitation.is_open(now)).count()
    }

    /// Adds one; those that are over are dropped.
    pub(crate) fn add(&mut self, now: Timestamp, invitation: Invitation) -> anyhow::Result<()> {
        self.0.retain(|invitation| invitation.is_open(now));
        anyhow::ensure!(self.0.len() < INVITATIONS_MAX, "{INVITATIONS_MAX} invitations are open already");
        self.0.push(invitation);
        Ok(())
    }

    /// Closes all of them.
    pub(crate) fn close_all(&mut self) {
        self.0.clear();
    }

    /// The open invitation with this secret, of which one use is taken. How long this takes depends on the number of
    /// invitations alone.
    pub(crate) fn use_up(&mut self, now: Timestamp, secret: &[u8; SECRET_BYTES]) -> Option<Invitation> {
        let digest = digest_of(secret);
        let mut found = None;
        for invitation in &mut self.0 {
            let is_it = bool::from(invitation.digest.ct_eq(&digest));
            // Not `&&`, and no early end: the time must not tell which one it was.
            if is_it & invitation.is_open(now) {
                invitation.uses -= 1;
                found = Some(invitation.clone());
            }
        }
        found
    }
}

/// The word for a role, in files and on the command line.
pub(crate) fn role_word(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Client => "client",
        MemberRole::Builder => "builder",
    }
}

/// The role of that name.
pub(crate) fn parse_role(word: &str) -> Option<MemberRole> {
    [MemberRole::Client, MemberRole::Builder].into_iter().find(|role| role_word(*role) == word)
}

fn digest_of(secret: &[u8; SECRET_BYTES]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// The group in base64; nothing for none.
fn parse_group(encoded: &str) -> Option<Option<String>> {
    let group = String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()?;
    Some(Some(group).filter(|group| !group.is_empty()))
}

fn parse_line(line: &str) -> Option<Invitation> {
    let mut words = line.splitn(8, ' ');
    let digest = URL_SAFE_NO_PAD.decode(words.next()?.strip_prefix(DIGEST_PREFIX)?).ok()?.try_into().ok()?;
    let mut value = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=');
    Some(Invitation {
        digest,
        role: parse_role(value("role")?)?,
        uses: value("uses")?.parse().ok()?,
        until: value("until")?.parse().ok()?,
        ephemeral_s: value("ephemeral")?.parse().ok()?,
        relay: value("relay")?.parse().ok()?,
        group: parse_group(value("group")?)?,
        name: words.next().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn an_invitation_admits_as_many_as_it_says_and_until_it_says() {
        let (now, end) = (at("2026-12-01T00:00:00Z"), at("2026-12-01T01:00:00Z"));
        let mut invitations = Invitations::default();
        invitations.add(now, Invitation::new(&[1; 16], MemberRole::Client, 2, end)).unwrap();
        let named = Invitation {
            name: Some("a b".to_owned()),
            ephemeral_s: 60,
            relay: true,
            group: Some("rack 1".to_owned()),
            ..Invitation::new(&[2; 16], MemberRole::Builder, 1, end)
        };
        invitations.add(now, named).unwrap();
        let text = invitations.render();
        assert_eq!(Invitations::parse(&text).unwrap(), invitations);
        assert!(!text.contains("01010101") && !text.contains("02020202"), "{text}");
        assert_eq!(invitations.use_up(now, &[3; 16]), None);
        assert_eq!(invitations.use_up(end, &[1; 16]), None, "it is over");
        assert_eq!(invitations.use_up(now, &[1; 16]).unwrap().role, MemberRole::Client);
        assert!(invitations.use_up(now, &[1; 16]).is_some() && invitations.use_up(now, &[1; 16]).is_none());
        assert_eq!(invitations.use_up(now, &[2; 16]).unwrap().name.as_deref(), Some("a b"));
        assert!(!invitations.is_any_open(now));
        for line in [
            "x",
            "sha256:AA role=client uses=1 until=2026-12-01T00:00:00Z ephemeral=0 relay=false group=",
            &text.replace("client", "king"),
            &text.replace("relay=true", "relay=x"),
            &text.replace("group=cm", "group=%%"),
        ] {
            assert!(Invitations::parse(line).is_err(), "{line}");
        }
    }
}
