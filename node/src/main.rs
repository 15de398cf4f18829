//! The `narmesh` binary, which knows from which commit it was built.

use std::process::ExitCode;
use std::str;

/// So many digits of a commit are shown.
const DIGITS: usize = 12;

/// Git's log of this checkout; empty where there is none. No byte of it is in the binary.
const LOG: &[u8] = include!(concat!(env!("OUT_DIR"), "/log.rs"));

/// What the environment of the build says, for those who build without Git's directory, else what was checked out.
const COMMIT: Option<[u8; DIGITS]> = match option_env!("NARMESH_COMMIT") {
    Some(given) if !given.is_empty() => digits_at(given.as_bytes(), 0),
    _ => newest(LOG),
};

fn main() -> ExitCode {
    let commit = COMMIT.as_ref().and_then(|digits| str::from_utf8(digits).ok());
    narmesh::cli::main(commit)
}

/// The commit of the last line of a log: the line's second word.
#[expect(clippy::indexing_slicing, reason = "the loops stay within the log, which is read when this is compiled")]
const fn newest(log: &[u8]) -> Option<[u8; DIGITS]> {
    let mut at = log.len().saturating_sub(1);
    while at > 0 && log[at - 1] != b'\n' {
        at -= 1;
    }
    while at < log.len() && log[at] != b' ' {
        at += 1;
    }
    digits_at(log, at + 1)
}

/// The hexadecimal digits that begin there, if there are enough.
#[expect(clippy::indexing_slicing, reason = "the length is checked first")]
const fn digits_at(text: &[u8], start: usize) -> Option<[u8; DIGITS]> {
    if text.len() < start + DIGITS {
        return None;
    }
    let mut digits = [0; DIGITS];
    let mut count = 0;
    while count < DIGITS {
        digits[count] = text[start + count];
        if !digits[count].is_ascii_hexdigit() {
            return None;
        }
        count += 1;
    }
    Some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_commit_is_that_of_the_last_line() {
        let (old, new) = ("0".repeat(40), format!("0123456789abcdef{}", "0".repeat(24)));
        let line = |from: &str, to: &str| format!("{from} {to} N <n@example.org> 1 +0000\tcommit: a b\n");
        let log = line(&old, &old) + &line(&old, &new);
        assert_eq!(newest(log.as_bytes()), Some(*b"0123456789ab"));
        assert_eq!(newest(log.trim_end().as_bytes()), Some(*b"0123456789ab"));
        for torn in
            ["", "\n", " ", "0123456789abcdef", &format!("{old} 0123456789"), &format!("{old} not-a-commit-at-all")]
        {
            assert_eq!(newest(torn.as_bytes()), None, "{torn:?}");
        }
    }
}
