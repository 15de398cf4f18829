//! Tests who vouches for an offered path, and which signatures peers see.

use crate::harness::{Kind, TestNix, eventually};
use crate::offer::{builder, narinfo, offerings, policy, start, update, wait_until_told};
use narmesh_protocol::{
    Fingerprint, HashPart, NarInfo, NixPublicKey, NixSecretKey, NixSignature, StorePath, TrustedKeys,
};
use narmesh_store::{AttestedPaths, OfferPolicy, Offering, PathInfo, StoreError, Withheld};
use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};

/// Signs the paths with a new key and returns that key.
fn sign(nix: &TestNix, paths: &[&StorePath]) -> TrustedKeys {
    let file = nix.dir.path().join("cache-1").to_str().unwrap().to_owned();
    nix.run("nix-store", &["--generate-binary-cache-key", "cache-1", &file, &format!("{file}.pub")]);
    for path in paths {
        nix.run("nix", &["store", "sign", "-k", &file, &nix.full(path)]);
    }
    let key = NixPublicKey::parse(fs::read_to_string(format!("{file}.pub")).unwrap().trim()).unwrap();
    TrustedKeys::new([key]).unwrap()
}

#[test]
fn false_deriver_does_not_withhold_a_path() {
    let nix = TestNix::new(Kind::Relocated);
    let [app, lib, fod, local] = ["app", "lib", "fod", "local"].map(|name| nix.build(name));
    let trusted = sign(&nix, &[&app, &lib, &fod]);
    let forbidding = nix.run("nix-store", &["-q", "--deriver", &nix.full(&local)]);
    // As if substituted from a binary cache that lies.
    for path in [&app, &lib] {
        update(&nix, path, &format!("ultimate = NULL, deriver = '{forbidding}'"));
    }
    update(&nix, &fod, "ultimate = NULL, deriver = NULL");
    let (offer, _) = start(&nix, OfferPolicy { trusted, ..policy() });
    let offerings = offerings(&offer);
    for name in ["app-1.0", "lib-1.0", "fod-1.0"] {
        assert_eq!(offerings[name], Offering::Offered, "{name}");
    }
    assert_eq!(offerings["local-1.0"], Offering::Withheld(Withheld::SubstitutesForbidden));
    assert_eq!(narinfo(&nix, &offer, &app).deriver, None, "nor is it handed on");
}

#[test]
fn fixed_output_from_elsewhere_needs_a_signature_or_a_derivation() {
    let builder = TestNix::new(Kind::Chroot);
    let fod = builder.build("fod");
    let trusted = sign(&builder, &[&fod]);
    let client = TestNix::new(Kind::Chroot);
    let full = builder.full(&fod);
    builder.run("nix", &["copy", "--no-check-sigs", "--to", &client.url(), &full]);
    update(&client, &fod, "deriver = NULL");
    let (offer, believed) = start(&client, OfferPolicy { trusted, ..policy() });
    assert_eq!(offerings(&offer)["fod-1.0"], Offering::Offered, "a trusted key signed it");
    offer.set_policy(policy());
    eventually("without that it may be a source", || {
        offerings(&offer)["fod-1.0"] == Offering::Withheld(Withheld::Source)
    });
    let file = client.dir.path().join("derivations.nix");
    client.run("nix-instantiate", &[file.to_str().unwrap(), "-A", "fod"]);
    eventually("a derivation here makes it", || offerings(&offer)["fod-1.0"] == Offering::Offered);
    wait_until_told(&offer, &believed);
}

