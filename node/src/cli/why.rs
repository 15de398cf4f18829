//! `narmesh why PATH`.

use super::{client, emit_report};
use crate::control::{ControlReply, ControlRequest};
use crate::status::WhyReport;
use std::path::Path;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// A store path, its base name, or its hash part
    path: String,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

pub(super) fn why(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let request = ControlRequest::Why { path: arguments.path.clone() };
    let ControlReply::Why(report) = client::ask(config, &request)? else { return Err(client::mismatched()) };
    emit_report(&*report, arguments.json, WhyReport::text)
}
