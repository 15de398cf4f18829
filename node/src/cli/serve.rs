//! `narmesh serve`.

use super::{client, emit_report};
use crate::control::{ControlReply, ControlRequest};
use crate::serving::ServeSwitch;
use std::path::Path;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// on or off, whatever the configuration says, also after a restart; auto gives the decision back to the configuration
    switch: Option<ServeSwitch>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn serve(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let ControlReply::Serve(state) = client::ask(config, &ControlRequest::Serve(arguments.switch))? else {
        return Err(client::mismatched());
    };
    emit_report(&state, arguments.json, |state| {
        let what = if state.is_serving { "peers get what is advertised" } else { "peers get nothing of this machine" };
        format!("{what}: {}\n", state.why)
    })
}
