//! What it costs to unpack many NARs at once that claim the largest dictionary. A test of its own process, because it
//! measures that.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::settings;
use narmesh_upstream::{Compression, DecoderMemory, NarLocation, Upstream};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// More than the dictionary, so that all of it is used.
const NAR_BYTES: usize = 72 << 20;
const AT_ONCE: usize = 16;

/// What all decoders together may take here, and what else the process may have meanwhile: its own buffers, and what the
/// allocator keeps.
const DECODERS_BYTES_MAX: u64 = 140 << 20;
const BESIDE_BYTES_MAX: u64 = 40 << 20;

/// A NAR that repeats itself after a mebibyte, so that packing it is quick.
fn nar() -> Vec<u8> {
    let mut state = 1_u64;
    let block = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    let block: Vec<_> = block.take(1 << 20).collect();
    block.iter().copied().cycle().take(NAR_BYTES).collect()
}

/// Packs as Nix does with `compression-level=9`.
fn pack(nar: &[u8]) -> Vec<u8> {
    let xz = Command::new("xz").args(["-9", "--stdout"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut xz = xz.expect("xz is installed");
    let mut input = xz.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(nar).unwrap());
        xz.wait_with_output().unwrap().stdout
    })
}

fn directory(dir: &Path) -> Arc<Upstream> {
    Upstream::new(settings(&format!("file://{}", dir.display()))).unwrap()
}

fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Unpacks all of them at once; returns the most memory that was in use, over what was at the beginning.
async fn unpack_all(dir: &Path, file_size: u64, memory: &DecoderMemory) -> u64 {
    let upstream = directory(dir);
    let location = NarLocation {
        url: "x.nar.xz".to_owned(),
        compression: Compression::Xz,
        file_size: Some(file_size),
        file_hash: None,
    };
    let idle = resident_bytes();
    let unpack = |_| {
        let (upstream, location, memory) = (Arc::clone(&upstream), location.clone(), memory.clone());
        tokio::spawn(async move {
            let memory = memory.take(location.decoder_bytes(NAR_BYTES as u64)).await;
            let body = upstream
                .nar((&narmesh_protocol::HashPart([0; 20]), &location), 0, NAR_BYTES as u64, memory)
                .await
                .unwrap();
            let (mut body, mut piece, mut most, mut bytes) = (body.expect("it is there"), Vec::new(), 0, 0);
            while body.read(&mut piece, 1 << 20).await.unwrap() > 0 {
                bytes += piece.len();
                piece.clear();
                most = most.max(resident_bytes());
                // So that all that may go on do so together.
                tokio::task::yield_now().await;
            }
            assert_eq!(bytes, NAR_BYTES);
            most
        })
    };
    let done = futures::future::join_all((0..AT_ONCE).map(unpack)).await;
    done.into_iter().map(Result::unwrap).max().unwrap().saturating_sub(idle)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nars_of_the_largest_dictionary_share_the_memory_of_all_decoders() {
    let dir = tempfile::tempdir().unwrap();
    let packed = tokio::task::spawn_blocking(|| pack(&nar())).await.unwrap();
    fs::write(dir.path().join("x.nar.xz"), &packed).unwrap();
    let file_size = packed.len() as u64;
    let used = unpack_all(dir.path(), file_size, &DecoderMemory::new(DECODERS_BYTES_MAX)).await;
    assert!(used <= DECODERS_BYTES_MAX + BESIDE_BYTES_MAX, "{} MiB", used >> 20);
    // The figures of the document: `cargo test -p narmesh-upstream --test memory -- --nocapture`.
    if std::env::var_os("NARMESH_TEST_FULL").is_some() {
        let usual = unpack_all(dir.path(), file_size, &DecoderMemory::default()).await;
        let boundless = unpack_all(dir.path(), file_size, &DecoderMemory::new(1 << 40)).await;
        let figures = format!("{} MiB with the usual bound, {} MiB without\n", usual >> 20, boundless >> 20);
        std::io::stdout().write_all(figures.as_bytes()).unwrap();
    }
}
