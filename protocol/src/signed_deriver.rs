//! The deriver of a path under the signature of its builder, in a line of a narinfo that Nix ignores.

use crate::{Fingerprint, NixSecretKey, NixSignature, StoreDir, StorePath, TrustedKeys};

/// The line with the deriver itself, as Nix has it.
const DERIVER: &str = "Deriver: ";
/// The line with the signature.
const SIGNATURE: &str = "DeriverSig: ";
/// No line from this one upwards is one of the two.
const BEFORE: &str = "References: ";

/// The line, with its end, by which `key` says that this derivation made the path. It counts in a narinfo with that `Deriver`.
pub fn sign_deriver(store_dir: &StoreDir, path: &StorePath, deriver: &StorePath, key: &NixSecretKey) -> String {
    format!("{SIGNATURE}{}\n", key.sign(&Fingerprint::of_deriver(store_dir, path, deriver)))
}

/// The deriver in the narinfo of a path, if it is a derivation and a trusted key signed it. The narinfo itself is not judged.
pub fn find_signed_deriver(
    store_dir: &StoreDir,
    narinfo: &[u8],
    path: &StorePath,
    trusted: &TrustedKeys,
) -> Option<StorePath> {
    // From the end on, and no further than the lines that belong to this: a narinfo may have 8 MiB.
    let lines = std::str::from_utf8(narinfo).ok()?.lines().rev().take_while(|line| !line.starts_with(BEFORE));
    let (mut deriver, mut signature) = (None, None);
    for line in lines {
        // Of several the last one counts, as for Nix.
        deriver = deriver.or_else(|| line.strip_prefix(DERIVER));
        signature = signature.or_else(|| line.strip_prefix(SIGNATURE));
    }
    let deriver = StorePath::parse(deriver?).ok().filter(StorePath::is_derivation)?;
    let signature = NixSignature::parse(signature?).ok()?;
    trusted.verifies(&Fingerprint::of_deriver(store_dir, path, &deriver), &signature).then_some(deriver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NarInfo;

    const PATH: &str = "7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x";
    const DRV: &str = "0c0yaa1b2d3f4g5h6i7j8k9l0m1n2p3q-x.drv";

    fn key(seed: u8) -> NixSecretKey {
        NixSecretKey::from_seed("builder-1", &std::array::from_fn(|at| seed + u8::try_from(at).unwrap())).unwrap()
    }

    #[test]
    fn a_deriver_counts_under_a_signature_of_a_trusted_key_alone() {
        let store_dir = StoreDir::parse("/nix/store").unwrap();
        let path = |text: &str| StorePath::parse(text).unwrap();
        let front = format!(
            "StorePath: /nix/store/{PATH}\nURL: nar/x\nNarHash: sha256:{}\nNarSize: 1\nReferences: a\n",
            "0".repeat(52)
        );
        let line = sign_deriver(&store_dir, &path(PATH), &path(DRV), &key(0));
        // The example of `docs/protocol.md`.
        let expected = "DeriverSig: builder-1:vvO/eAVf0gy82c0j9OIFxv9cdlOsEWZZqDEoEIpGUI8PgWxYQXd/csMZljpHR6S3dMFlxr+pHr9Yz8z4X4i3Cg==\n";
        assert_eq!(line, expected);
        let trusted = TrustedKeys::new([key(0).public()]).unwrap();
        let find = |text: &str, of: &str, trusted: &TrustedKeys| {
            find_signed_deriver(&store_dir, text.as_bytes(), &path(of), trusted)
        };
        let text = format!("{front}Deriver: {DRV}\n{line}");
        assert_eq!(find(&text, PATH, &trusted), Some(path(DRV)));
        assert!(NarInfo::parse(&store_dir, text.replace(": a\n", ": \n").as_bytes()).is_ok(), "as any narinfo");
        let other = "1c0yaa1b2d3f4g5h6i7j8k9l0m1n2p3q-x";
        assert_eq!(find(&text, other, &trusted), None, "another path");
        assert_eq!(find(&text, PATH, &TrustedKeys::new([key(1).public()]).unwrap()), None, "another key");
        assert_eq!(find(&text, PATH, &TrustedKeys::default()), None);
        let source = sign_deriver(&store_dir, &path(PATH), &path(other), &key(0));
        for bad in [
            format!("{front}Deriver: {DRV}\n"),
            format!("{front}{line}"),
            format!("{front}Deriver: {other}.drv\n{line}"),
            format!("{front}Deriver: {DRV}\n{line}Deriver: {other}.drv\n"),
            format!("{front}Deriver: {DRV}\nDeriverSig: builder-1:AAAA\n"),
            format!("{front}Deriver: {other}\n{source}"),
            format!("Deriver: {DRV}\n{line}{front}"),
        ] {
            assert_eq!(find(&bad, PATH, &trusted), None, "{bad}");
        }
    }
}
