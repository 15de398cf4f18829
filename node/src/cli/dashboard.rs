//! `narmesh dashboard`.

use super::{client, emit};
use crate::control::{ControlReply, ControlRequest};
use narmesh_protocol::HashPart;
use std::path::Path;
use url::form_urlencoded;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Which page: overview, machines, requests, sources, warnings, or a store path
    page: Option<String>,
}

pub(super) fn dashboard(config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let page = arguments.page.as_deref().map(page_address).transpose()?.unwrap_or_default();
    let ControlReply::Dashboard { link } = client::ask(config, &ControlRequest::Dashboard)? else {
        return Err(client::mismatched());
    };
    // The link alone, so that `xdg-open "$(narmesh dashboard)"` works.
    Ok(emit(&format!("{link}{page}\n"))?)
}

/// What a link says after it so that it leads to this page.
fn page_address(page: &str) -> anyhow::Result<String> {
    let address = match page {
        "overview" => return Ok(String::new()),
        "machines" | "requests" | "sources" | "warnings" => page.to_owned(),
        path => {
            let base = path.rsplit('/').next().unwrap_or(path);
            // What has no hash part is no path, and most likely a page that was misspelt.
            anyhow::ensure!(
                base.len() >= HashPart::TEXT_LEN && !base.contains(['?', '#']),
                "there is no page {page:?}; accepted: overview, machines, requests, sources, warnings, a store path, its base \
                 name or its hash part"
            );
            format!("path/{base}")
        }
    };
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("to", &address).finish();
    Ok(format!("?{query}"))
}