#[test]
fn unknown_content_address_is_withheld_until_a_trusted_key_signs() {
    let nix = TestNix::new(Kind::Relocated);
    let [app, lib, file] = ["app", "lib", "file"].map(|name| nix.build(name));
    let trusted = sign(&nix, &[&app, &lib]);
    update(&nix, &lib, "ultimate = NULL, deriver = NULL");
    let connection = rusqlite::Connection::open(nix.database()).unwrap();
    // No derivation here makes it.
    connection.execute("DELETE FROM DerivationOutputs WHERE path = ?1", [nix.full(&lib)]).unwrap();
    // A method of a newer Nix, and what this version cannot take apart at all.
    for unknown in [format!("fixed:git:sha1:{}", "0".repeat(32)), "sha256-AAAA".to_owned()] {
        update(&nix, &lib, &format!("ca = '{unknown}'"));
        let (offer, believed) = start(&nix, policy());
        let now = offerings(&offer);
        assert_eq!(now["lib-1.0"], Offering::Withheld(Withheld::NotUnderstood));
        assert_eq!(now["app-1.0"], Offering::Withheld(Withheld::ClosureWithheld));
        assert_eq!(now["file-1.0"], Offering::Offered);
        offer.set_policy(OfferPolicy { trusted: trusted.clone(), ..policy() });
        eventually("its signature lets it go", || offerings(&offer)["lib-1.0"] == Offering::Offered);
        wait_until_told(&offer, &believed);
        assert_eq!(offerings(&offer)["app-1.0"], Offering::Offered);
        let told = offer.find_offered(&lib.hash_part()).unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&told.narinfo_text).contains("CA:"), "an older Nix could not read it");
        // The name still withholds everything that refers to it.
        offer.set_policy(OfferPolicy { trusted: trusted.clone(), exclude: vec!["lib*".to_owned()], ..policy() });
        wait_until_told(&offer, &believed);
        assert_eq!(offerings(&offer)["app-1.0"], Offering::Withheld(Withheld::ClosureWithheld));
    }
    assert!(nix.open().contains(&file.hash_part()));
}

#[test]
fn peers_see_only_our_and_trusted_signatures() {
    let nix = TestNix::new(Kind::Relocated);
    let app = nix.build("app");
    let fod = nix.build("fod");
    let key_files: Vec<_> = ["trusted-1", "stranger-1"]
        .iter()
        .map(|name| {
            let file = nix.dir.path().join(name).to_str().unwrap().to_owned();
            nix.run("nix-store", &["--generate-binary-cache-key", name, &file, &format!("{file}.pub")]);
            nix.run("nix", &["store", "sign", "-k", &file, &nix.full(&app)]);
            file
        })
        .collect();
    let public = |file: &str| NixPublicKey::parse(fs::read_to_string(format!("{file}.pub")).unwrap().trim()).unwrap();
    let trusted = TrustedKeys::new([public(&key_files[0])]).unwrap();

    // Built here: peers see a new signature by our key and the one by the trusted key, but not the stranger's.
    let (offer, believed) = start(&nix, OfferPolicy { trusted: trusted.clone(), ..policy() });
    let signed = narinfo(&nix, &offer, &app);
    let names: Vec<_> = signed.signatures.iter().map(|signature| signature.key_name.as_str()).collect();
    assert_eq!(names, ["builder-1", "trusted-1"]);
    let fingerprint = signed.fingerprint(&nix.location.store_dir);
    assert!(builder().public().verify(&fingerprint, &signed.signatures[0]));
    assert!(trusted.verifies(&fingerprint, &signed.signatures[1]));

    // Without a builder key: only the path that a trusted key signed, and the one that its contents certify.
    offer.set_policy(OfferPolicy { trusted, builder_key: None, ..policy() });
    wait_until_told(&offer, &believed);
    eventually("what nobody vouches for is withdrawn", || offer.hash_parts().len() == 2);
    wait_until_told(&offer, &believed);
    assert_eq!(narinfo(&nix, &offer, &app).signatures.len(), 1);
    let certified = narinfo(&nix, &offer, &fod);
    assert!(certified.signatures.is_empty() && certified.content_address.is_some());
    assert_eq!(offerings(&offer)["lib-1.0"], Offering::Withheld(Withheld::NotVouchedFor));

    // A signature that names a trusted key but was not made by it does not count.
    let impostor = NixPublicKey::parse(&format!(
        "trusted-1:{}",
        fs::read_to_string(format!("{}.pub", key_files[1])).unwrap().trim().split_once(':').unwrap().1
    ));
    let trusted = TrustedKeys::new([impostor.unwrap()]).unwrap();
    offer.set_policy(OfferPolicy { trusted, builder_key: None, ..policy() });
    assert_eq!(offer.find_offered(&app.hash_part()).unwrap(), None, "at once");
    wait_until_told(&offer, &believed);
}

