//! What `narmesh status` says of the mesh.

use super::{escaped, utc};
use crate::status::MeshStatus;
use crate::styles::Mark;

pub(super) fn mesh_text(mesh: &MeshStatus) -> String {
    let name = escaped(mesh.key.split_once(':').map_or(mesh.key.as_str(), |(name, _)| name));
    let text = match (mesh.removed_in_version, &mesh.roster) {
        (Some(version), _) => Mark::Bad.paint(tell_removal(mesh, version)),
        (None, None) => format!(
            "{name}: {}, so members are no peers",
            Mark::Bad.paint("THIS MACHINE IS ON NO ROSTER THAT IT KNOWS")
        ),
        (None, Some(roster)) => format!(
            "{name}: {} members, roster version {} of {}; this machine is {}, a {}",
            roster.members,
            roster.version,
            utc(roster.issued_unix_s),
            escaped(&roster.name),
            roster.role
        ),
    };
    match &mesh.contradicting_key {
        None => text,
        Some(key) => format!("{text}; {}", contradiction(key)),
    }
}

/// What people are told of a machine that was removed.
pub(crate) fn tell_removal(mesh: &MeshStatus, version: u64) -> String {
    let name = mesh.key.split_once(':').map_or(mesh.key.as_str(), |(name, _)| name);
    format!(
        "this machine was removed from the mesh {}, in roster version {version}: its members refuse it, and are dialled \
         once an hour",
        escaped(name)
    )
}

/// What people are told of two keys that are both said to have taken the place of one.
pub(crate) fn contradiction(other: &str) -> String {
    format!(
        "CONFLICT: {} IS SAID TO BE THE MESH KEY AS WELL. Find out which of the two is right, and accept that one, also \
         if it is the one in force: narmesh mesh rekey --accept MESH_KEY",
        escaped(other)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::RosterStatus;
    use crate::styles::without_colours;

    #[test]
    fn the_mesh_is_named_with_its_roster_or_without_one() {
        let key = "home:AA==".to_owned();
        let roster = RosterStatus {
            version: 3,
            issued_unix_s: 1_704_067_199,
            members: 5,
            name: "box\u{202e}".to_owned(),
            role: "builder".to_owned(),
        };
        assert_eq!(
            mesh_text(&MeshStatus { key: key.clone(), roster: Some(roster), ..MeshStatus::default() }),
            "home: 5 members, roster version 3 of 2023-12-31 23:59:59 UTC; this machine is box\\u{202e}, a builder"
        );
        assert_eq!(
            without_colours(&mesh_text(&MeshStatus { key, ..MeshStatus::default() })),
            "home: THIS MACHINE IS ON NO ROSTER THAT IT KNOWS, so members are no peers"
        );
    }

    #[test]
    fn a_machine_that_was_removed_is_told_whatever_roster_it_had() {
        let removed_in_version = Some(7);
        let mesh = MeshStatus { key: "ho\u{202e}me:AA==".to_owned(), removed_in_version, ..MeshStatus::default() };
        let text = without_colours(&mesh_text(&mesh));
        assert!(
            text.starts_with("this machine was removed from the mesh ho\\u{202e}me, in roster version 7: "),
            "{text}"
        );
    }

    #[test]
    fn two_keys_in_the_place_of_one_are_told() {
        let contradicting_key = Some("home:BB==".to_owned());
        let text = mesh_text(&MeshStatus { key: "home:AA==".to_owned(), contradicting_key, ..MeshStatus::default() });
        assert!(text.contains("; CONFLICT: home:BB== IS SAID"), "{text}");
    }
}
