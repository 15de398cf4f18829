//! Decides at each request whether a path is served, from its row as it is now.

use super::policy::{Origin, Rules, Voucher};
use super::rendered::Rendered;
use super::{OfferedPath, Shared};
use crate::{PathInfo, StoreError};
use narmesh_protocol::{HashPart, NarUrl};
use std::sync::Arc;

impl Shared {
    /// The second step of [`Offer::find_offered`], for a path that is offered as far as memory knows.
    pub(super) fn recheck(&self, part: &HashPart) -> Result<Option<Rendered>, StoreError> {
        let rules = self.rules();
        // Taken before the row is read, so that a change in between makes the next stamp differ.
        let stamp = self.store.read_stamp()?;
        let cached = self.rendered.lock().get(part).filter(|cached| cached.rules_number == rules.number);
        if let Some(cached) = cached.as_ref().filter(|cached| cached.stamp == stamp) {
            let is_whole = self.store.find_fault(cached.row, &cached.path.info).is_none();
            return Ok(is_whole.then(|| cached.clone()));
        }
        let offered = match self.store.read_registration(part)? {
            Some((row, info)) if self.store.find_fault(row, &info).is_none() => {
                let path = match cached {
                    // The database changed, but not this path.
                    Some(cached) if cached.row == row && cached.path.info == info => Some(cached.path),
                    Some(_) | None => self.render(&rules, row, info)?,
                };
                path.map(|path| Rendered { path, row, stamp, rules_number: rules.number })
            }
            Some(_) | None => None,
        };
        let Some(rendered) = offered else {
            self.rendered.lock().remove(part);
            self.pending.lock().touched.insert(*part);
            self.woken.notify_all();
            return Ok(None);
        };
        self.rendered.lock().put(*part, rendered.clone());
        Ok(Some(rendered))
    }

    /// What [`Self::recheck`] would return, if that is in memory and nobody has to be waited for.
    pub(super) fn recall(&self, part: &HashPart) -> Option<Rendered> {
        let number = self.rules().number;
        let stamp = self.store.read_stamp_at_once()?;
        self.rendered.lock().get(part).filter(|known| known.stamp == stamp && known.rules_number == number)
    }

    /// Applies the whole predicate to this row, except for the limit on the number of paths.
    fn render(&self, rules: &Rules, row: i64, info: PathInfo) -> Result<Option<Arc<OfferedPath>>, StoreError> {
        let derivers = self.store.read_derivers(&info)?;
        let entry = self.make_entry(row, &info, &derivers);
        // The lock is held for this look alone; what follows reads the disk and signs.
        let (is_private, is_carried) = {
            let index = self.index.read();
            let is_private = |part: &HashPart| index.is_private(part);
            let is_private = entry.why_private(rules).is_some() || entry.references.iter().any(is_private);
            (is_private, index.is_carried(&info.path.hash_part()))
        };
        let (voucher, mut signatures) = rules.vouchers(&info, &derivers);
        let voucher = self.with_attestations(voucher, &info);
        // Contents prove what a path is, but not that it may leave: a source goes only with what needs it.
        let may_leave = match (entry.origin, voucher) {
            (_, Voucher::Nobody) | (Origin::Unknown, Voucher::Contents) => false,
            (Origin::Added, Voucher::Contents) => is_carried,
            (Origin::Output, Voucher::Contents) | (_, Voucher::Signature | Voucher::Attestation) => {
                is_carried || entry.is_included(rules)
            }
        };
        let is_of_kind = !info.path.is_derivation() || rules.offers_derivations();
        if !is_of_kind || entry.why_not_sent().is_some() || is_private || !may_leave {
            return Ok(None);
        }
        let is_attested = voucher == Voucher::Attestation;
        if is_attested {
            // Only now: to read them from the disk is worth it for what may leave.
            signatures = self.read_attested(&info)?;
            // The attestation was taken back a moment ago.
            if signatures.is_empty() {
                return Ok(None);
            }
        }
        let url = NarUrl::new(info.path.hash_part(), info.nar_hash, info.nar_size);
        let narinfo = info.narinfo(signatures);
        let text = match rules.sign_deriver(&info, &derivers) {
            Some(line) => narinfo.render(self.store.store_dir(), &url.to_string()) + &line,
            // No signature covers it, so a receiver could not trust it.
            None => narinfo.without_hearsay().render(self.store.store_dir(), &url.to_string()),
        };
        Ok(Some(Arc::new(OfferedPath { info, narinfo_text: text.into_bytes().into(), is_attested })))
    }
}
