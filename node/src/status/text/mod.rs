//! The reports for people: aligned, in plain words, and with nothing in them by which a peer could manipulate a
//! terminal.

mod builders;
mod mesh;
mod remarks;

use super::{
    AdvertisedReport, CandidateView, ListenerStatus, LookedUp, PeerProbe, PeerStatus, QuorumStatus, RelayStatus,
    Status, SummarySource, SummaryStatus, UpstreamStatus, WhyReport, WouldAnswer,
};
pub use crate::describe::escaped;
use crate::describe::plainly;
use crate::styles::{Mark, columns as columns_of};
use mesh::mesh_text;
pub(crate) use mesh::{contradiction, tell_removal};
use narmesh_mesh::ProbeResult;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// A size like `1.5 MiB`; below 1 KiB it is exact.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1_024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1_024.0;
    let mut unit = "KiB";
    for larger in UNITS.iter().skip(1) {
        if value < 1_024.0 {
            break;
        }
        value /= 1_024.0;
        unit = larger;
    }
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A duration like `12 s`, `3 min`, `4 h 10 min` or `2 d 3 h`.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        (_, _, _) => format!("{days} d {} h", hours % 24),
    }
}

/// A time as `YYYY-MM-DD HH:MM:SS UTC` (days to civil date after Hinnant, "chrono-compatible low-level date
/// algorithms").
pub fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3_600, second / 60 % 60, second % 60)
}

/// Rows with aligned columns and two spaces between them; the last column is not padded.
pub(crate) fn table(rows: &[Vec<String>], indent: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| columns_of(cell)).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = " ".repeat(indent);
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - columns_of(cell) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(label: &str, text: String) -> Vec<String> {
    vec![label.to_owned(), text]
}

/// What is said of one `[[gateway.listener]]`.
fn listener_rows(listener: &ListenerStatus) -> Vec<Vec<String>> {
    let ListenerStatus { address, role, needs_token, tls, connections } = listener;
    let scheme = match (tls, address.contains('/')) {
        (Some(_), _) => "https://",
        (None, true) => "",
        (None, false) => "http://",
    };
    let needs_certificate = tls.as_ref().is_some_and(|tls| tls.clients_need_certificate);
    let needs = match (needs_token, needs_certificate) {
        (true, true) => ", needs a token and a certificate",
        (true, false) => ", needs a token",
        (false, true) => ", needs a certificate",
        (false, false) => "",
    };
    let mut rows =
        vec![row("listener", format!("{scheme}{}: {role}{needs}; {connections} connections", escaped(address)))];
    if let Some(tls) = tls {
        let said = match tls.is_valid {
            true => format!("certificate until {}", utc(tls.until_unix_s)),
            false => {
                let not_valid = Mark::Bad.paint("CERTIFICATE NOT VALID");
                format!("{not_valid}: from {} until {}", utc(tls.from_unix_s), utc(tls.until_unix_s))
            }
        };
        rows.push(row("", said));
        rows.extend(
            tls.error
                .as_ref()
                .map(|error| row("", format!("{}: {}", Mark::Bad.paint("NEW CERTIFICATE REFUSED"), escaped(error)))),
        );
    }
    rows
}

