//! Serves the gateway with narinfos from memory, to measure it on its own.
//!
//! `memory_gateway PORT DIR`: every `DIR/<hash part>.narinfo` is served with the bytes of the file, and every file
//! below `DIR/nar` is a NAR. The same directory can be given to another server for comparison. The program ends
//! when its standard input does.

#![expect(clippy::unwrap_used, reason = "a tool for measuring, with no user but its author")]

#[expect(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../tests/gateway/memory.rs"]
mod memory;

use std::path::Path;
use std::sync::Arc;

use memory::{MemorySubstituter, Nar};
use narmesh_http_gateway::{Gateway, GatewayLimits, GatewayMetrics, ListenerRole, serve};
use narmesh_protocol::{HashPart, NarUrl};
use prometheus_client::registry::Registry;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().expect("a port").parse().expect("a port");
    let directory = arguments.next().expect("a directory");
    let substituter = Arc::new(load(Path::new(&directory)));

    let metrics = Arc::new(GatewayMetrics::default());
    let mut registry = Registry::with_prefix("narmesh");
    metrics.register(&mut registry);
    let gateway = Gateway::new(substituter, ListenerRole::local(), metrics, Arc::new(registry));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (ended, input_ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
        drop(ended);
    });
    let shutdown = async { drop(input_ended.await) };
    // On a worker thread as in the node: the thread of `main` would have to be woken for every accept.
    tokio::spawn(serve(listener, gateway, GatewayLimits::default(), shutdown)).await.unwrap();
}

fn load(directory: &Path) -> MemorySubstituter {
    let mut substituter = MemorySubstituter::default();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(part) = name.strip_suffix(".narinfo") {
            substituter.narinfos.insert(HashPart::parse(part).unwrap(), std::fs::read(&path).unwrap().into());
        }
    }
    if let Ok(entries) = std::fs::read_dir(directory.join("nar")) {
        for entry in entries {
            let path = entry.unwrap().path();
            let url = NarUrl::parse_file_name(path.file_name().unwrap().to_str().unwrap()).unwrap();
            substituter.nars.insert(url, Nar { chunk_bytes: 256 * 1024, ..Nar::good(std::fs::read(&path).unwrap()) });
        }
    }
    substituter
}
