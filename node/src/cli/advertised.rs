//! `narmesh advertised`.

use super::{client, emit_report};
use crate::control::{ControlReply, ControlRequest};
use crate::status::AdvertisedReport;
use std::path::Path;

pub(super) fn advertised(config: &Path, json: bool) -> anyhow::Result<()> {
    let ControlReply::Advertised(report) = client::ask(config, &ControlRequest::Advertised)? else {
        return Err(client::mismatched());
    };
    emit_report(&report, json, AdvertisedReport::text)
}
