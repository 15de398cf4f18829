//! Whether a narinfo may be handed to Nix, and with which signatures.

use narmesh_protocol::{ContentAddress, HashPart, NarInfo, NarInfoError, NixSignature, StoreDir, TrustedKeys};

/// A narinfo that may be handed on, reduced to what may leave the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrustedNarInfo {
    /// The narinfo, only with signatures that are trusted and verify.
    pub(crate) info: NarInfo,
    /// What vouches for it, or still has to before it is given.
    pub(crate) proof: Proof,
}

/// What vouches for a narinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// At least one trusted signature over the fingerprint.
    Signed,
    /// No trusted key signed it: a verdict has to vouch for it, and the policy demands one.
    Verdict,
    /// The store path follows from the content address, and the NarHash is the content address.
    ContentAddress,
    /// The store path follows from the content address, but the NarHash does not: the contents must be hashed first,
    /// since a false NarHash under a true content address would stay in Nix's cache for 30 days.
    Contents(ContentAddress),
}

/// Why a narinfo is not handed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Distrust {
    /// The text is not a narinfo.
    #[error("its narinfo is malformed: {0}")]
    Malformed(#[from] NarInfoError),
    /// It is about another path.
    #[error("its narinfo is about another path")]
    OtherPath,
    /// Another store path follows from the content address.
    #[error("its content address does not match the store path")]
    FalseContentAddress,
    /// It names a key that we trust, but that key did not sign this. A holder hands on only signatures that verify with
    /// its own trusted keys, so either this is a lie, or two machines trust different keys under one name.
    #[error("its signature by {key_name} does not verify")]
    Forged {
        /// The name of the key.
        key_name: String,
    },
    /// No trusted key signed it.
    #[error("no trusted signature")]
    Unsigned,
    /// It has no well-formed signature of anybody and no content address, but whatever is advertised has one or the
    /// other.
    #[error("neither a signature nor a content address")]
    Bare,
}

impl Distrust {
    /// Whether the peer broke a rule, rather than merely trusting other keys than we do.
    pub(crate) fn is_misdeed(&self) -> bool {
        match self {
            Self::Malformed(_) | Self::OtherPath | Self::FalseContentAddress | Self::Forged { .. } | Self::Bare => true,
            Self::Unsigned => false,
        }
    }
}

/// Parses and judges a peer's narinfo. With `by_verdict`, an agreed fingerprint is a proof as well: see
/// [`Proof::Verdict`].
pub(crate) fn judge(
    text: &[u8],
    asked: &HashPart,
    store_dir: &StoreDir,
    trusted: &TrustedKeys,
    by_verdict: bool,
) -> Result<TrustedNarInfo, Distrust> {
    judge_info(parse(text, asked, store_dir)?, store_dir, trusted, by_verdict)
}

/// Parses a peer's narinfo, which must be about the path asked for. Its `Deriver` is left out: no signature of Nix
/// covers it, and Nix would keep it and believe it. One that its builder signed is put back by whoever judges.
pub(crate) fn parse(text: &[u8], asked: &HashPart, store_dir: &StoreDir) -> Result<NarInfo, Distrust> {
    let info = NarInfo::parse(store_dir, text)?;
    if info.path.hash_part() != *asked {
        return Err(Distrust::OtherPath);
    }
    Ok(info.without_hearsay())
}

/// Judges a narinfo that was parsed, or that was made from our own database.
pub(crate) fn judge_info(
    mut info: NarInfo,
    store_dir: &StoreDir,
    trusted: &TrustedKeys,
    by_verdict: bool,
) -> Result<TrustedNarInfo, Distrust> {
    let fingerprint = info.fingerprint(store_dir);
    let named = info.signatures.iter().find(|signature| trusted.by_name(&signature.key_name).is_some());
    let named = named.map(|signature| signature.key_name.clone());
    if info.signatures.is_empty() && info.content_address.is_none() {
        return Err(Distrust::Bare);
    }
    info.signatures.retain(|signature: &NixSignature| trusted.verifies(&fingerprint, signature));
    // A method of a newer Nix proves nothing to us, and an older Nix could not read it: a signature or a verdict
    // decides.
    info.content_address = info.content_address.filter(|address| !matches!(address, ContentAddress::Other(_)));
    let is_addressed = info.content_address.is_some();
    let proof = match (info.signatures.is_empty(), named) {
        (false, _) if is_addressed => match content_proof(&info, store_dir) {
            // Where a verdict is demanded, a signature is not enough, but a correct content address is.
            Ok(proof) if by_verdict => proof,
            Ok(_) => Proof::Signed,
            // The false content address is left out: no signature covers it, and Nix would refuse the path because of
            // it.
            Err(_) => {
                info.content_address = None;
                Proof::Signed
            }
        },
        (false, _) => Proof::Signed,
        (true, Some(key_name)) if !is_addressed => return Err(Distrust::Forged { key_name }),
        (true, None) if !is_addressed && by_verdict => Proof::Verdict,
        (true, _) => content_proof(&info, store_dir)?,
    };
    Ok(TrustedNarInfo { info, proof })
}

