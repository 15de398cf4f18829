//! Checks whether the contents that a source sends match their content address.

use std::sync::Arc;

use narmesh_protocol::{ContentAddress, NarInfo, NarUrl};

use super::NarContext;
use super::transfer::{Step, Transfer};
use crate::shared::Shared;
use crate::source::{Observation, SourceId};

/// The largest content-addressed path without a trusted signature that is hashed before its narinfo is given.
const BYTES_MAX: u64 = 256 << 20;

/// Reads a NAR only to hash its contents.
#[derive(Debug)]
pub(crate) struct ContentsCheck {
    shared: Arc<Shared>,
    context: Arc<NarContext>,
}

impl ContentsCheck {
    pub(crate) fn new(shared: Arc<Shared>, context: Arc<NarContext>) -> Self {
        Self { shared, context }
    }

    /// Whether `source` sends the NAR that `info` promises, and its contents hash to the content address.
    pub(crate) async fn check(&self, source: SourceId, info: &NarInfo, address: &ContentAddress) -> bool {
        // No key that is trusted signed this, so a source decides what we fetch; it must not be without end.
        if info.nar_size > BYTES_MAX {
            return false;
        }
        let hash_part = info.path.hash_part();
        let url = NarUrl::new(hash_part, info.nar_hash, info.nar_size);
        let self_reference = info.references.contains(&info.path).then_some(&hash_part);
        let mut contents = address.verifier(self_reference);
        let settings = self.shared.settings().transfer;
        let mut transfer = Transfer::new(Arc::clone(&self.context), settings, url, [source]);
        // Another source may send the right NAR, which says nothing about who gave this narinfo.
        transfer.ask_only_given_sources();
        loop {
            let mut chunk = Vec::new();
            let step = transfer.step(&mut chunk).await;
            contents.feed(&chunk);
            match step {
                Step::Data => {}
                Step::Verified => {
                    let matches = contents.matches();
                    // It is the NAR that the narinfo promises, so what is wrong is the narinfo.
                    if !matches {
                        self.shared.sources.observe(source, Observation::FalseNarInfo);
                    }
                    return matches;
                }
                // The verifier of the address cannot take back what it was fed.
                Step::BegunAnew | Step::Gone | Step::Unreached => return false,
            }
        }
    }
}