#[test]
fn copied_path_without_signature_is_not_offered() {
    let builder = TestNix::new(Kind::Chroot);
    let lib = builder.build("lib");
    let client = TestNix::new(Kind::Chroot);
    let full = builder.full(&lib);
    builder.run("nix", &["copy", "--no-check-sigs", "--to", &client.url(), &full]);
    let store = client.open();
    assert!(store.contains(&lib.hash_part()));
    let (offer, _) = start(&client, policy());
    assert_eq!(offerings(&offer)["lib-1.0"], Offering::Withheld(Withheld::NotVouchedFor));
    assert_eq!(offer.find_offered(&lib.hash_part()).unwrap(), None);
}

/// Builds as Nix does: the derivation is here, the build happens elsewhere, and the output is
/// copied back without a signature.
#[test]
fn remote_build_is_signed_only_if_the_policy_says_so() {
    let client = TestNix::new(Kind::Chroot);
    let builder = TestNix::new(Kind::Chroot);
    let derivations = client.dir.path().join("derivations.nix");
    let builders = format!("{} x86_64-linux,aarch64-linux - 1", builder.url());
    let arguments =
        [derivations.to_str().unwrap(), "-A", "app", "--no-out-link", "--max-jobs", "0", "--builders", &builders];
    let built = client.run("nix-build", &arguments);
    let app = client.location.store_dir.parse_path(&built).unwrap();
    let store = client.open();
    let info = store.read_path_info(&app.hash_part()).unwrap().unwrap();
    assert!(!info.ultimate && info.signatures.is_empty(), "{info:?}");
    assert!(builder.open().read_path_info(&app.hash_part()).unwrap().unwrap().ultimate, "it was built there");

    let (offer, believed) = start(&client, policy());
    assert_eq!(offerings(&offer)["app-1.0"], Offering::Withheld(Withheld::NotVouchedFor));
    offer.set_policy(OfferPolicy { sign_remote_builds: true, ..policy() });
    eventually("the operator wants it", || offerings(&offer)["app-1.0"] == Offering::Offered);
    wait_until_told(&offer, &believed);
    let signed = narinfo(&client, &offer, &app);
    let fingerprint = signed.fingerprint(&client.location.store_dir);
    assert!(builder_key_signed(&signed, &fingerprint));
    assert!(signed.deriver.is_some(), "the derivation is here, and makes it");
    // Whoever copied it here may have named another derivation: nobody signed that, so we do not either.
    let [other] = ["symlink"].map(|name| client.run("nix-instantiate", &[derivations.to_str().unwrap(), "-A", name]));
    update(&client, &app, &format!("deriver = '{}'", other.trim()));
    eventually("the false one is not handed on", || narinfo(&client, &offer, &app).deriver.is_none());
    assert!(builder_key_signed(&narinfo(&client, &offer, &app), &fingerprint), "the path itself is");
    // A path that no derivation here makes, and a path that a stranger signed, do not count as remote builds for us.
    let other = TestNix::new(Kind::Chroot);
    let [unmade, substituted] = ["file", "symlink"].map(|name| other.build(name));
    sign(&other, &[&substituted]);
    client.run("nix-instantiate", &[derivations.to_str().unwrap(), "-A", "symlink"]);
    for path in [&unmade, &substituted] {
        other.run("nix", &["copy", "--no-check-sigs", "--to", &client.url(), &other.full(path)]);
    }
    for name in ["file-1.0", "symlink-1.0"] {
        eventually("they are known", || {
            offerings(&offer).get(name) == Some(&Offering::Withheld(Withheld::NotVouchedFor))
        });
    }
    wait_until_told(&offer, &believed);
}

/// A builder that attests the paths in the set, as they are here. Its signatures can be read unless `is_locked`.
#[derive(Clone)]
struct Attesting {
    key: NixSecretKey,
    nix: narmesh_protocol::StoreDir,
    parts: Arc<Mutex<BTreeSet<HashPart>>>,
    is_locked: Arc<Mutex<bool>>,
}

impl AttestedPaths for Attesting {
    fn is_attested(&self, info: &PathInfo) -> bool {
        self.parts.lock().unwrap().contains(&info.path.hash_part())
    }

    fn read_signatures(&self, info: &PathInfo) -> Result<Vec<NixSignature>, String> {
        if *self.is_locked.lock().unwrap() {
            return Err("the file is locked".to_owned());
        }
        let signature = || self.key.sign(&info.fingerprint(&self.nix));
        Ok(self.is_attested(info).then(signature).into_iter().collect())
    }
}

