//! What peers may see of this machine's store, and why not the rest.

use crate::status::{AdvertisedPath, AdvertisedReport, OwnStoreView, WithheldPath};
use narmesh_protocol::{HashPart, NarInfo, StoreDir};
use narmesh_store::{NixStore, Offer, Offering, StoreError, Withheld};

/// Every path, offered or withheld, as a peer would find it now.
pub(super) fn collect_advertised(offer: &Offer, store: &NixStore) -> AdvertisedReport {
    let (listed, store_dir) = (offer.list(), store.store_dir());
    // The list leaves derivations out that are not offered, so every valid path that is not in it is one of these.
    let derivations = store.valid_paths().saturating_sub(listed.len());
    let mut report = AdvertisedReport { never: derivations as u64, ..AdvertisedReport::default() };
    for (path, nar_size, ballot) in listed {
        let full = store_dir.display(&path);
        match ballot {
            Offering::Offered => {
                // Asked as a peer would: the list is of a moment ago, and this reads the row as it is now.
                let offered = offer.find_offered(&path.hash_part());
                match why_kept(offered) {
                    Ok(offered) => report.paths.push(AdvertisedPath {
                        path: full,
                        nar_size,
                        signed_by: signers(&offered.narinfo_text, store_dir),
                        attested: offered.is_attested,
                    }),
                    Err(reason) => report.withheld.push(WithheldPath { path: full, reason }),
                }
            }
            Offering::Withheld(Withheld::Source) => report.never += 1,
            Offering::Withheld(why) => {
                report.withheld.push(WithheldPath { path: full, reason: why.sentence().to_owned() });
            }
        }
    }
    report.paths.sort();
    report.withheld.sort();
    report
}

/// Looks again at a path that is in the summary. If a peer that asks would not get it, the error says why, in words.
fn why_kept<T>(looked: Result<Option<T>, StoreError>) -> Result<T, String> {
    match looked {
        Ok(Some(offered)) => Ok(offered),
        Ok(None) => Err("it was offered until a moment ago, but no peer gets it any more".to_owned()),
        Err(error) => Err(format!("it is offered, but no peer gets it as long as this lasts: {error}")),
    }
}

/// Names of the keys whose signatures a path leaves with, read from the very text that peers get.
fn signers(narinfo_text: &[u8], store_dir: &StoreDir) -> Vec<String> {
    let info = NarInfo::parse(store_dir, narinfo_text);
    info.map_or_else(|_| Vec::new(), |info| info.signatures.into_iter().map(|signature| signature.key_name).collect())
}

/// Adds to the report whether peers may see a path that we hold, and if not, why.
pub(super) fn tell_of_offer(view: &mut OwnStoreView, offer: &Offer, part: &HashPart) {
    let Err(kept) = why_kept(offer.find_offered(part)) else {
        view.advertised = true;
        return;
    };
    let ballot = offer.list().into_iter().find(|(path, ..)| path.hash_part() == *part).map(|(_, _, ballot)| ballot);
    view.reason = Some(match ballot {
        Some(Offering::Offered) => kept,
        Some(Offering::Withheld(why)) => why.sentence().to_owned(),
        None => "it was not looked at yet, or it is a derivation (advertise.derivations)".to_owned(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_cannot_be_read_is_not_reported_as_offered() {
        assert_eq!(why_kept(Ok(Some(["one-1"]))), Ok(["one-1"]));
        assert!(why_kept::<()>(Ok(None)).unwrap_err().contains("no peer gets it"));
        let unreadable = StoreError::Row { row: 7, path: "/nix/store/x".to_owned(), column: "narSize" };
        let told = why_kept::<()>(Err(unreadable)).unwrap_err();
        assert!(told.contains("no peer gets it") && told.contains("narSize of row 7"), "{told}");
    }
}
