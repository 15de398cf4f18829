//! Logs, listings, files and directories of our own store, as the gateway sends them. They are read on blocking threads, a
//! piece at a time and only when the client has taken the piece before.

use crate::sources::PeerLog;
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use narmesh_http_gateway::{
    BodyAborted, BuildLog, Busy, DirectoryRow, EntryPath, NarBody, RowKind, StoreDirectory, StoreEntry, StoreFile,
    TreeListing,
};
use narmesh_resolver::{Resolver, Unread};
use narmesh_store::{ContentsError, DirectoryRows, Entry, EntryFile, StoreContents, StoreError};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes read at a time. The gateway's 512 connections hold 32 MiB of them together.
const PIECE_BYTES: usize = 64 << 10;
/// Rows of a directory read at a time.
const ROWS_AT_ONCE: usize = 256;
/// Logs that are unpacked at the same time: each takes up to 4 MiB.
const UNPACKED_LOGS_MAX: usize = 16;
/// How long a log waits until another one was unpacked, before its client is told to ask again.
const UNPACKING_WAIT: Duration = Duration::from_secs(5);

/// The places for logs that are unpacked.
#[derive(Clone, Debug)]
pub(crate) struct LogPlaces(Arc<Semaphore>);

impl Default for LogPlaces {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(UNPACKED_LOGS_MAX)))
    }
}

impl LogPlaces {
    async fn take(&self) -> Result<OwnedSemaphorePermit, Busy> {
        let permit = tokio::time::timeout(UNPACKING_WAIT, Arc::clone(&self.0).acquire_owned()).await;
        permit.ok().and_then(Result::ok).ok_or(Busy)
    }
}

/// Asks our own store. What it cannot answer counts as absent, unless its database stays locked.
pub(super) async fn ask<T: Send + 'static>(
    resolver: &Resolver,
    question: impl FnOnce() -> Result<Option<T>, StoreError> + Clone + Send + 'static,
) -> Result<Option<T>, Busy> {
    match resolver.read_own(question).await {
        Ok(answer) => Ok(answer),
        Err(Unread::NotNow) => Err(Busy),
        Err(Unread::Failed(error)) => {
            tracing::debug!(%error, "cannot be read, so it counts as absent");
            Ok(None)
        }
    }
}

/// The log that `find` finds. It is unpacked unless the client accepts it packed.
pub(super) async fn find_log(
    resolver: &Resolver,
    find: impl FnOnce() -> Result<Option<narmesh_store::BuildLog>, StoreError> + Clone + Send + 'static,
    accepts_bzip2: bool,
    places: &LogPlaces,
) -> Result<Option<BuildLog>, Busy> {
    let Some(log) = ask(resolver, find).await? else { return Ok(None) };
    let (is_packed, size_bytes) = (log.is_compressed(), log.size_bytes());
    let as_it_is = accepts_bzip2 || !is_packed;
    let place = if as_it_is { None } else { Some(places.take().await?) };
    let text = if as_it_is { log.read_raw() } else { log.read_text() };
    // The place is given back with the body.
    let body = in_pieces((text, place), |(text, _), out| text.fill(out, PIECE_BYTES));
    Ok(Some(BuildLog { is_compressed: is_packed && as_it_is, size_bytes: as_it_is.then_some(size_bytes), body }))
}

/// The log of a peer, unpacked here: so its text has a bound, and a client that unpacks without one is not harmed.
pub(super) async fn show_log(log: PeerLog, places: &LogPlaces) -> Result<BuildLog, Busy> {
    let size_bytes = (!log.is_compressed()).then(|| log.size_bytes());
    let place = places.take().await?;
    // The place is given back with the body.
    let body = log.read_text().map(move |piece| {
        let _place = &place;
        piece.map_err(|error| {
            tracing::warn!(%error, "the log of a peer that was begun cannot be read to its end");
            BodyAborted
        })
    });
    Ok(BuildLog { is_compressed: false, size_bytes, body: Box::pin(body) })
}

/// The listing of the contents that `find` finds.
pub(super) async fn list_tree(
    resolver: &Resolver,
    find: impl FnOnce() -> Result<Option<StoreContents>, StoreError> + Clone + Send + 'static,
) -> Result<Option<TreeListing>, Busy> {
    let Some(contents) = ask(resolver, find).await? else { return Ok(None) };
    let nar_hash = contents.info().nar_hash;
    // The first piece is read here, so that a client can still be told that there is no memory for it.
    let begin = move || {
        let mut first = Vec::with_capacity(PIECE_BYTES);
        let mut listing = contents.list()?;
        let has_more = listing.fill(&mut first, PIECE_BYTES)?;
        Ok((listing, Bytes::from(first), has_more))
    };
    let Some((listing, first, has_more)) = unless_busy(begin).await? else { return Ok(None) };
    let first = stream::iter([Ok(first)]);
    let body: NarBody = if has_more {
        Box::pin(first.chain(in_pieces(listing, |listing, out| listing.fill(out, PIECE_BYTES))))
    } else {
        Box::pin(first)
    };
    Ok(Some(TreeListing { nar_hash, body }))
}