fn content_proof(info: &NarInfo, store_dir: &StoreDir) -> Result<Proof, Distrust> {
    // Neither a signature nor an address: there is nothing to check.
    if info.content_address.is_none() {
        return Err(Distrust::Unsigned);
    }
    let address = info.proven_content_address(store_dir).ok_or(Distrust::FalseContentAddress)?;
    Ok(match address.implied_nar_hash(info.has_self_reference()) {
        Some(_) => Proof::ContentAddress,
        None => Proof::Contents(address.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::{NarHash, NixSecretKey};

    #[test]
    fn a_content_address_that_no_signature_covers_is_left_out_when_it_is_false() {
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let key = NixSecretKey::from_seed("b-1", &[1; 32]).unwrap();
        let trusted = TrustedKeys::new([key.public()]).unwrap();
        let path = format!("/nix/store/{}-x", "1".repeat(32));
        let text = format!(
            "StorePath: {path}\nURL: nar/x.nar\nCompression: none\nNarHash: {}\nNarSize: 8\nReferences: \n\
             CA: fixed:r:sha256:{}\n",
            NarHash([1; 32]),
            "0".repeat(52)
        );
        let part = store_dir.parse_path(&path).unwrap().hash_part();
        let mut info = parse(text.as_bytes(), &part, &store_dir).unwrap();
        assert!(info.content_address.is_some());
        info.signatures.push(key.sign(&info.fingerprint(&store_dir)));
        for by_verdict in [false, true] {
            let judged = judge_info(info.clone(), &store_dir, &trusted, by_verdict).unwrap();
            assert_eq!((judged.info.content_address, judged.proof), (None, Proof::Signed));
        }
        info.signatures.clear();
        assert_eq!(judge_info(info, &store_dir, &trusted, true).unwrap_err(), Distrust::FalseContentAddress);
    }

    #[test]
    fn what_no_signature_covers_decides_nothing() {
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let key = NixSecretKey::from_seed("b-1", &[1; 32]).unwrap();
        let trusted = TrustedKeys::new([key.public()]).unwrap();
        let path = format!("/nix/store/{}-x", "1".repeat(32));
        let part = store_dir.parse_path(&path).unwrap().hash_part();
        let bare =
            format!("StorePath: {path}\nURL: nar/x.nar\nNarHash: {}\nNarSize: 8\nReferences: \n", NarHash([1; 32]));
        let signature = key.sign(&parse(bare.as_bytes(), &part, &store_dir).unwrap().fingerprint(&store_dir));
        let plain = judge(format!("{bare}Sig: {signature}\n").as_bytes(), &part, &store_dir, &trusted, false).unwrap();
        for unsigned in [
            format!("Deriver: {}-x.drv\n", "2".repeat(32)),
            "Deriver: x\n".to_owned(),
            "CA: fixed:git:sha1:0\n".to_owned(),
            "CA: fixed:sha1:0\n".to_owned(),
            format!("CA: text:sha256:{}\n", "0".repeat(52)),
            "FileHash: sha256:0\nFileSize: 7\nCompression: xz\nSystem: hurd\n".to_owned(),
        ] {
            let text = format!("{bare}{unsigned}Sig: {signature}\n");
            for by_verdict in [false, true] {
                let judged = judge(text.as_bytes(), &part, &store_dir, &trusted, by_verdict);
                assert_eq!(judged.as_ref(), Ok(&plain), "{unsigned}");
            }
        }
        // That no trusted key signed it breaks no rule.
        let newer = judge(format!("{bare}CA: fixed:git:sha1:0\n").as_bytes(), &part, &store_dir, &trusted, false);
        assert_eq!(newer, Err(Distrust::Unsigned));
        assert!(!Distrust::Unsigned.is_misdeed());
    }
}
