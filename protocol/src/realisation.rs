//! Realisations: which path the output of a derivation is, where that does not follow from the derivation (Nix's experimental
//! feature `ca-derivations`).

use crate::store_path::check_name;
use crate::{Fingerprint, NixSignature, StorePath};
use data_encoding::HEXLOWER;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How the name of a realisation's file in a binary cache ends.
const FILE_SUFFIX: &str = ".doi";
/// Most signatures that are read; a path of cache.nixos.org has one.
const SIGNATURES_MAX: usize = 64;

/// An output of a derivation, as Nix names it: `sha256:<64 hexadecimal digits>!<output>`. The hash is that of the derivation
/// modulo what fixed outputs are made from (`hashDerivationModulo`), so different derivations can have the same.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RealisationId {
    derivation_hash: [u8; 32],
    output: String,
}

/// The path that somebody got when he built an output of a derivation.
///
/// No content address proves it: a path that is its own address can be the output of any derivation. Only a signature can.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Realisation {
    /// The output.
    pub id: RealisationId,
    /// The store path of that output.
    pub out_path: StorePath,
    /// The realisations of other outputs to whose paths this one refers; Nix since 2.34 names none.
    pub dependents: BTreeMap<RealisationId, StorePath>,
    /// Signatures over [`Self::fingerprint`].
    pub signatures: Vec<NixSignature>,
}

/// Why a text is not a realisation, or not the id of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RealisationError {
    /// The id does not begin with `sha256:` and 64 hexadecimal digits in lower case.
    #[error("id of a realisation: expected `sha256:`, 64 hexadecimal digits, `!` and the name of an output")]
    Id,
    /// The name of the output is not one that Nix allows, or has a `?`, which would begin the query of a URL.
    #[error("id of a realisation: the name of the output has a character that Nix does not allow, or `?`")]
    Output,
    /// The text is longer than any realisation that is read.
    #[error("realisation: {bytes} bytes, limit {}", Realisation::BYTES_MAX)]
    TooLong {
        /// The length found.
        bytes: usize,
    },
    /// The text is not a JSON object.
    #[error("realisation: not a JSON object")]
    NotJson,
    /// A field is missing or is not what it should be.
    #[error("realisation: {0}: missing or malformed")]
    Field(&'static str),
    /// There are too many signatures.
    #[error("realisation: signatures: more than {SIGNATURES_MAX}")]
    TooManySignatures,
}

impl RealisationId {
    /// Makes an id from the hash as Nix writes it in its database (`sha256:` and 64 digits) and the name of the output.
    pub fn new(derivation_hash: &str, output: &str) -> Result<Self, RealisationError> {
        let digits = derivation_hash.strip_prefix("sha256:").ok_or(RealisationError::Id)?;
        let decoded = HEXLOWER.decode(digits.as_bytes()).map_err(|_| RealisationError::Id)?;
        Self::of_bytes(decoded.try_into().map_err(|_| RealisationError::Id)?, output)
    }

    /// Makes an id from the bytes of the hash and the name of the output.
    pub fn of_bytes(derivation_hash: [u8; 32], output: &str) -> Result<Self, RealisationError> {
        if check_name(output).is_err() || output.contains('?') {
            return Err(RealisationError::Output);
        }
        Ok(Self { derivation_hash, output: output.to_owned() })
    }

    /// Parses the name of its file in a binary cache: `<id>.doi`.
    pub fn parse_file_name(name: &str) -> Result<Self, RealisationError> {
        name.strip_suffix(FILE_SUFFIX).ok_or(RealisationError::Id)?.parse()
    }

    /// Where it is in a binary cache: `realisations/<id>.doi`.
    pub fn file(&self) -> String {
        format!("realisations/{self}{FILE_SUFFIX}")
    }

    /// The hash of the derivation, as Nix writes it in its database.
    pub fn derivation_hash(&self) -> String {
        format!("sha256:{}", HEXLOWER.encode(&self.derivation_hash))
    }

    /// The bytes of the hash of the derivation.
    pub fn hash_bytes(&self) -> &[u8; 32] {
        &self.derivation_hash
    }

    /// The name of the output.
    pub fn output(&self) -> &str {
        &self.output
    }
}

impl FromStr for RealisationId {
    type Err = RealisationError;

    fn from_str(text: &str) -> Result<Self, RealisationError> {
        let (hash, output) = text.split_once('!').ok_or(RealisationError::Id)?;
        Self::new(hash, output)
    }
}

impl fmt::Display for RealisationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}!{}", self.derivation_hash(), self.output)
    }
}

impl Realisation {
    /// Longest text that is read, bytes: some 5,000 dependents.
    pub const BYTES_MAX: usize = 1 << 20;

