//! `narmesh status`.

use super::{client, emit_report};
use crate::control::{ControlReply, ControlRequest};
use crate::status::Status;
use std::path::Path;

pub(super) fn status(config: &Path, json: bool) -> anyhow::Result<()> {
    let ControlReply::Status(status) = client::ask(config, &ControlRequest::Status)? else {
        return Err(client::mismatched());
    };
    emit_report(&*status, json, Status::text)
}
