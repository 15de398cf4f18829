//! Users and groups by name. They are looked up with `getent`, so that every source of accounts on the system counts.

use std::process::Command;

/// The user as which the units of `contrib/systemd` run the daemon.
pub(crate) const SERVICE_USER: &str = "narmesh";

/// A user of this system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct User {
    /// The name that was looked up.
    pub(crate) name: String,
    /// The user id.
    pub(crate) uid: u32,
    /// The id of the primary group.
    pub(crate) gid: u32,
}

impl User {
    /// The user of that name, if there is one.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let fields = look_up_entry("passwd", name)?;
        Some(Self { name: name.to_owned(), uid: number(&fields, 2)?, gid: number(&fields, 3)? })
    }
}

/// The name of this user, or the number as text if it has no name.
pub(crate) fn look_up_user_name(uid: u32) -> String {
    let output = Command::new("getent").args(["passwd", "--", &uid.to_string()]).output().ok();
    let line = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let name = line.split(':').next().filter(|name| !name.is_empty());
    name.map_or_else(|| uid.to_string(), str::to_owned)
}

/// The id of the group of that name, if there is one.
pub(crate) fn look_up_group_id(name: &str) -> Option<u32> {
    number(&look_up_entry("group", name)?, 2)
}

/// The fields of one line of `passwd` or `group`.
fn look_up_entry(database: &str, name: &str) -> Option<Vec<String>> {
    let output = Command::new("getent").args([database, "--", name]).output().ok()?;
    let line = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    let fields: Vec<_> = line.trim_end().split(':').map(str::to_owned).collect();
    // `getent` also takes numbers as ids, but only names are looked up here.
    (fields.first().map(String::as_str) == Some(name)).then_some(fields)
}

fn number(fields: &[String], index: usize) -> Option<u32> {
    fields.get(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name_only() {
        assert_eq!(User::named("root"), Some(User { name: "root".to_owned(), uid: 0, gid: 0 }));
        assert_eq!(look_up_group_id("root"), Some(0));
        for name in ["0", "", "no-such-account", "--help"] {
            assert_eq!((User::named(name), look_up_group_id(name)), (None, None), "{name}");
        }
        assert_eq!(
            (look_up_user_name(0), look_up_user_name(4_000_000_000)),
            ("root".to_owned(), "4000000000".to_owned())
        );
    }
}
