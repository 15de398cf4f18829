//! Asks peers for build logs. Nothing proves what is in one: it is shown to a person and decides nothing.

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use libp2p::PeerId;
use narmesh_mesh::{AskError, MeshHandle};
use narmesh_protocol::HashPart;
use narmesh_protocol::wire::{LOG_BYTES_MAX, LogPart, LogRequest};
use narmesh_store::LogUnpacker;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Peers asked at the same time.
const ASKED_AT_ONCE_MAX: usize = 4;
/// Peers asked for one log.
const ASKED_MAX: usize = 64;
/// How long one peer has to answer, *busy* included, before others take its turn.
const ANSWER_WAIT: Duration = Duration::from_secs(4);
/// How long a log is looked for.
const SEARCH_WAIT: Duration = Duration::from_secs(10);
/// Logs looked for at the same time. Whoever asks the gateway for many cannot have us flood our peers.
const SEARCHES_MAX: usize = 4;
/// How long a peer whose log is being read may keep its next part to itself.
const PART_WAIT: Duration = Duration::from_secs(30);
/// Bytes unpacked at a time.
const PIECE_BYTES: usize = 64 << 10;

/// The logs of peers; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct PeerLogs {
    mesh: MeshHandle,
    searches: Arc<Semaphore>,
}

/// The log of a peer, of which the first part is here.
#[derive(Debug)]
pub(crate) struct PeerLog {
    mesh: MeshHandle,
    peer: PeerId,
    derivation: HashPart,
    first: LogPart,
}

/// Not all peers said in time whether they have the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unheard;

/// What a peer says of a log.
#[derive(Debug)]
enum Answer {
    Here(Box<PeerLog>),
    /// It has none for us, or does not know the question.
    Absent,
    Late,
}

/// Why a log that was begun ends too early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogFault {
    #[error("no more came within {PART_WAIT:?}")]
    Late,
    #[error(transparent)]
    Unanswered(#[from] AskError),
    #[error("the peer has it no more")]
    Gone,
    #[error("it has changed since its first part came")]
    Changed,
    #[error("it cannot be unpacked: {0}")]
    Damaged(std::io::Error),
    #[error("unpacked it has more than {LOG_BYTES_MAX} bytes")]
    TooLong,
    #[error("the daemon is stopping")]
    Stopping,
}

impl PeerLogs {
    pub(crate) fn new(mesh: MeshHandle) -> Self {
        Self { mesh, searches: Arc::new(Semaphore::new(SEARCHES_MAX)) }
    }

    /// The log of this derivation that the first of the connected peers gives. If `outputs` of it are known, only those are
    /// asked whose filters claim one of them. A peer that is set aside or does not answer lately is asked nothing.
    pub(crate) async fn find(&self, derivation: HashPart, outputs: &[HashPart]) -> Result<Option<PeerLog>, Unheard> {
        let connected = self.mesh.statistics().rank_connected();
        let peers = if outputs.is_empty() { connected } else { self.keep_claiming(connected, outputs) };
        if peers.is_empty() {
            return Ok(None);
        }
        let searched = async {
            // A log is asked of many peers at once; many clients that ask must not become a flood at each of them.
            let _turn = self.searches.acquire().await.map_err(|_| Unheard)?;
            let asked = peers.into_iter().take(ASKED_MAX).map(|peer| self.ask(peer, derivation));
            let mut answers = std::pin::pin!(stream::iter(asked).buffer_unordered(ASKED_AT_ONCE_MAX));
            let mut otherwise = Ok(None);
            while let Some(answer) = answers.next().await {
                match answer {
                    Answer::Here(log) => return Ok(Some(*log)),
                    Answer::Absent => {}
                    // Somebody did not answer, so "no such log" would be a guess.
                    Answer::Late => otherwise = Err(Unheard),
                }
            }
            otherwise
        };
        tokio::time::timeout(SEARCH_WAIT, searched).await.unwrap_or(Err(Unheard))
    }

    fn keep_claiming(&self, mut peers: Vec<PeerId>, outputs: &[HashPart]) -> Vec<PeerId> {
        let table = self.mesh.table();
        let claims = outputs.iter().flat_map(|part| table.peek_candidates(part));
        let claiming: HashSet<_> = claims.map(|candidate| candidate.peer).collect();
        peers.retain(|peer| claiming.contains(peer));
        peers
    }