    /// Parses Nix's JSON. Fields that are not known are left out; signatures that are malformed, too, because one of them would
    /// make Nix refuse the rest.
    pub fn parse(text: &[u8]) -> Result<Self, RealisationError> {
        if text.len() > Self::BYTES_MAX {
            return Err(RealisationError::TooLong { bytes: text.len() });
        }
        let json: Map<String, Value> = serde_json::from_slice(text).map_err(|_| RealisationError::NotJson)?;
        let field = |name: &'static str| json.get(name).and_then(Value::as_str).ok_or(RealisationError::Field(name));
        let dependents = match json.get("dependentRealisations") {
            None => BTreeMap::new(),
            Some(Value::Object(found)) => found.iter().map(parse_dependent).collect::<Result<_, _>>()?,
            Some(_) => return Err(RealisationError::Field("dependentRealisations")),
        };
        let signatures: &[Value] = match json.get("signatures") {
            None => &[],
            Some(Value::Array(found)) => found,
            Some(_) => return Err(RealisationError::Field("signatures")),
        };
        // Each of them costs a verification.
        if signatures.len() > SIGNATURES_MAX {
            return Err(RealisationError::TooManySignatures);
        }
        let signatures = signatures.iter().filter_map(|one| NixSignature::parse(one.as_str()?).ok()).collect();
        Ok(Self {
            id: field("id")?.parse()?,
            out_path: StorePath::parse(field("outPath")?).map_err(|_| RealisationError::Field("outPath"))?,
            dependents,
            signatures,
        })
    }

    /// Nix's JSON, as it is in the files of a binary cache.
    pub fn render(&self) -> String {
        let signatures = self.signatures.iter().map(|signature| signature.to_string().into()).collect();
        Value::Object(self.json(Some(signatures))).to_string()
    }

    /// The bytes that a signature covers: the JSON without the signatures (`Realisation::fingerprint`).
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_realisation(Value::Object(self.json(None)).to_string())
    }

    /// Nix prints JSON without blanks, and with keys in the order in which they are put in here.
    fn json(&self, signatures: Option<Vec<Value>>) -> Map<String, Value> {
        let dependents = self.dependents.iter().map(|(id, path)| (id.to_string(), path.to_string().into())).collect();
        let mut json = Map::new();
        json.insert("dependentRealisations".to_owned(), Value::Object(dependents));
        json.insert("id".to_owned(), self.id.to_string().into());
        json.insert("outPath".to_owned(), self.out_path.to_string().into());
        json.extend(signatures.map(|signatures| ("signatures".to_owned(), Value::Array(signatures))));
        json
    }
}

