//! The thread that checks all paths and follows the changes of the store.

use super::policy::{Rules, Voucher};
use super::{OfferChange, Shared};
use crate::{PathInfo, StoreChange, StoreError};
use narmesh_protocol::HashPart;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Paths whose signatures are verified before the next look at changes: about 20 ms.
const VOUCH_BATCH: usize = 256;

/// Pause before rows that could not be read are tried again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) touched: BTreeSet<HashPart>,
    /// Paths of which builders said something new.
    pub(super) attested: BTreeSet<HashPart>,
    /// New derivations, whose outputs may have to be checked again.
    pub(super) derivations: BTreeSet<HashPart>,
    /// Whether the index changed and the listener must be told.
    pub(super) is_unpublished: bool,
    pub(super) is_stopping: bool,
    /// Whether the thread waits because it has checked everything.
    pub(super) is_waiting: bool,
}

impl Pending {
    pub(super) fn is_idle(&self) -> bool {
        let has_paths = !(self.touched.is_empty() && self.derivations.is_empty() && self.attested.is_empty());
        !(has_paths || self.is_unpublished || self.is_stopping)
    }
}

impl Shared {
    pub(super) fn touch(&self, change: &StoreChange) {
        let offers_derivations = self.rules().offers_derivations();
        let mut pending = self.pending.lock();
        pending.touched.extend(change.removed.iter().chain(&change.failed).chain(&change.mended));
        for part in &change.added {
            let is_derivation = self.store.is_derivation(part);
            // A derivation says whether its outputs may be substituted, so those that are known are looked at again.
            if is_derivation {
                pending.derivations.insert(*part);
            }
            if !is_derivation || offers_derivations {
                pending.touched.insert(*part);
            }
        }
        drop(pending);
        self.woken.notify_all();
    }

    pub(super) fn run(&self, on_change: &dyn Fn(OfferChange)) {
        let mut pause = RETRY_MIN;
        loop {
            let (mut touched, attested, derivations, is_unpublished) = {
                let mut pending = self.pending.lock();
                if pending.is_stopping {
                    return;
                }
                // Taken all at once, so that whoever notes a change does not wait for the look at it.
                let Pending { touched, attested, derivations, is_unpublished, .. } = std::mem::take(&mut *pending);
                (touched, attested, derivations, is_unpublished)
            };
            for derivation in derivations {
                touched.extend(self.find_known_outputs(&derivation));
            }
            let has_looked = !touched.is_empty();
            for part in touched {
                self.inspect(&part);
                if self.pending.lock().is_stopping {
                    return;
                }
            }
            self.index.write().vouch_again(&attested);
            // One batch only, so that changes and the order to stop are seen between batches.
            let has_vouched = self.vouch();
            // The first round has inspected all paths that were there at the start, so it is known which are private.
            self.has_looked.store(true, Ordering::Release);
            if has_looked || has_vouched || is_unpublished {
                let change = {
                    let mut index = self.index.write();
                    index.settle(&self.rules());
                    index.publish()
                };
                if !change.added.is_empty() || !change.removed.is_empty() {
                    // Before the listener is told, so that a path is already served when peers hear of it.
                    {
                        let mut offered = self.offered.write();
                        for part in &change.removed {
                            offered.remove(part);
                        }
                        offered.extend(&change.added);
                    }
                    on_change(change);
                }
                continue;
            }
            let unreadable = self.index.read().unreadable();
            let mut pending = self.pending.lock();
            while pending.is_idle() {
                pending.is_waiting = true;
                // Rows that could not be read are tried again, more and more rarely: nothing tells when they can be.
                if unreadable.is_empty() {
                    pause = RETRY_MIN;
                    self.woken.wait(&mut pending);
                } else if self.woken.wait_for(&mut pending, pause).timed_out() {
                    pause = (pause * 2).min(RETRY_MAX);
                    pending.touched.extend(&unreadable);
                }
            }
            pending.is_waiting = false;
        }
    }

    /// The valid outputs of a derivation that became valid after them.
    fn find_known_outputs(&self, derivation: &HashPart) -> Vec<HashPart> {
        let outputs = self.store.read_outputs(derivation).unwrap_or_else(|error| {
            tracing::warn!(store_path = %derivation, %error, "cannot read the outputs of a derivation");
            Vec::new()
        });
        outputs.into_iter().filter(|part| self.store.contains(part)).collect()
    }

    /// Updates the index's entry for one path.
    fn inspect(&self, part: &HashPart) {
        let offers_derivations = self.rules().offers_derivations();
        let may_be_listed = |(_, info): &(i64, PathInfo)| offers_derivations || !info.path.is_derivation();
        // Read before the index is locked: a locked database must not keep those waiting who only read the index.
        let entry = self.store.read_registration(part).and_then(|registered| {
            registered.filter(may_be_listed).map(|(row, info)| self.read_entry(row, &info)).transpose()
        });
        let mut index = self.index.write();
        match entry {
            Ok(Some(entry)) => index.put(&self.rules(), entry),
            Ok(None) => index.remove(part),
            Err(error) => {
                drop(index);
                self.set_unreadable(part, &error);
            }
        }
    }

    /// Notes a path whose row cannot be read. It may be private, and so may be whatever refers to it, so these are
    /// withheld; the row is tried again later.
    fn set_unreadable(&self, part: &HashPart, error: &StoreError) {
        let path = match error {
            StoreError::Row { path, .. } => self.store.store_dir().parse_path(path).ok(),
            _ => None,
        };
        if self.index.write().set_unreadable(*part, path) {
            tracing::warn!(store_path = %part, %error, "cannot read its row: neither it nor what refers to it is offered");
        }
    }

    /// Finds out for a batch of paths that could be offered who vouches for them. Returns whether there were any to check.
    fn vouch(&self) -> bool {
        let rules = self.rules();
        let parts = {
            let mut index = self.index.write();
            // It must be known first which paths are private.
            index.settle(&rules);
            index.take_unvouched(VOUCH_BATCH)
        };
        for part in &parts {
            // Signatures are verified only for what nothing else withholds.
            if !self.index.read().could_be_offered(&rules, part) {
                continue;
            }
            let voucher = match self.find_voucher(&rules, part) {
                Ok(voucher) => voucher,
                Err(error) => {
                    self.set_unreadable(part, &error);
                    continue;
                }
            };
            self.index.write().set_voucher(&rules, part, voucher);
        }
        !parts.is_empty()
    }

    fn find_voucher(&self, rules: &Rules, part: &HashPart) -> Result<Voucher, StoreError> {
        let Some((_, info)) = self.store.read_registration(part)? else { return Ok(Voucher::Nobody) };
        let derivers = if rules.asks_for_derivers() { self.store.read_derivers(&info)? } else { Vec::new() };
        Ok(self.with_attestations(rules.vouchers(&info, &derivers).0, &info))
    }
}
