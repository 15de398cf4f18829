//! HTTP/2 by hand, as far as it takes to say GOAWAY in the middle of a body.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::certificate::Certificate;

const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
// Types and flags of frames, RFC 9113 section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Starts it; returns where it listens, and the certificate that it shows.
pub(super) fn start(files: &Path, failures: &Arc<AtomicUsize>) -> (SocketAddr, Certificate) {
    let certificate = Certificate::of_loopback();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certificate.key.clone()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions of TLS").with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate.certificate.clone().into()], key).expect("the key fits");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (config, files, failures) = (Arc::new(config), narinfo_of(files), Arc::clone(failures));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let address = listener.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let (config, file, failures) = (Arc::clone(&config), files.clone(), Arc::clone(&failures));
            // A client that hangs up is an error here, and nothing more.
            thread::spawn(move || serve(connection, config, &file, &failures).ok());
        }
    });
    (address, certificate)
}

/// Any narinfo: half of one says nothing about a path.
fn narinfo_of(files: &Path) -> PathBuf {
    let entries = fs::read_dir(files).expect("a directory of a cache").flatten().map(|entry| entry.path());
    entries.into_iter().find(|file| file.extension().is_some_and(|end| end == "narinfo")).expect("it has a narinfo")
}

fn serve(connection: TcpStream, config: Arc<ServerConfig>, file: &Path, failures: &AtomicUsize) -> io::Result<()> {
    let tls = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(tls, connection);
    stream.read_exact(&mut [0; PREFACE_BYTES])?;
    write_frame(&mut stream, SETTINGS, 0, 0, b"")?;
    loop {
        let mut head = [0; FRAME_HEAD_BYTES];
        stream.read_exact(&mut head)?;
        let [length @ .., kind, flags, s0, s1, s2, s3] = head;
        let [l0, l1, l2] = length;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        stream.read_exact(&mut payload)?;
        let id = u32::from_be_bytes([s0, s1, s2, s3]);
        match kind {
            SETTINGS if flags & ACK == 0 => write_frame(&mut stream, SETTINGS, ACK, 0, b"")?,
            HEADERS => {
                failures.fetch_add(1, Ordering::Relaxed);
                let body = fs::read(file)?;
                // `:status: 200` is number 8 of the static table, and the name `content-length` number 28.
                let length = body.len().to_string();
                let mut block = vec![0x88, 0x0f, 28 - 15, u8::try_from(length.len()).unwrap_or(0)];
                block.extend_from_slice(length.as_bytes());
                write_frame(&mut stream, HEADERS, END_HEADERS, id, &block)?;
                write_frame(&mut stream, DATA, 0, id, body.get(..body.len() / 2).unwrap_or_default())?;
                // The last stream that was served, and no error.
                write_frame(&mut stream, GOAWAY, 0, 0, &[s0, s1, s2, s3, 0, 0, 0, 0])?;
                stream.conn.send_close_notify();
                return stream.flush();
            }
            _ => {}
        }
    }
}

fn write_frame(out: &mut impl Write, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
    let [_, length @ ..] = u32::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
    let mut frame = length.to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    out.write_all(&frame)?;
    out.flush()
}
