//! `[store]`, checked: where the Nix store and its database are.

use super::{SettingsError, path_from, refused};
use crate::config::StoreConfig;
use narmesh_protocol::StoreDir;
use narmesh_store::StoreLocation;
use std::path::{Path, PathBuf};

pub(super) fn check(store: &StoreConfig, base: &Path) -> Result<StoreLocation, SettingsError> {
    let store_dir = StoreDir::parse(&store.store_dir)
        .map_err(|_| refused("store.store_dir", &store.store_dir, "an absolute directory such as /nix/store"))?;
    if let Some(root) = &store.root {
        // Nix derives all of these from the root, so a second word about one of them could only contradict it.
        let others = [
            ("store.real_dir", &store.real_dir),
            ("store.state_dir", &store.state_dir),
            ("store.log_dir", &store.log_dir),
        ];
        for (other, value) in others {
            if value.is_some() {
                return Err(SettingsError::Excludes { key: "store.root", value: root.display().to_string(), other });
            }
        }
        let root = path_from(base, "store.root", root)?;
        return Ok(StoreLocation {
            store_dir,
            real_dir: root.join("nix/store"),
            state_dir: root.join("nix/var/nix"),
            log_dir: root.join("nix/var/log/nix"),
        });
    }
    Ok(StoreLocation {
        real_dir: match &store.real_dir {
            Some(path) => path_from(base, "store.real_dir", path)?,
            None => PathBuf::from(store_dir.as_str()),
        },
        state_dir: match &store.state_dir {
            Some(path) => path_from(base, "store.state_dir", path)?,
            None => PathBuf::from("/nix/var/nix"),
        },
        log_dir: match &store.log_dir {
            Some(path) => path_from(base, "store.log_dir", path)?,
            None => PathBuf::from("/nix/var/log/nix"),
        },
        store_dir,
    })
}