#[test]
fn attestation_lets_an_output_go_and_nothing_that_is_private() {
    let builder = TestNix::new(Kind::Chroot);
    let [app, lib, source] = ["app", "lib", "withsource"].map(|name| builder.build(name));
    let nix = TestNix::new(Kind::Chroot);
    for path in [&app, &source] {
        builder.run("nix", &["copy", "--no-check-sigs", "--to", &nix.url(), &builder.full(path)]);
    }
    let (offer, believed) = start(&nix, OfferPolicy { exclude: vec!["app*".to_owned()], ..policy() });
    let key = NixSecretKey::from_seed("elsewhere-1", &[3; 32]).unwrap();
    let store_dir = nix.location.store_dir.clone();
    let attesting = Attesting { key, nix: store_dir, parts: Arc::default(), is_locked: Arc::default() };
    offer.follow_attestations(Box::new(attesting.clone()));
    wait_until_told(&offer, &believed);
    assert_eq!(offerings(&offer)["lib-1.0"], Offering::Withheld(Withheld::NotVouchedFor));

    // The builder attests everything that is here, as nobody would.
    let all: Vec<HashPart> = nix.open().hash_parts().into_iter().collect();
    let sources: Vec<HashPart> = {
        let named = |path: &StorePath| path.name() == "a-source";
        offer.list().into_iter().filter(|(path, ..)| named(path)).map(|(path, ..)| path.hash_part()).collect()
    };
    attesting.parts.lock().unwrap().extend(all.iter().copied());
    offer.on_attested(&all);
    eventually("its word lets it go", || offerings(&offer)["lib-1.0"] == Offering::Offered);
    wait_until_told(&offer, &believed);
    let told = offer.find_offered(&lib.hash_part()).unwrap().unwrap();
    assert!(told.is_attested);
    let signed = narinfo(&nix, &offer, &lib);
    let fingerprint = signed.fingerprint(&nix.location.store_dir);
    assert!(attesting.key.public().verify(&fingerprint, &signed.signatures[0]) && signed.signatures.len() == 1);
    assert_eq!(offerings(&offer)["app-1.0"], Offering::Withheld(Withheld::Excluded));

    // Without what needs it, the source stays here, attested or not.
    offer.set_policy(OfferPolicy { exclude: vec!["withsource*".to_owned()], ..policy() });
    eventually("the other policy counts", || offerings(&offer)["app-1.0"] == Offering::Offered);
    wait_until_told(&offer, &believed);
    assert!(!sources.is_empty());
    for part in &sources {
        assert_eq!(offer.find_offered(part).unwrap(), None);
    }
    assert_eq!(offerings(&offer)["a-source"], Offering::Withheld(Withheld::Source));

    // That the signature cannot be read now is no reason to say that the path is gone.
    *attesting.is_locked.lock().unwrap() = true;
    offer.set_policy(policy());
    wait_until_told(&offer, &believed);
    let error = offer.find_offered(&lib.hash_part()).unwrap_err();
    assert!(matches!(error, StoreError::Attestations { .. }) && error.may_pass(), "{error}");
    *attesting.is_locked.lock().unwrap() = false;
    // Taken back.
    attesting.parts.lock().unwrap().clear();
    assert_eq!(offer.find_offered(&lib.hash_part()).unwrap(), None);
    eventually("and it is withheld", || offerings(&offer)["lib-1.0"] == Offering::Withheld(Withheld::NotVouchedFor));
    // No attestation covers a content address, so none vouches for what has a false one.
    attesting.parts.lock().unwrap().extend(all.iter().copied());
    offer.on_attested(&all);
    eventually("attested again", || offerings(&offer)["lib-1.0"] == Offering::Offered);
    wait_until_told(&offer, &believed);
    update(&nix, &lib, &format!("ca = 'fixed:r:sha256:{}'", "0".repeat(52)));
    assert_eq!(offer.find_offered(&lib.hash_part()).unwrap(), None);
}

fn builder_key_signed(info: &NarInfo, fingerprint: &Fingerprint) -> bool {
    info.signatures.iter().any(|signature| builder().public().verify(fingerprint, signature))
}
