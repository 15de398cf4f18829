//! Writes the mesh key into the configuration, whose other lines stay as they are.

use crate::config::Config;
use crate::config_template::quoted;
use crate::regular_file::replace_text;
use crate::settings::Settings;
use anyhow::Context as _;
use narmesh_protocol::NixPublicKey;
use std::fs::{self, OpenOptions};
use std::path::Path;

/// Puts `mesh.key` into the file, or takes it out.
///
/// # Errors
/// When the file cannot be written, or names the key of another mesh: then nothing is changed.
pub(crate) fn set_mesh_key(file: &Path, mesh: Option<&NixPublicKey>) -> anyhow::Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let before = Config::read(file)?;
    let wanted = mesh.map(NixPublicKey::to_string);
    if before.mesh.key == wanted {
        return Ok(());
    }
    if let (Some(known), Some(wanted)) = (&before.mesh.key, &wanted) {
        anyhow::bail!(
            "{} is of the mesh {known}, not {wanted}; leave that mesh first (`narmesh leave`)",
            file.display()
        );
    }
    write(file, &change(&text, wanted.as_deref()), wanted)
}

/// Puts another key into `mesh.key`, in the place of the one that is there.
///
/// # Errors
/// When the file cannot be written: then nothing is changed.
pub(crate) fn replace_mesh_key(file: &Path, mesh: &NixPublicKey) -> anyhow::Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let wanted = mesh.to_string();
    if Config::read(file)?.mesh.key.as_ref() == Some(&wanted) {
        return Ok(());
    }
    let changed = change(&change(&text, None), Some(&wanted));
    write(file, &changed, Some(wanted))
}

fn write(file: &Path, changed: &str, wanted: Option<String>) -> anyhow::Result<()> {
    let by_hand = || match &wanted {
        Some(key) => format!("put this into the section [mesh] of {}: key = {}", file.display(), quoted(key)),
        None => format!("take the line key = … out of the section [mesh] of {}", file.display()),
    };
    // Whatever the file looks like: what was written is what was wanted, or nothing is written.
    let after = Config::parse(changed, file);
    anyhow::ensure!(after.is_ok_and(|after| after.mesh.key == wanted), "the file has an unusual form; {}", by_hand());
    Settings::check(Config::parse(changed, file)?, file)?;
    replace_text(file, changed).with_context(|| format!("cannot write {}; {}", file.display(), by_hand()))
}

/// Checks that the file can be written, before anything is done that cannot be undone.
pub(crate) fn ensure_writable(file: &Path) -> anyhow::Result<()> {
    let opened = OpenOptions::new().append(true).open(file);
    opened.map(drop).with_context(|| {
        format!("cannot write {}; a machine that is configured from elsewhere joins with --request", file.display())
    })
}

/// The text with the key in its section `[mesh]`, which is made if there is none, or without it.
fn change(text: &str, key: Option<&str>) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let section = lines.iter().position(|line| line.trim() == "[mesh]");
    let is_key =
        |line: &String| line.trim_start().strip_prefix("key").is_some_and(|rest| rest.trim_start().starts_with('='));
    match (section, key) {
        (Some(section), None) => {
            // Up to the next section only: a key of that name in another one is another key.
            let end = lines.iter().skip(section + 1).position(|line| line.trim_start().starts_with('['));
            let end = end.map_or(lines.len(), |end| section + 1 + end);
            let at = lines.iter().take(end).skip(section + 1).position(is_key);
            if let Some(at) = at {
                lines.remove(section + 1 + at);
            }
        }
        (None, None) => {}
        (Some(section), Some(key)) => lines.insert(section + 1, format!("key = {}", quoted(key))),
        (None, Some(key)) => lines.extend([String::new(), "[mesh]".to_owned(), format!("key = {}", quoted(key))]),
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_template::render;
    use narmesh_protocol::NixSecretKey;

    #[test]
    fn the_key_comes_into_any_file_and_out_again_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("narmesh.toml");
        let [mesh, other] = [1, 2].map(|seed| NixSecretKey::from_seed("home", &[seed; 32]).unwrap().public());
        for text in [&render(&Config::default()), "# mine\n[node]\nname = 'a'\n", "[mesh]\n# none\n\n[limits]\n", ""] {
            fs::write(&file, text).unwrap();
            set_mesh_key(&file, Some(&mesh)).unwrap();
            set_mesh_key(&file, Some(&mesh)).unwrap();
            assert_eq!(Config::read(&file).unwrap().mesh.key, Some(mesh.to_string()));
            let refused = set_mesh_key(&file, Some(&other)).unwrap_err().to_string();
            assert!(refused.contains("leave that mesh first"), "{refused}");
            for key in [&other, &mesh] {
                replace_mesh_key(&file, key).unwrap();
                assert_eq!(Config::read(&file).unwrap().mesh.key, Some(key.to_string()));
            }
            set_mesh_key(&file, None).unwrap();
            let after = fs::read_to_string(&file).unwrap();
            assert_eq!(Config::parse(&after, &file).unwrap(), Config::parse(text, &file).unwrap());
            assert!(text.lines().all(|line| after.contains(line)), "{after}");
        }
        let unusual = "mesh = { roster_file = 'x' }\n";
        fs::write(&file, unusual).unwrap();
        assert!(set_mesh_key(&file, Some(&mesh)).unwrap_err().to_string().contains("put this into the section [mesh]"));
        assert_eq!(fs::read_to_string(&file).unwrap(), unusual);
    }
}
