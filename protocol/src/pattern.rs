//! Patterns over the names of store paths.

/// A pattern over a whole name: `*` matches any number of bytes, `?` matches one, every other byte matches itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamePattern(Box<[u8]>);

impl NamePattern {
    /// Makes a pattern; every text is a valid one.
    pub fn new(text: &str) -> Self {
        Self(text.as_bytes().into())
    }

    /// Whether the whole name matches. It backtracks without allocating; the cost is at most name
    /// length times pattern length.
    pub fn matches(&self, name: &str) -> bool {
        let mut pattern: &[u8] = &self.0;
        let mut rest = name.as_bytes();
        // The pattern after the last star, and the name after the bytes that this star took: on
        // a mismatch it takes one more.
        let mut star: Option<(&[u8], &[u8])> = None;
        loop {
            match (pattern.split_first(), rest.split_first()) {
                (Some((b'*', after)), _) => {
                    star = Some((after, rest));
                    pattern = after;
                }
                (Some((expected, after)), Some((byte, following))) if *expected == b'?' || expected == byte => {
                    pattern = after;
                    rest = following;
                }
                (None, None) => return true,
                (_, _) => {
                    let Some((after, from)) = star else { return false };
                    let Some((_, following)) = from.split_first() else { return false };
                    star = Some((after, following));
                    pattern = after;
                    rest = following;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NamePattern;
    use proptest::prelude::*;

    fn matches(pattern: &str, name: &str) -> bool {
        NamePattern::new(pattern).matches(name)
    }

    #[test]
    fn stars_and_question_marks() {
        assert!(matches("unit-*", "unit-sshd.service"));
        assert!(!matches("unit-*", "my-unit-x"));
        assert!(matches("etc", "etc"));
        assert!(!matches("etc", "etcd"));
        assert!(matches("*a*b*", "xxaxxbxx"));
        assert!(matches("*ab", "aab"));
        assert!(!matches("?", ""));
        assert!(matches("?*", "x"));
        assert!(!matches("", "x"));
        assert!(matches("[a]", "[a]"));
    }

    /// The definition of a match, written as directly as possible; it takes exponential time.
    fn slow(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some(b'*'), None) => slow(&pattern[1..], name),
            (Some(b'*'), Some(_)) => slow(&pattern[1..], name) || slow(pattern, &name[1..]),
            (Some(p), Some(n)) => (*p == b'?' || p == n) && slow(&pattern[1..], &name[1..]),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{0,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &name), slow(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