fn parse_dependent((id, path): (&String, &Value)) -> Result<(RealisationId, StorePath), RealisationError> {
    let path = path.as_str().and_then(|path| StorePath::parse(path).ok());
    Ok((id.parse()?, path.ok_or(RealisationError::Field("dependentRealisations"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NixPublicKey, NixSecretKey};
    use proptest::prelude::*;

    /// Written by Nix 2.8.0, which built it with `secret-key-files`.
    const WITH_DEPENDENT: &str = r#"{"dependentRealisations":{"sha256:34337da46001f28fbe0cc44a084f30edec8a61bec5880f37574e02599616a8ca!out":"50209k90f3ilszml6c8bcqfj0wcpaa80-ca-lib"},"id":"sha256:1fcdec0fe673c0052a424a4f7985d3e3179231a37e5ed5f7f88038e09548eb8c!out","outPath":"b25n9qkmcp80d8axcs0kbkha1zbrcz57-ca-app","signatures":["b-1:tMVgGi/z7REaaTUuE5EwVYYPpfZUncUBAXbhVBs4VndckTTRQkzesVHQ/fdUT3kejm+U7K198SuNvX2gLT7yAg=="]}"#;
    /// The same of Nix 2.34.8, which names no dependents.
    const WITHOUT: &str = r#"{"dependentRealisations":{},"id":"sha256:1fcdec0fe673c0052a424a4f7985d3e3179231a37e5ed5f7f88038e09548eb8c!out","outPath":"86cbbxhbsv911wcfyma022i8iafmnah0-ca-app","signatures":["b-1:pqEXPBoooTuCbZ/L+iQGSoOGg5QJFW0BkMHNIsQfaAEIHoeUtu9DKJJYxJzgBRc/dV90KAf1/6C9ClIHWQ2CAA=="]}"#;
    const KEY: &str = "b-1:uc22DUX2HaysRWkBQxUPM0xagL/nyZPl8tEvDu/jApE=";

    #[test]
    fn what_nix_signed_verifies_and_is_printed_as_nix_prints_it() {
        let key = NixPublicKey::parse(KEY).unwrap();
        for text in [WITH_DEPENDENT, WITHOUT] {
            let realisation = Realisation::parse(text.as_bytes()).unwrap();
            assert_eq!(realisation.render(), text);
            assert!(key.verify(&realisation.fingerprint(), &realisation.signatures[0]), "{text}");
            let mut changed = realisation.clone();
            changed.out_path = StorePath::parse("50209k90f3ilszml6c8bcqfj0wcpaa80-ca-lib").unwrap();
            assert!(!key.verify(&changed.fingerprint(), &realisation.signatures[0]), "another path");
            changed = Realisation { dependents: BTreeMap::new(), ..realisation.clone() };
            let is_same = realisation.dependents.is_empty();
            assert_eq!(key.verify(&changed.fingerprint(), &realisation.signatures[0]), is_same, "other dependents");
        }
    }

    #[test]
    fn signature_of_ours_is_over_the_same_bytes() {
        let mut realisation = Realisation::parse(WITHOUT.as_bytes()).unwrap();
        let key = NixSecretKey::from_seed("ours", &[1; 32]).unwrap();
        let fingerprint = realisation.fingerprint();
        realisation.signatures.push(key.sign(&fingerprint));
        let again = Realisation::parse(realisation.render().as_bytes()).unwrap();
        assert_eq!(again, realisation);
        assert!(key.public().verify(&again.fingerprint(), &again.signatures[1]));
    }

    #[test]
    fn ids_are_parsed_strictly() {
        let hash = "34337da46001f28fbe0cc44a084f30edec8a61bec5880f37574e02599616a8ca";
        let good = format!("sha256:{hash}!dev-x.y_z");
        let id: RealisationId = good.parse().unwrap();
        assert_eq!((id.to_string(), id.output()), (good.clone(), "dev-x.y_z"));
        assert_eq!(id.file(), format!("realisations/{good}.doi"));
        assert_eq!(RealisationId::parse_file_name(&format!("{good}.doi")), Ok(id));
        for bad in [
            String::new(),
            good.to_uppercase(),
            format!("sha256:{hash}"),
            format!("sha256:{}!out", hash.to_uppercase()),
            format!("sha256:{}!out", &hash[1..]),
            format!("sha1:{hash}!out"),
            format!("{hash}!out"),
        ] {
            assert_eq!(bad.parse::<RealisationId>(), Err(RealisationError::Id), "{bad}");
        }
        for output in ["", "a/b", "..", ".", "a?b", "a b", "a!b", "\u{e4}", &"x".repeat(212)] {
            assert_eq!(
                RealisationId::new(&format!("sha256:{hash}"), output),
                Err(RealisationError::Output),
                "{output}"
            );
        }
        assert_eq!(RealisationId::parse_file_name(&good), Err(RealisationError::Id));
    }

    #[test]
    fn malformed_realisations_are_refused_with_the_reason() {
        let parse = |text: &str| Realisation::parse(text.as_bytes()).unwrap_err();
        for text in ["", "[]", "{", "null", "{}x"] {
            assert_eq!(parse(text), RealisationError::NotJson, "{text}");
        }
        assert_eq!(parse("{}"), RealisationError::Field("id"));
        assert_eq!(parse(&WITHOUT.replace("-ca-app", "/../x")), RealisationError::Field("outPath"));
        assert_eq!(
            parse(&WITH_DEPENDENT.replace("50209k90f3ilszml6c8bcqfj0wcpaa80-", "")),
            RealisationError::Field("dependentRealisations")
        );
        assert_eq!(parse(&WITHOUT.replace(":{}", ":[]")), RealisationError::Field("dependentRealisations"));
        let many = format!("[{}\"x\"]", "\"x\",".repeat(64));
        let text = WITHOUT.split_once("\"signatures\":").unwrap().0.to_owned() + "\"signatures\":" + &many + "}";
        assert_eq!(parse(&text), RealisationError::TooManySignatures);
        let long = format!("{WITHOUT}{}", " ".repeat(Realisation::BYTES_MAX));
        assert_eq!(parse(&long), RealisationError::TooLong { bytes: long.len() });
        // One signature that Nix could not read does not spoil the others.
        let text = WITHOUT.replace("[\"b-1:", "[\"?\",7,\"b-1:");
        assert_eq!(Realisation::parse(text.as_bytes()).unwrap().render(), WITHOUT);
    }

    proptest! {
        #[test]
        fn what_is_damaged_is_refused_or_prints_to_what_means_the_same(
            mut text in prop::sample::select(vec![WITH_DEPENDENT.as_bytes().to_vec(), WITHOUT.as_bytes().to_vec()]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            for (at, byte) in changes {
                let at = at.index(text.len());
                text[at] = byte;
            }
            if let Ok(realisation) = Realisation::parse(&text) {
                prop_assert_eq!(Realisation::parse(realisation.render().as_bytes()), Ok(realisation));
            }
        }
    }
}