impl Status {
    /// The output of `narmesh status`, in colours.
    pub fn text(&self) -> String {
        let mut rows = self.quorum.as_ref().map_or_else(Vec::new, conflict_rows);
        rows.extend([
            row("node", self.peer_id.clone()),
            row(
                "",
                format!(
                    "{}, pid {}, up {}, {} resident",
                    self.software,
                    self.pid,
                    duration(self.uptime_s),
                    bytes(self.rss_bytes)
                ),
            ),
            row("config", format!("{}, read {}", self.config.file.display(), utc(self.config.loaded_unix_s))),
        ]);
        if let Some(error) = &self.config.error {
            rows.push(row(
                "",
                format!(
                    "{}, the settings before it stay in force: {}",
                    Mark::Bad.paint("LAST RELOAD REFUSED"),
                    escaped(error)
                ),
            ));
        }
        rows.push(row("listens", if self.listen.is_empty() { "nowhere".to_owned() } else { self.listen.join(", ") }));
        rows.push(row("gateway", format!("http://{}", self.gateway)));
        rows.extend(self.gateway_public_key.as_ref().map(|key| row("", format!("Nix has to trust {key}"))));
        rows.extend(self.listeners.iter().flat_map(listener_rows));
        rows.extend(self.mesh.as_ref().map(|mesh| row("mesh", mesh_text(mesh))));
        rows.push(row(
            "store",
            format!(
                "{}: {} valid paths, {} advertised",
                self.store.dir, self.store.valid_paths, self.store.advertised_paths
            ),
        ));
        if !self.serve.is_serving {
            rows.push(row(
                "",
                format!("{}: {}", Mark::Unusual.paint("peers get nothing of it"), escaped(&self.serve.why)),
            ));
        }
        if let Some(RelayStatus { circuits, bytes: passed_on }) = &self.relay {
            rows.push(row("relay", format!("circuits: {circuits}, {} passed on", bytes(*passed_on))));
        }
        if let Some(missing) = &self.store.missing {
            rows.push(row("", format!("{}: {}", Mark::Bad.paint("NOT THERE"), escaped(missing))));
        }
        rows.push(row(
            "summary",
            format!(
                "epoch {} seq {}: {} paths, filter {}",
                self.own.epoch,
                self.own.seq,
                self.own.paths,
                bytes(self.own.filter_bits / 8)
            ),
        ));
        let asked = &self.requests;
        rows.push(row(
            "narinfos",
            format!(
                "{} asked, {} found, {} not found; {} false hits",
                asked.narinfo, asked.narinfo_hits, asked.narinfo_misses, asked.false_hits
            ),
        ));
        rows.push(row(
            "NARs",
            format!(
                "{} asked, {} delivered, {} not found, {} cut short",
                asked.nar, asked.nar_ok, asked.nar_absent, asked.nar_aborted
            ),
        ));
        rows.push(row(
            "bytes",
            format!(
                "{} from peers, {} to peers, {} to Nix",
                bytes(self.bytes.received),
                bytes(self.bytes.sent),
                bytes(self.bytes.gateway_out)
            ),
        ));
        rows.extend(self.quorum.iter().flat_map(quorum_rows));
        let mut text = table(&rows, 0);
        text.push_str(&peer_table(&self.peers, self.mesh.is_some()));
        text.push_str(&upstreams_text(&self.upstreams));
        text.push_str(&builders::builder_table(&self.builders));
        text
    }
}

/// The rows about conflicts, which come first so that nobody overlooks them.
fn conflict_rows(quorum: &QuorumStatus) -> Vec<Vec<String>> {
    let count = quorum.paths.get("conflict").copied().unwrap_or(0);
    let mut rows: Vec<_> =
        quorum.conflicts.iter().map(|path| row(&Mark::Bad.paint("CONFLICT"), escaped(path))).collect();
    let shown = rows.len() as u64;
    if count > shown {
        rows.push(row("", format!("and {} more paths on which builders disagree", count - shown)));
    }
    if count > 0 {
        rows.push(row("", "builders got different results; see `narmesh quorum why PATH`".to_owned()));
    }
    rows
}