    async fn ask(&self, peer: PeerId, derivation: HashPart) -> Answer {
        let request = LogRequest { derivation, offset: 0 };
        match tokio::time::timeout(ANSWER_WAIT, self.mesh.ask_log(peer, request)).await {
            Ok(Ok(Some(first))) => Answer::Here(Box::new(PeerLog { mesh: self.mesh.clone(), peer, derivation, first })),
            Ok(Ok(None)) => Answer::Absent,
            // One of an earlier version does not know the question, and one that has gone has no log now.
            Ok(Err(error)) => {
                tracing::debug!(%peer, %derivation, %error, "does not say whether it has a log");
                Answer::Absent
            }
            Err(_) => {
                self.mesh.statistics().on_timed_out(&peer);
                tracing::debug!(%peer, %derivation, waited = ?ANSWER_WAIT, "does not say whether it has a log");
                Answer::Late
            }
        }
    }
}

impl PeerLog {
    /// Whether it has to be unpacked.
    pub(crate) fn is_compressed(&self) -> bool {
        self.first.is_compressed
    }

    /// The length of its file, bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.first.size_bytes
    }

    /// The text, unpacked, at most [`LOG_BYTES_MAX`] of it. A part is asked for when the client has taken the one before.
    pub(crate) fn read_text(self) -> impl Stream<Item = Result<Bytes, LogFault>> + Send {
        let Self { mesh, peer, derivation, first } = self;
        let LogPart { is_compressed, size_bytes, version, bytes } = first;
        let unpacker = is_compressed.then(LogUnpacker::default);
        let received_bytes = bytes.len() as u64;
        let text = Text {
            reader: PartReader { mesh, peer, derivation, is_compressed, size_bytes, version, received_bytes },
            unpacker,
            part: bytes.into(),
            text_bytes: 0,
        };
        stream::try_unfold(text, |mut text| async move {
            let piece = text.next().await?;
            Ok(piece.map(|piece| (piece, text)))
        })
    }
}

#[derive(Debug)]
struct PartReader {
    mesh: MeshHandle,
    peer: PeerId,
    derivation: HashPart,
    is_compressed: bool,
    size_bytes: u64,
    version: u64,
    received_bytes: u64,
}

impl PartReader {
    /// The next bytes of the file; none at its end.
    async fn next(&mut self) -> Result<Bytes, LogFault> {
        if self.received_bytes == self.size_bytes {
            return Ok(Bytes::new());
        }
        let request = LogRequest { derivation: self.derivation, offset: self.received_bytes };
        let answer = tokio::time::timeout(PART_WAIT, self.mesh.ask_log(self.peer, request)).await;
        let part = answer.map_err(|_| LogFault::Late)??.ok_or(LogFault::Gone)?;
        let is_same = (self.is_compressed, self.size_bytes, self.version);
        // Parts of two logs together would be a log that nobody wrote.
        if (part.is_compressed, part.size_bytes, part.version) != is_same {
            return Err(LogFault::Changed);
        }
        self.received_bytes += part.bytes.len() as u64;
        Ok(part.bytes.into())
    }
}

#[derive(Debug)]
struct Text {
    reader: PartReader,
    unpacker: Option<LogUnpacker>,
    /// What came and was not handed on.
    part: Bytes,
    text_bytes: u64,
}

impl Text {
    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, LogFault> {
        loop {
            let Some(unpacker) = self.unpacker.take() else {
                let piece = std::mem::take(&mut self.part);
                let piece = if piece.is_empty() { self.reader.next().await? } else { piece };
                return Ok((!piece.is_empty()).then_some(piece));
            };
            let (piece, is_stuck, is_whole) = self.unpack(unpacker).await?;
            if !piece.is_empty() {
                self.text_bytes += piece.len() as u64;
                // A small file may unpack to a text without end.
                return if self.text_bytes > LOG_BYTES_MAX { Err(LogFault::TooLong) } else { Ok(Some(piece)) };
            }
            if is_stuck {
                self.part = self.reader.next().await?;
                if self.part.is_empty() {
                    return if is_whole {
                        Ok(None)
                    } else {
                        Err(LogFault::Damaged(std::io::ErrorKind::UnexpectedEof.into()))
                    };
                }
            }
        }
    }

    /// A piece of text, whether more of the file is needed, and whether it may end here. A piece can take a millisecond, so that
    /// another thread makes it.
    async fn unpack(&mut self, mut unpacker: LogUnpacker) -> Result<(Bytes, bool, bool), LogFault> {
        let part = self.part.clone();
        let unpack = move || {
            let unpacked = unpacker.unpack(&part, PIECE_BYTES);
            (unpacked, unpacker)
        };
        let (unpacked, unpacker) = tokio::task::spawn_blocking(unpack).await.map_err(|_| LogFault::Stopping)?;
        let (text, taken) = unpacked.map_err(LogFault::Damaged)?;
        self.part = self.part.split_off(taken.min(self.part.len()));
        let (is_stuck, is_whole) = (text.is_empty() && taken == 0, unpacker.is_whole());
        self.unpacker = Some(unpacker);
        Ok((text.into(), is_stuck, is_whole))
    }
}
