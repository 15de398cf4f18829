//! Reads and writes numbers, strings and log messages of the worker protocol.

use std::io::{self, BufReader, Read, Write};

/// Longest string accepted, bytes. Error messages and log lines are the longest ones.
const STRING_BYTES_MAX: u64 = 1 << 20;
/// Most log messages, fields or traces accepted in one answer.
const MESSAGES_MAX: u32 = 100_000;

// The kinds of message that can come before an answer.
const LOG_LINE: u64 = 0x6f6c_6d67;
const LOG_DATA: u64 = 0x6461_7416;
const DONE: u64 = 0x616c_7473;
const REFUSED: u64 = 0x6378_7470;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const ACTIVITY_RESULT: u64 = 0x5253_4c54;

/// Why the daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket failed, or the daemon was silent for 5 s.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The process that listens there is not a Nix daemon.
    #[error("no nix daemon listens there")]
    Foreign,
    /// The daemon's worker protocol is older than 1.34.
    #[error("it is older than nix 2.8")]
    TooOld,
    /// The daemon sent something that the protocol does not allow, or more than we accept.
    #[error("its answer is malformed")]
    Malformed,
    /// The daemon answered with an error, which we logged.
    #[error("it refused the request")]
    Refused,
}

/// Our side of a connection to the daemon.
#[derive(Debug)]
pub(super) struct Wire<S>(BufReader<S>);

impl<S: Read + Write> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), DaemonError> {
        Ok(self.0.get_mut().write_all(bytes)?)
    }

    /// Sends an operation with its arguments and waits until the answer begins.
    pub(super) fn call(&mut self, operation: u64, arguments: &[&str]) -> Result<(), DaemonError> {
        let mut request = operation.to_le_bytes().to_vec();
        for argument in arguments {
            request.extend(u64::try_from(argument.len()).unwrap_or(u64::MAX).to_le_bytes());
            request.extend(argument.as_bytes());
            request.resize(request.len().next_multiple_of(8), 0);
        }
        self.send(&request)?;
        self.read_until_done()
    }

    pub(super) fn read_number(&mut self) -> Result<u64, DaemonError> {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a string. Invalid UTF-8 is replaced: it cannot be a path, hash or signature, so the caller's parser refuses it.
    pub(super) fn read_string(&mut self) -> Result<String, DaemonError> {
        let length = self.read_number()?;
        // Before memory is taken for it.
        if length > STRING_BYTES_MAX {
            return Err(DaemonError::Malformed);
        }
        let mut bytes = Vec::new();
        let padded = length.next_multiple_of(8);
        self.0.by_ref().take(padded).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()) != Ok(padded) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        bytes.truncate(usize::try_from(length).map_err(|_| DaemonError::Malformed)?);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn read_strings(&mut self, count_max: u64) -> Result<Vec<String>, DaemonError> {
        let count = self.read_number()?;
        if count > count_max {
            return Err(DaemonError::Malformed);
        }
        (0..count).map(|_| self.read_string()).collect()
    }

    /// Skips log messages until the answer begins.
    pub(super) fn read_until_done(&mut self) -> Result<(), DaemonError> {
        // A daemon that only ever logs must not keep this thread for ever.
        for _ in 0..MESSAGES_MAX {
            match self.read_number()? {
                DONE => return Ok(()),
                REFUSED => return Err(self.read_refusal()?),
                LOG_LINE | LOG_DATA => drop(self.read_string()?),
                START_ACTIVITY => {
                    self.skip_numbers(3)?;
                    self.read_string()?;
                    self.skip_fields()?;
                    self.skip_numbers(1)?;
                }
                STOP_ACTIVITY => self.skip_numbers(1)?,
                ACTIVITY_RESULT => {
                    self.skip_numbers(2)?;
                    self.skip_fields()?;
                }
                _ => return Err(DaemonError::Malformed),
            }
        }
        Err(DaemonError::Malformed)
    }

    /// Reads an error in its form since 1.26: kind, level, name, message, position (never present), traces.
    fn read_refusal(&mut self) -> Result<DaemonError, DaemonError> {
        self.read_string()?;
        self.skip_numbers(1)?;
        self.read_string()?;
        let message = self.read_string()?;
        self.skip_numbers(1)?;
        let traces = self.read_number()?;
        // A number of the other side is never the number of our rounds.
        if traces > u64::from(MESSAGES_MAX) {
            return Err(DaemonError::Malformed);
        }
        for _ in 0..traces {
            self.skip_numbers(1)?;
            self.read_string()?;
        }
        tracing::warn!(message, "the nix daemon refused a request");
        Ok(DaemonError::Refused)
    }

    fn skip_fields(&mut self) -> Result<(), DaemonError> {
        let count = self.read_number()?;
        if count > u64::from(MESSAGES_MAX) {
            return Err(DaemonError::Malformed);
        }
        for _ in 0..count {
            match self.read_number()? {
                0 => self.skip_numbers(1)?,
                1 => drop(self.read_string()?),
                _ => return Err(DaemonError::Malformed),
            }
        }
        Ok(())
    }

    fn skip_numbers(&mut self, count: u32) -> Result<(), DaemonError> {
        for _ in 0..count {
            self.read_number()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn numbers(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn log_messages_before_an_answer_are_skipped() {
        let stream = [
            numbers(&[LOG_LINE]),
            text("a line"),
            numbers(&[START_ACTIVITY, 7, 3, 100]),
            text("querying"),
            numbers(&[2, 0, 42, 1]),
            text("field"),
            numbers(&[0, ACTIVITY_RESULT, 7, 101, 1, 0, 9, STOP_ACTIVITY, 7, DONE, 2]),
            text("one"),
            text("eight..."),
        ];
        let mut wire = Wire::new(Cursor::new(stream.concat()));
        wire.read_until_done().unwrap();
        assert_eq!(wire.read_strings(2).unwrap(), ["one", "eight..."]);
        assert!(matches!(wire.read_number(), Err(DaemonError::Io(_))));
    }

    #[test]
    fn refusal_is_read_completely() {
        let mut stream =
            [numbers(&[REFUSED]), text("Error"), numbers(&[0]), text("Error"), text("no such path")].concat();
        stream.extend([numbers(&[0, 1, 0]), text("while asking"), numbers(&[5])].concat());
        let mut wire = Wire::new(Cursor::new(stream));
        assert!(matches!(wire.read_until_done(), Err(DaemonError::Refused)));
        assert_eq!(wire.read_number().unwrap(), 5);
    }

    #[test]
    fn length_is_checked_before_memory_is_allocated() {
        let mut wire = Wire::new(Cursor::new(numbers(&[u64::MAX])));
        assert!(matches!(wire.read_string(), Err(DaemonError::Malformed)));
        let mut wire = Wire::new(Cursor::new(numbers(&[u64::MAX])));
        assert!(matches!(wire.read_strings(5), Err(DaemonError::Malformed)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256), kind in 0_usize..8) {
            let kinds = [LOG_LINE, LOG_DATA, DONE, REFUSED, START_ACTIVITY, STOP_ACTIVITY, ACTIVITY_RESULT, 1];
            let mut stream = kinds[kind].to_le_bytes().to_vec();
            stream.extend(bytes);
            let mut wire = Wire::new(Cursor::new(stream));
            prop_assert!(kinds[kind] == DONE || wire.read_until_done().is_err() || wire.0.get_ref().position() > 8);
        }
    }
}
