//! Clients that ask all the time, and know the right answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use narmesh_tests::{NarInfoText, TestNode, get, hash_part, nix_client_environment};

/// A path for which the right answers are known.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) path: String,
    /// The whole NAR, as Nix itself dumps it.
    pub(crate) nar: Arc<Vec<u8>>,
    pub(crate) nar_hash: String,
    /// The URL of the NAR, from an earlier narinfo of a gateway.
    pub(crate) url: String,
}

impl Known {
    /// Asks Nix for the contents, and the gateway of `through` for the URL.
    #[track_caller]
    pub(crate) fn new(holder: &TestNode, through: &TestNode, path: &str) -> Self {
        let mut dump = std::process::Command::new("nix-store");
        nix_client_environment(&mut dump).arg("--dump").arg(holder.store.real_path(path));
        let nar = dump.output().expect("nix-store --dump").stdout;
        let row = holder.store.row(path).expect("built");
        assert_eq!(row.nar_size, nar.len() as u64);
        let url = through.wait_narinfo(path).url;
        Self { path: path.to_owned(), nar: Arc::new(nar), nar_hash: row.nar_hash, url }
    }
}

/// How often each answer came; `None` stands for no answer at all, while the daemon is dead.
pub(crate) type Counts = BTreeMap<(&'static str, Option<u16>), u64>;

/// Asks a gateway for narinfos and NARs, and panics at a wrong answer.
#[derive(Debug)]
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Counts>>,
}

impl Clients {
    /// One thread for each gateway.
    pub(crate) fn start(gateways: &[SocketAddr], known: &[Known]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = gateways.iter().map(|gateway| {
            let (gateway, known, stop) = (*gateway, known.to_vec(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut counts = Counts::new();
                while !stop.load(Ordering::Relaxed) {
                    for path in &known {
                        let answers = [("narinfo", ask_narinfo(gateway, path)), ("nar", ask_nar(gateway, path))];
                        for answer in answers {
                            *counts.entry(answer).or_default() += 1;
                        }
                        if answers.contains(&("nar", None)) {
                            // A dead daemon refuses at once; asking it without a pause would take a whole processor.
                            thread::park_timeout(Duration::from_millis(5));
                        }
                    }
                }
                counts
            })
        });
        Self { threads: threads.collect(), stop }
    }

    /// Stops the clients; returns what each gateway answered.
    ///
    /// # Panics
    /// When one got a wrong answer.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Vec<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).map(|thread| thread.join().expect("every answer was right")).collect()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Asks for a narinfo; returns the status, if there was an answer. Asserts that a 200 has the right NarHash.
pub(crate) fn ask_narinfo(gateway: SocketAddr, known: &Known) -> Option<u16> {
    let answer = get(gateway, &format!("/{}.narinfo", hash_part(&known.path))).ok()?;
    assert!(matches!(answer.status, 200 | 404), "narinfo of {}: {}", known.path, answer.status);
    if answer.status == 200 && answer.complete {
        assert_eq!(NarInfoText::parse(&answer.text()).nar_hash, known.nar_hash, "{}", known.path);
    }
    Some(answer.status)
}

/// Asks for a NAR; returns the status, if there was an answer. Asserts that every byte is right, also in a body cut short.
pub(crate) fn ask_nar(gateway: SocketAddr, known: &Known) -> Option<u16> {
    let answer = get(gateway, &known.url).ok()?;
    assert!(matches!(answer.status, 200 | 404), "NAR of {}: {}", known.path, answer.status);
    if answer.status == 200 {
        assert!(known.nar.starts_with(&answer.body), "{}: a wrong byte", known.path);
        assert!(!answer.complete || answer.body.len() == known.nar.len(), "{}: cut and called whole", known.path);
    }
    Some(answer.status)
}
