//! What an asker is told before it gets a body, or instead of one.

use crate::bulk::BulkStream;
use crate::framing::write_frame;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::PeerId;
use narmesh_protocol::AudienceDigest;
use narmesh_protocol::wire::NarReply;
use std::io;
use std::time::Duration;

/// A wait that is over sooner is not told: the asker would wake for nothing.
const FIRST_WORD: Duration = Duration::from_millis(50);
/// An asker that waits is told a new place at most this often,
const NEW_PLACE: Duration = Duration::from_secs(1);
/// and that it still waits at least this often.
const STILL_WAITS: Duration = Duration::from_millis(1_800);
/// What the asker is promised: the next word comes within this.
const NEXT_WORD_MS: u32 = 2_000;
/// An asker that cannot be queued should ask again after this.
pub(super) const ASK_AGAIN_MS: u32 = 1_000;
/// A head that cannot be written for this long ends its stream, as a body does.
pub(super) const HEAD_STALL: Duration = Duration::from_secs(30);

pub(super) async fn reply(stream: &mut BulkStream, reply: NarReply) -> io::Result<()> {
    let bytes = reply.encode().map_err(io::Error::other)?;
    let written = async {
        write_frame(stream, &bytes).await?;
        stream.flush().await
    };
    tokio::time::timeout(HEAD_STALL, written).await?
}

pub(super) fn name(peers: &[PeerId]) -> NarReply {
    NarReply::Others { peers: peers.iter().map(AudienceDigest::of).collect() }
}

pub(super) async fn turn_away(mut stream: BulkStream) -> io::Result<()> {
    reply(&mut stream, NarReply::NotNow { place: 0, ask_again_ms: ASK_AGAIN_MS }).await?;
    stream.close().await
}

/// Waits for `work` as long as the asker does; meanwhile tells the asker that it waits, and its place.
pub(super) async fn wait_and_tell_place<T>(
    stream: &mut BulkStream,
    place: impl Fn() -> u32,
    work: impl Future<Output = T>,
) -> io::Result<T> {
    let mut work = std::pin::pin!(work);
    let mut told: Option<u32> = None;
    let mut next_look = FIRST_WORD;
    loop {
        let mut byte = [0];
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            // An asker sends nothing before it is answered: if anything can be read here, it has left.
            _ = stream.read(&mut byte) => return Err(io::ErrorKind::UnexpectedEof.into()),
            () = tokio::time::sleep(next_look) => {}
        }
        let now = place();
        // A new place is told after a second; the same place only after `STILL_WAITS` in all.
        if told == Some(now) {
            (told, next_look) = (None, STILL_WAITS - NEW_PLACE);
        } else {
            reply(stream, NarReply::NotNow { place: now, ask_again_ms: NEXT_WORD_MS }).await?;
            (told, next_look) = (Some(now), NEW_PLACE);
        }
    }
}
