//! Tests the NAR writer and the verifier on arbitrary trees and arbitrary bytes.

use crate::tree::{Oracle, Tree, any_tree};
use narmesh_protocol::NarHash;
use narmesh_protocol::nar::{DEPTH_MAX, NarError, NarVerifier, VerifiedNar};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

fn verify(nar: &[u8]) -> Result<VerifiedNar, NarError> {
    verify_pieces([nar])
}

fn verify_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<VerifiedNar, NarError> {
    let mut verifier = NarVerifier::new();
    for piece in pieces {
        if let Err(error) = verifier.feed(piece) {
            assert_eq!(verifier.feed(b"more"), Err(error), "an error is final");
            assert_eq!(verifier.finish(), Err(error));
            return Err(error);
        }
    }
    verifier.finish()
}

/// The tokens for words separated by spaces. `''` is the empty token; `=…` is only a claimed length with nothing after it.
fn tokens(words: &str) -> Vec<u8> {
    let mut nar = Vec::new();
    for word in words.split(' ') {
        if let Some(length) = word.strip_prefix('=') {
            nar.extend_from_slice(&length.parse::<u64>().unwrap().to_le_bytes());
            continue;
        }
        let word = if word == "''" { "" } else { word };
        nar.extend_from_slice(&(word.len() as u64).to_le_bytes());
        nar.extend_from_slice(word.as_bytes());
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

proptest! {
    #[test]
    fn written_nar_verifies(tree in any_tree()) {
        let nar = tree.written();
        prop_assert_eq!(&nar, &Oracle::of(&tree).bytes);
        let expected = VerifiedNar { nar_hash: NarHash(Sha256::digest(&nar).into()), nar_size: nar.len() as u64 };
        prop_assert_eq!(verify(&nar), Ok(expected));
    }

    #[test]
    fn size_of_the_pieces_does_not_matter(tree in any_tree(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let nar = tree.written();
        let mut cuts = cuts.iter().map(|cut| cut.index(nar.len() + 1)).collect::<Vec<_>>();
        cuts.extend([0, nar.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|cut| &nar[cut[0]..cut[1]]);
        prop_assert_eq!(verify_pieces(pieces), verify(&nar));
        prop_assert_eq!(verify_pieces(nar.chunks(1)), verify(&nar));
    }

    #[test]
    fn changed_fixed_byte_is_refused(tree in any_tree(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let Oracle { mut bytes, fixed } = Oracle::of(&tree);
        let places = (0..bytes.len()).filter(|at| fixed[*at]).collect::<Vec<_>>();
        bytes[*at.get(&places)] ^= flip;
        prop_assert!(verify(&bytes).is_err());
    }

    #[test]
    fn nar_that_is_too_short_or_too_long_is_refused(tree in any_tree(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut nar = tree.written();
        prop_assert_eq!(verify(&nar[..at.index(nar.len())]), Err(NarError::Incomplete));
        nar.push(byte);
        prop_assert_eq!(verify(&nar), Err(NarError::Trailing));
    }

    #[test]
    fn changed_archives_never_panic_and_pieces_never_matter(
        tree in any_tree(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        piece in 1..40usize,
    ) {
        let mut nar = tree.written();
        for (at, byte) in changes {
            let at = at.index(nar.len());
            nar[at] = byte;
        }
        prop_assert_eq!(verify_pieces(nar.chunks(piece)), verify(&nar));
    }

    #[test]
    fn arbitrary_words_never_panic(
        words in prop::collection::vec(prop::sample::select(vec![
            "nix-archive-1", "(", ")", "type", "regular", "symlink", "directory", "executable", "contents", "target", "entry",
            "name", "node", "''", "a", "b", "=18446744073709551615", "=33",
        ]), 0..40),
    ) {
        let words = ["nix-archive-1 ( type directory"].into_iter().chain(words).collect::<Vec<_>>().join(" ");
        let nar = tokens(&words);
        prop_assert_eq!(verify_pieces(nar.chunks(5)), verify(&nar));
    }
}

#[test]
fn depth_limit_equals_that_of_nix() {
    // The file is one more node below its directories.
    assert!(verify(&Tree::nested(DEPTH_MAX - 1).written()).is_ok());
    let too_deep = Oracle::of(&Tree::nested(DEPTH_MAX)).bytes;
    assert_eq!(verify(&too_deep), Err(NarError::Depth));
    let endless = Oracle::of(&Tree::nested(1_000)).bytes;
    assert_eq!(verify(&endless), Err(NarError::Depth));
}

#[test]
fn malformed_nars_are_refused_with_the_reason() {
    let file = "( type regular contents x )";
    let entry = |name: &str| format!("entry ( name {name} node {file} )");
    let directory = |entries: &[String]| format!("nix-archive-1 ( type directory {} )", entries.join(" "));
    for (words, error) in [
        ("nix-archive-2 ( type regular contents x )".to_owned(), NarError::Word),
        ("nix-archive-1 ( type fifo )".to_owned(), NarError::Word),
        ("nix-archive-1 ( type regular )".to_owned(), NarError::Word),
        ("nix-archive-1 ( type regular contents x contents y )".to_owned(), NarError::Word),
        ("nix-archive-1 ( type regular executable '' executable '' contents x )".to_owned(), NarError::Word),
        ("nix-archive-1 ( type regular contents x executable '' )".to_owned(), NarError::Word),
        ("nix-archive-1 ( type symlink )".to_owned(), NarError::Word),
        ("nix-archive-1 ( type symlink target '' )".to_owned(), NarError::Target),
        ("nix-archive-1 ( type symlink target a\0b )".to_owned(), NarError::Target),
        ("nix-archive-1 ( type directory entry ( node ".to_owned() + file + " ) )", NarError::Word),
        ("nix-archive-1 ( type regular executable yes".to_owned(), NarError::TokenLength { length: 3, length_max: 0 }),
        ("=33".to_owned(), NarError::TokenLength { length: 33, length_max: 32 }),
        ("nix-archive-1 =18446744073709551615".to_owned(), NarError::TokenLength { length: u64::MAX, length_max: 32 }),
        (
            "nix-archive-1 ( type symlink target =4096".to_owned(),
            NarError::TokenLength { length: 4096, length_max: 4095 },
        ),
        (
            "nix-archive-1 ( type directory entry ( name =256".to_owned(),
            NarError::TokenLength { length: 256, length_max: 255 },
        ),
        (directory(&[entry("''")]), NarError::Name),
        (directory(&[entry(".")]), NarError::Name),
        (directory(&[entry("..")]), NarError::Name),
        (directory(&[entry("a/b")]), NarError::Name),
        (directory(&[entry("a\0b")]), NarError::Name),
        (directory(&[entry("b"), entry("a")]), NarError::Order),
        (directory(&[entry("a"), entry("a")]), NarError::Order),
        ("nix-archive-1 ".to_owned() + file + " )", NarError::Trailing),
        ("nix-archive-1 ( type regular contents =18446744073709551615".to_owned(), NarError::Incomplete),
    ] {
        assert_eq!(verify(&tokens(&words)), Err(error), "{words}");
    }
    assert_eq!(verify(b""), Err(NarError::Incomplete));
    assert!(verify(&tokens(&directory(&[entry("a"), entry("a.b"), entry("ab")]))).is_ok());
    let mut padding = tokens("nix-archive-1");
    *padding.last_mut().unwrap() = 1;
    assert_eq!(verify(&padding), Err(NarError::Padding));
}

#[test]
fn order_of_names_is_checked_per_directory() {
    let inner = |name| Tree::directory([(name, Tree::file(""))]);
    let tree = Tree::directory([("a", inner("z")), ("b", inner("a"))]);
    assert!(verify(&tree.written()).is_ok());
}
