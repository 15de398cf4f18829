//! `narmesh reload`.

use super::{client, emit};
use crate::control::{ControlReply, ControlRequest};
use std::path::Path;

pub(super) fn reload(config: &Path) -> anyhow::Result<()> {
    let ControlReply::Reloaded = client::ask(config, &ControlRequest::Reload)? else {
        return Err(client::mismatched());
    };
    Ok(emit("the configuration is in force\n")?)
}
