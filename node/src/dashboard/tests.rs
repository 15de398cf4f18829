//! The pages about a scripted daemon: a large one, and one whose texts are hostile.

use super::DashboardSource;
use super::pages::{self, View};
use crate::status::given::{Given, GivenStatus, SourceGiven};
use crate::status::log::{LogEntry, LogOutcome, LogQuery, LogReport, NarEntry, NarShare, NarSwitch};
use crate::status::text::tests::status;
use crate::status::{CandidateView, LookedUp, PeerStatus, Status, UpstreamStatus, WhyReport};
use std::time::{Duration, Instant};

const HOSTILE: &str = "<script>alert(1)</script>\" onload=alert(2) '</td>\u{202e}\r\rdata: x";

struct Scripted {
    status: Status,
    nars: Vec<NarEntry>,
    text: String,
}

impl Scripted {
    fn new(peers: usize, nars: usize, text: &str) -> Self {
        let mut status = status();
        let template = status.peers[0].clone();
        status.peers = (0..peers)
            .map(|number| PeerStatus {
                name: format!("{text}{number}"),
                peer_id: format!("peer{number}"),
                ..template.clone()
            })
            .collect();
        let failure = Some(text.to_owned());
        let cache = UpstreamStatus {
            name: text.to_owned(),
            url: text.to_owned(),
            state: "down".to_owned(),
            last_failure: failure,
            last_failure_age_s: Some(3),
            ..UpstreamStatus::default()
        };
        status.upstreams = vec![cache];
        let given = Given { nars: 1, bytes: 2 << 20, received_bytes: 2 << 20, waited_us: 10 };
        let sources: Vec<_> =
            (0..peers).map(|number| SourceGiven { name: format!("{text}{number}"), is_peer: true, given }).collect();
        let nar = |number| {
            let source = text.to_owned();
            NarEntry {
                number,
                hash_part: "0".repeat(32),
                name: Some("mesh-lib-1.0".to_owned()),
                nar_size: 1 << 20,
                outcome: LogOutcome::Running,
                given_bytes: 1 << 19,
                sources: vec![NarShare { source: source.clone(), first_byte: 0, bytes: 1 << 19 }],
                left: vec![NarSwitch { source, at: 7, why: text.to_owned() }],
                left_count: 1,
                ..NarEntry::default()
            }
        };
        let nars: Vec<_> = (0..nars as u64).map(nar).collect();
        let last = nars.first().cloned();
        status.given = GivenStatus { since_start: sources.clone(), week: sources, last, ..GivenStatus::default() };
        Self { status, nars, text: text.to_owned() }
    }

    async fn page(&self, address: &str) -> String {
        let (page, query) = address.split_once('?').unwrap_or((address, ""));
        let view = View::parse(page, query).unwrap();
        pages::render(self, &view, "/dashboard/x/").await.unwrap()
    }
}

impl DashboardSource for Scripted {
    async fn read_status(&self) -> anyhow::Result<Status> {
        Ok(self.status.clone())
    }

    fn read_log(&self, query: &LogQuery) -> anyhow::Result<LogReport> {
        anyhow::ensure!(query.path.as_ref().is_none_or(|path| path.len() >= 32), "{:?} is no path", query.path);
        let latest = self.nars.iter().rev().take(query.most).rev().cloned();
        Ok(LogReport { entries: latest.map(LogEntry::Nar).collect(), ..LogReport::default() })
    }

    async fn read_why(&self, path: String) -> anyhow::Result<WhyReport> {
        let candidate = CandidateView {
            name: self.text.clone(),
            peer_id: "peer".to_owned(),
            would_ask: true,
            reason: self.text.clone(),
        };
        let sentence = format!("asked candidate peer: {}", self.text);
        let decisions = vec![LookedUp { at_unix_ms: 1, sentence }];
        Ok(WhyReport { asked: path, peers: vec![candidate], decisions, ..WhyReport::default() })
    }

    async fn read_verdict(&self, _: String) -> anyhow::Result<Vec<String>> {
        Ok(vec![self.text.clone()])
    }
}

fn all_pages() -> [String; 6] {
    let path = format!("path/{}-mesh-lib-1.0", "0".repeat(32));
    ["", "machines", "requests", &path, "sources", "warnings"].map(str::to_owned)
}

#[tokio::test]
async fn hostile_texts_are_text_on_every_page() {
    let scripted = Scripted::new(3, 3, HOSTILE);
    for address in all_pages() {
        let page = scripted.page(&address).await;
        assert!(!page.contains("<script>alert") && !page.contains("\" onload=alert"), "{address}: {page}");
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{address} shows it");
        assert!(!page.contains(['\u{202e}', '\r']), "{address}");
        // Nothing is styled or run but by the files of the server.
        assert!(!page.contains(" style=") && !page.contains("javascript:"), "{address}");
    }
    let searched = scripted.page("machines?q=%22%3E%3Cscript%3Ealert%283%29%3C%2Fscript%3E").await;
    assert!(!searched.contains("<script>alert(3)"), "{searched}");
    let refused = scripted.page("requests?q=%3Cscript%3Ealert%284%29").await;
    assert!(refused.contains("role=\"alert\"") && !refused.contains("<script>alert(4)"), "{refused}");
}

#[tokio::test]
async fn every_page_has_landmarks_labels_and_captions() {
    let scripted = Scripted::new(3, 3, "name");
    for address in all_pages() {
        let page = scripted.page(&address).await;
        let count = |what: &str| page.matches(what).count();
        for once in
            ["<main", "<h1>", "<header", "<footer", "<nav aria-label=\"Pages\"", "lang=\"en\"", "class=\"skip\""]
        {
            assert_eq!(count(once), 1, "{address}: {once}");
        }
        assert_eq!(count("<table"), count("<caption"), "{address}");
        assert_eq!(count("<input"), count("<label for=") - count("<select"), "{address}");
        assert_eq!(count("<th "), count("<th scope=") + count("<th class=\"number\" scope="), "{address}");
    }
}

#[test]
fn addresses_that_are_no_page_have_none() {
    for address in ["x", "path/", "path/<b>", "path/a/b", "path/..%2f", "machines/", "live/", "requests/1"] {
        assert_eq!(View::parse(address, ""), None, "{address}");
    }
    assert!(View::parse(&format!("path/{}", "a".repeat(251)), "").is_none());
}

/// The shortest of a few runs: others use this machine as well.
async fn time(scripted: &Scripted, address: &str) -> Duration {
    let mut shortest = Duration::MAX;
    for _ in 0..7 {
        let began = Instant::now();
        assert!(!scripted.page(address).await.is_empty());
        shortest = shortest.min(began.elapsed());
    }
    shortest
}

#[tokio::test]
async fn thousand_machines_and_ten_thousand_requests_stay_quick() {
    let (small, large) = (Scripted::new(100, 100, "name"), Scripted::new(1_000, 10_000, "name"));
    for address in all_pages() {
        let page = large.page(&address).await;
        assert!(page.len() < 200 << 10, "{address} has {} bytes", page.len());
        // Ten times as many machines, a hundred times as many requests: the status alone is ten times as long.
        let (of_small, of_large) = (time(&small, &address).await, time(&large, &address).await);
        assert!(of_large < of_small * 30, "{address}: {of_large:?} instead of {of_small:?}");
    }
    let second = large.page("requests?page=1").await;
    assert!(second.contains("Page 2") && second.contains("rel=\"prev\"") && second.contains("rel=\"next\""));
    let last = large.page("machines?page=9").await;
    assert!(last.contains("name999") && !last.contains("rel=\"next\""));
}
