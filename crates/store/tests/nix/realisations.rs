//! Tests which realisations of a store are found, and which leave.

use crate::harness::{Kind, TestNix, eventually, open_policy};
use narmesh_protocol::{NixSecretKey, RealisationId};
use narmesh_store::{Offer, OfferPolicy, OfferedRealisation};
use std::process::Command;

const FEATURES: [&str; 3] = ["--option", "experimental-features", "nix-command ca-derivations"];

/// The ids and paths of all realisations in the database.
fn all(nix: &TestNix) -> Vec<(RealisationId, String)> {
    let sql = "select drvPath || '!' || outputName, path from Realisations \
        join ValidPaths on outputPath = ValidPaths.id";
    let said = Command::new("sqlite3").arg(nix.database()).arg(sql).output().unwrap();
    let rows = String::from_utf8(said.stdout).unwrap();
    let split = |row: &str| row.split_once('|').map(|(id, path)| (id.parse().unwrap(), path.to_owned())).unwrap();
    rows.lines().map(split).collect()
}

#[test]
fn realisations_leave_only_with_all_paths_that_they_name() {
    let nix = TestNix::new(Kind::Relocated);
    let nobody = RealisationId::new(&format!("sha256:{}", "0".repeat(64)), "out").unwrap();
    nix.build("fod");
    assert_eq!(nix.open().read_realisation(&nobody).unwrap(), None, "without the tables of the feature");

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nix/derivations.nix");
    nix.run("nix-build", &[&[file, "-A", "caapp", "--no-out-link"], FEATURES.as_slice()].concat());
    let key = NixSecretKey::from_seed("builder-1", &[9; 32]).unwrap();
    let policy = OfferPolicy { builder_key: Some(key.clone()), ..open_policy() };
    let offer = Offer::start(nix.open(), policy.clone(), Box::new(|_| {})).unwrap();
    eventually("everything was looked at", || offer.hash_parts().len() == 3 && !offer.is_busy());
    assert_eq!(offer.find_realisation(&nobody).unwrap(), OfferedRealisation::Absent);
    let known = all(&nix);
    assert_eq!(known.len(), 3, "the library, and the application before and after its inputs were known");
    let mut dependents = 0;
    for (id, path) in &known {
        let OfferedRealisation::Offered(given) = offer.find_realisation(id).unwrap() else { panic!("{id}") };
        assert_eq!((&given.id, &nix.full(&given.out_path)), (id, path));
        assert!(key.public().verify(&given.fingerprint(), &given.signatures[0]) && given.signatures.len() == 1);
        dependents += given.dependents.len();
    }
    assert_eq!(dependents, 1, "Nix 2.8 notes that the application refers to the library");

    offer.set_policy(OfferPolicy { builder_key: None, ..policy.clone() });
    let told = |offer: &Offer| known.iter().map(|(id, _)| offer.find_realisation(id).unwrap()).collect::<Vec<_>>();
    eventually("nobody vouches for them", || told(&offer) == vec![OfferedRealisation::Absent; 3]);
    // The library alone is not included, but the application names it.
    offer.set_policy(OfferPolicy { include: vec!["caapp*".to_owned()], ..policy.clone() });
    eventually("the library is withheld", || {
        let told = told(&offer);
        let withheld = told.iter().filter(|one| **one == OfferedRealisation::Withheld).count();
        withheld == 2
            && told.iter().any(|one| matches!(one, OfferedRealisation::Offered(given) if given.dependents.is_empty()))
    });
    offer.set_policy(OfferPolicy { exclude: vec!["calib*".to_owned()], ..policy });
    assert_eq!(told(&offer), vec![OfferedRealisation::Withheld; 3]);
}