fn quorum_rows(quorum: &QuorumStatus) -> Vec<Vec<String>> {
    let list = |counts: &BTreeMap<String, u64>| {
        let words: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let asked = quorum.k.map_or_else(String::new, |k| format!(", {k} of {} groups must agree", quorum.of));
    let bare = match quorum.bare_signatures {
        0 => String::new(),
        bare => format!(" and {bare} bare signatures"),
    };
    let mut rows = vec![row("quorum", format!("{}{asked}; {} attestations{bare}", quorum.mode, quorum.attestations))];
    if !quorum.paths.is_empty() {
        rows.push(row("", format!("paths: {}", list(&quorum.paths))));
    }
    if !quorum.refused.is_empty() {
        rows.push(row("", format!("not given to Nix: {}", list(&quorum.refused))));
    }
    rows
}

fn peer_table(peers: &[PeerStatus], is_in_mesh: bool) -> String {
    if peers.is_empty() {
        let how = if is_in_mesh {
            "`narmesh mesh invite`, where the mesh key is, prints a token for another machine"
        } else {
            "`narmesh mesh create` or `narmesh join`, or a [[peer]] in the configuration and a reload"
        };
        return format!("\nno peers: {how}\n");
    }
    let connected = peers.iter().filter(|peer| peer.stats.connected).count();
    let mut text = format!("\n{}, connected: {connected}\n", Mark::Heading.paint(format!("peers: {}", peers.len())));
    let heading = ["name", "state", "summary", "asked/found/false", "in", "out", "rate", "rtt"];
    let mut rows = vec![heading.iter().map(ToString::to_string).collect::<Vec<_>>()];
    rows.extend(peers.iter().map(peer_row));
    text.push_str(&table(&rows, 2));
    for peer in peers {
        for remark in peer.remarks() {
            text += &format!("  {}: {remark}\n", escaped(&peer.name));
        }
    }
    text
}

/// The table of the upstream caches; empty if there are none.
fn upstreams_text(upstreams: &[UpstreamStatus]) -> String {
    if upstreams.is_empty() {
        return String::new();
    }
    let heading = ["name", "state", "answers", "latency", "in", "url"];
    let mut rows = vec![heading.iter().map(ToString::to_string).collect::<Vec<_>>()];
    rows.extend(upstreams.iter().map(|upstream| {
        let state = match upstream.down_s {
            Some(seconds) => Mark::Bad.paint(format!("down, tried again in {}", duration(seconds))),
            None if upstream.state == "up" => Mark::Good.paint(&upstream.state),
            None => Mark::Unusual.paint(&upstream.state),
        };
        let latency = upstream.latency_ms.map_or_else(|| "-".to_owned(), |latency| format!("{latency:.1} ms"));
        let received = bytes(upstream.bytes_in);
        vec![escaped(&upstream.name), state, upstream.answers.to_string(), latency, received, escaped(&upstream.url)]
    }));
    let all_down = upstreams.iter().all(|upstream| upstream.down_s.is_some());
    let offline = if all_down { " (offline: none can be reached)" } else { "" };
    let heading = Mark::Heading.paint(format!("upstream caches: {}", upstreams.len()));
    let mut text = format!("\n{heading}{offline}\n{}", table(&rows, 2));
    for upstream in upstreams {
        if let (Some(failure), Some(age_s)) = (&upstream.last_failure, upstream.last_failure_age_s) {
            let (name, age) = (escaped(&upstream.name), duration(age_s));
            text += &format!("  {name}: failed {age} ago: {}\n", escaped(failure));
        }
    }
    text
}

fn peer_row(peer: &PeerStatus) -> Vec<String> {
    let state = match (peer.stats.connected, peer.set_aside_s) {
        (_, Some(seconds)) => Mark::Bad.paint(format!("set aside for {}", duration(seconds))),
        (true, None) => Mark::Good.paint("connected"),
        (false, None) => Mark::Unusual.paint("not connected"),
    };
    let none = || "-".to_owned();
    vec![
        escaped(&peer.name),
        state,
        peer.summary.as_ref().map_or_else(none, summary),
        format!("{}/{}/{}", peer.stats.asked, peer.stats.hits, peer.stats.false_hits),
        bytes(peer.stats.bytes_in),
        bytes(peer.stats.bytes_out),
        peer.stats.rate_bytes_s.map_or_else(none, |rate| format!("{}/s", bytes(rate))),
        peer.rtt_ms.map_or_else(none, |rtt| format!("{rtt:.1} ms")),
    ]
}

fn summary(summary: &SummaryStatus) -> String {
    let source = match summary.source {
        SummarySource::Heard => "",
        SummarySource::Remembered => ", remembered",
    };
    format!(
        "{} paths, filter {}, {}.{}, {} old{source}",
        summary.paths,
        bytes(summary.filter_bits / 8),
        summary.epoch,
        summary.seq,
        duration(summary.age_s)
    )
}

impl AdvertisedReport {
    /// The output of `narmesh advertised`.
    pub fn text(&self) -> String {
        let total = self.paths.iter().map(|path| path.nar_size).fold(0, u64::saturating_add);
        let mut text =
            format!("advertised to the peers on the allowlist: {} paths, {}\n", self.paths.len(), bytes(total));
        let rows: Vec<_> = self
            .paths
            .iter()
            .map(|path| {
                let vouched = match path.signed_by.as_slice() {
                    [] => "not signed: it is content-addressed".to_owned(),
                    keys if path.attested => format!("attested by {}", keys.join(", ")),
                    keys => format!("signed by {}", keys.join(", ")),
                };
                vec![path.path.clone(), bytes(path.nar_size), vouched]
            })
            .collect();
        text.push_str(&table(&rows, 2));
        if !self.withheld.is_empty() {
            text += &format!("\nwithheld: {} paths\n", self.withheld.len());
            let rows: Vec<_> = self.withheld.iter().map(|path| vec![path.path.clone(), path.reason.clone()]).collect();
            text.push_str(&table(&rows, 2));
        }
        text += &format!("\nnever advertised: {} derivations and sources\n", self.never);
        text
    }
}

impl WhyReport {
    /// The output of `narmesh why PATH`, in colours.
    pub fn text(&self) -> String {
        let about = Mark::Heading.paint(escaped(&self.asked));
        let mut text = format!("{about} (hash part {})\n\n{}\n", self.hash_part, Mark::Heading.paint("now:"));
        let own = match (self.own_store.held, self.own_store.advertised, &self.own_store.reason) {
            (false, _, _) => "own store: does not hold it".to_owned(),
            (true, true, _) => "own store: holds it, and peers may see it".to_owned(),
            (true, false, reason) => {
                format!(
                    "own store: holds it, but peers may not see it: {}",
                    reason.as_deref().unwrap_or("no reason given")
                )
            }
        };
        text += &format!("  {own}\n");
        if let Some(not_given) = &self.own_store.not_given {
            text += &format!("  its copy is not given to Nix: {not_given}\n");
        }
        match &self.remembered {
            None => text.push_str("  remembered: nothing\n"),
            Some(remembered) => {
                let size = remembered.nar_size.map(|size| format!(", {}", bytes(size))).unwrap_or_default();
                let holders: Vec<_> = remembered.holders.iter().map(|name| escaped(name)).collect();
                text += &format!(
                    "  remembered: answered {} ago, held by {}{size}\n",
                    duration(remembered.age_s),
                    holders.join(", ")
                );
            }
        }
        let rows: Vec<_> = self
            .peers
            .iter()
            .chain(&self.upstreams)
            .map(|peer| {
                let verb = match (peer.would_ask, self.answer) {
                    (false, _) => Mark::Aside.paint("not asked:"),
                    (true, WouldAnswer::AskCandidates) => Mark::Good.paint("would be asked:"),
                    (true, WouldAnswer::OwnStore | WouldAnswer::Remembered | WouldAnswer::Absent) => {
                        "could be asked:".to_owned()
                    }
                };
                vec![escaped(&peer.name), verb, escaped(&peer.reason)]
            })
            .collect();
        text.push_str(&table(&rows, 2));
        let answer = match self.answer {
            WouldAnswer::OwnStore => Mark::Good.paint("200 from our own store"),
            WouldAnswer::Remembered => Mark::Good.paint("200 from memory"),
            WouldAnswer::AskCandidates => "the candidates are asked; 200 if one has it, else 404".to_owned(),
            WouldAnswer::Absent => Mark::Unusual.paint("404 at once: nobody is known to have it"),
        };
        text += &format!("  answer: {answer}\n");
        if self.decisions.is_empty() {
            text.push_str(match self.decisions_forgotten {
                false => "\nnot asked for since the daemon started\n",
                true => {
                    "\nnothing on record: not asked for since the daemon started, or forgotten because so many other paths \
                     were asked for since\n"
                }
            });
        } else {
            text += &format!("\n{}\n", Mark::Heading.paint("last decisions:"));
            for decision in &self.decisions {
                text += &format!("  {}\n", self.sentence(decision, now_ms()));
            }
        }
        text
    }
}

impl WhyReport {
    /// A sentence of the resolver, with peers by their names, and harmless to a terminal.
    pub(crate) fn named(&self, sentence: &str) -> String {
        let named = |text: String, peer: &CandidateView| text.replace(&peer.peer_id, &peer.name);
        escaped(&self.peers.iter().chain(&self.upstreams).fold(sentence.to_owned(), named))
    }

    /// One decision with its age, in one line.
    fn sentence(&self, decision: &LookedUp, now_unix_ms: u64) -> String {
        let age_s = now_unix_ms.saturating_sub(decision.at_unix_ms) / 1_000;
        format!("{} ago: {}", duration(age_s), self.named(&decision.sentence))
    }
}

impl PeerProbe {
    /// Whether nothing wrong was found. A peer without a configured address is good, since it was not dialled.
    pub fn is_good(&self) -> bool {
        match self.result {
            ProbeResult::AllowedBothWays | ProbeResult::NoAddress => true,
            ProbeResult::NotAllowedThere | ProbeResult::Unreachable { .. } => false,
        }
    }

    /// One line of `narmesh check-config --probe`.
    pub fn text(&self) -> String {
        let result = match &self.result {
            ProbeResult::AllowedBothWays => "reachable, allowed both ways".to_owned(),
            ProbeResult::NotAllowedThere => {
                "reachable, but this node is NOT in its allowlist: add our [[peer]] lines there (`narmesh id`)"
                    .to_owned()
            }
            ProbeResult::Unreachable { why } => format!("NOT reachable: {}", escaped(&plainly(why))),
            ProbeResult::NoAddress => {
                "no address configured, not probed; a running daemon learns it from other peers".to_owned()
            }
        };
        format!("{}: {result}", escaped(&self.name))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