/// The entry at `path` of the contents that `find` finds.
pub(super) async fn find_entry(
    resolver: &Resolver,
    find: impl FnOnce() -> Result<Option<StoreContents>, StoreError> + Clone + Send + 'static,
    path: EntryPath,
) -> Result<Option<StoreEntry>, Busy> {
    const INDEX: &[u8] = b"index.html";
    let Some(contents) = ask(resolver, find).await? else { return Ok(None) };
    let (nar_hash, store_path) = (contents.info().nar_hash, contents.info().path.clone());
    let name = path.names().last().cloned().unwrap_or_else(|| store_path.name().as_bytes().to_vec());
    let open = move || contents.open_entry(path.names());
    let file = |name, file: EntryFile| {
        StoreEntry::File(StoreFile { nar_hash, name, size_bytes: file.size_bytes(), read_from: read_from(file) })
    };
    let Some(entry) = unless_busy(open).await?.flatten() else { return Ok(None) };
    Ok(Some(match entry {
        Entry::File(opened) => file(name, opened),
        // A directory with an index is shown as that page, as web servers do.
        Entry::Directory(mut rows) => match rows.take_index() {
            Some(index) => file(INDEX.to_vec(), index),
            None => StoreEntry::Directory(StoreDirectory { path: store_path, rows: Box::pin(in_rows(rows)) }),
        },
    }))
}

/// Runs a read on a blocking thread. What cannot be read counts as absent, unless only memory is missing.
async fn unless_busy<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ContentsError> + Send + 'static,
) -> Result<Option<T>, Busy> {
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(ContentsError::Busy)) => Err(Busy),
        Ok(Err(error @ (ContentsError::Io(_) | ContentsError::Changed | ContentsError::NotListable))) => {
            tracing::debug!(%error, "cannot be read, so it counts as absent");
            Ok(None)
        }
        // The runtime is ending, or the thread panicked.
        Err(_) => Ok(None),
    }
}

fn read_from(file: EntryFile) -> Box<dyn FnOnce(u64) -> NarBody + Send> {
    Box::new(move |first_byte| {
        in_pieces((file, first_byte), |(file, at), out| {
            file.read_at(*at, out, PIECE_BYTES)?;
            *at += out.len() as u64;
            Ok::<_, ContentsError>(*at < file.size_bytes())
        })
    })
}

/// Reads pieces until `fill` says that there are no more.
fn in_pieces<S, E>(source: S, fill: fn(&mut S, &mut Vec<u8>) -> Result<bool, E>) -> NarBody
where
    S: Send + 'static,
    E: Display + Send + 'static,
{
    Box::pin(stream::unfold(Some(source), move |source| async move {
        let mut source = source?;
        let read = move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let filled = fill(&mut source, &mut piece);
            (source, piece, filled)
        };
        // A piece at a time, so that a client that reads slowly holds no thread.
        let (source, piece, filled) = tokio::task::spawn_blocking(read).await.ok()?;
        match filled {
            Ok(has_more) => Some((Ok(Bytes::from(piece)), has_more.then_some(source))),
            Err(error) => {
                tracing::warn!(%error, "a body that was begun cannot be read to its end");
                Some((Err(BodyAborted), None))
            }
        }
    }))
}

fn in_rows(rows: DirectoryRows) -> impl Stream<Item = Result<Vec<DirectoryRow>, BodyAborted>> {
    stream::unfold(Some(rows), |rows| async move {
        let mut rows = rows?;
        let read = move || {
            let mut some = Vec::with_capacity(ROWS_AT_ONCE);
            while some.len() < ROWS_AT_ONCE {
                match rows.next_row()? {
                    Some(row) => some.push(row_of(row)),
                    None => return Ok((None, some)),
                }
            }
            Ok::<_, ContentsError>((Some(rows), some))
        };
        match tokio::task::spawn_blocking(read).await.ok()? {
            Ok((rows, some)) => Some((Ok(some), rows)),
            Err(error) => {
                tracing::warn!(%error, "a directory that was begun cannot be read to its end");
                Some((Err(BodyAborted), None))
            }
        }
    })
}

fn row_of(row: narmesh_store::DirectoryRow) -> DirectoryRow {
    let kind = match row.kind {
        narmesh_store::RowKind::File { size_bytes } => RowKind::File { size_bytes },
        narmesh_store::RowKind::Directory => RowKind::Directory,
        narmesh_store::RowKind::Symlink { target } => RowKind::Symlink { target },
        narmesh_store::RowKind::Special => RowKind::Special,
    };
    DirectoryRow { name: row.name, kind }
}
