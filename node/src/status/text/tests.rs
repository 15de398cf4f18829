//! The rendering, word for word.

use super::*;
use crate::serving::{ServeState, ServeSwitch};
use crate::status::given::GivenStatus;
use crate::status::{
    AdvertisedPath, BuilderAudience, BuilderStatus, ByteStatus, CandidateView, ConfigStatus, OwnStatus, OwnStoreView,
    RelayStatus, RememberedView, RequestStatus, RevokedStatus, StoreStatus, TlsStatus,
};
use crate::styles::without_colours;
use narmesh_mesh::PeerStats;

pub(crate) fn status() -> Status {
    Status {
        peer_id: "12D3KooWa".to_owned(),
        software: "narmesh/0.1.0".to_owned(),
        uptime_s: 3_700,
        pid: 42,
        config: ConfigStatus { file: "/etc/narmesh/narmesh.toml".into(), loaded_unix_s: 1_704_067_199, error: None },
        listen: vec!["/ip4/127.0.0.1/tcp/40001".to_owned()],
        gateway: "127.0.0.1:40002".to_owned(),
        listeners: Vec::new(),
        serve: ServeState { is_serving: true, switch: ServeSwitch::Auto, why: "advertise.serve = true".to_owned() },
        gateway_public_key: Some("narmesh-gateway-x:AA==".to_owned()),
        store: StoreStatus { dir: "/nix/store".to_owned(), valid_paths: 10, advertised_paths: 3, missing: None },
        mesh: None,
        own: OwnStatus { epoch: 7, seq: 1, paths: 3, filter_bits: 8_192 },
        peers: vec![
            PeerStatus {
                name: "b".to_owned(),
                stats: PeerStats {
                    connected: true,
                    allowed_there: Some(true),
                    asked: 2,
                    hits: 1,
                    false_hits: 1,
                    bytes_in: 5 << 20,
                    rate_bytes_s: Some(150 << 20),
                    ..PeerStats::default()
                },
                summary: Some(SummaryStatus {
                    epoch: 9,
                    seq: 0,
                    age_s: 200,
                    paths: 5,
                    filter_bits: 16_384,
                    source: SummarySource::Remembered,
                }),
                rtt_ms: Some(0.31),
                ..PeerStatus::default()
            },
            PeerStatus {
                name: "buildbox".to_owned(),
                stats: PeerStats {
                    why: Some("connection refused\u{1b}[2J".to_owned()),
                    allowed_there: Some(false),
                    misdeeds: 2,
                    last_misdeed: Some("bad signature".to_owned()),
                    ..PeerStats::default()
                },
                ..PeerStatus::default()
            },
        ],
        upstreams: Vec::new(),
        requests: RequestStatus {
            narinfo: 3,
            narinfo_hits: 1,
            narinfo_misses: 2,
            nar: 1,
            nar_ok: 1,
            ..RequestStatus::default()
        },
        bytes: ByteStatus { received: 5 << 20, sent: 0, gateway_out: 999 },
        quorum: None,
        builders: Vec::new(),
        relay: Some(RelayStatus { circuits: 2, bytes: 3 << 20 }),
        given: GivenStatus::default(),
        rss_bytes: 20 << 20,
    }
}

#[test]
fn each_listener_has_a_line_and_its_certificate_one_more() {
    let listener = |address: &str, tls| ListenerStatus {
        address: address.to_owned(),
        role: "serve".to_owned(),
        tls,
        ..ListenerStatus::default()
    };
    let tls = |is_valid| TlsStatus {
        from_unix_s: 1_700_000_000,
        until_unix_s: 1_704_067_199,
        is_valid,
        ..TlsStatus::default()
    };
    let refused = TlsStatus { clients_need_certificate: true, error: Some("it holds no key".to_owned()), ..tls(false) };
    let listeners = vec![
        listener("/run/narmesh/sock", None),
        ListenerStatus { needs_token: true, connections: 7, ..listener("0.0.0.0:7282", None) },
        listener("[::]:7282", Some(tls(true))),
        ListenerStatus { needs_token: true, ..listener("[::]:7283", Some(refused)) },
    ];
    let text = without_colours(&Status { listeners, ..status() }.text());
    let expected = "\
listener  /run/narmesh/sock: serve; 0 connections
listener  http://0.0.0.0:7282: serve, needs a token; 7 connections
listener  https://[::]:7282: serve; 0 connections
          certificate until 2023-12-31 23:59:59 UTC
listener  https://[::]:7283: serve, needs a token and a certificate; 0 connections
          CERTIFICATE NOT VALID: from 2023-11-14 22:13:20 UTC until 2023-12-31 23:59:59 UTC
          NEW CERTIFICATE REFUSED: it holds no key
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn conflicts_come_first_and_the_policy_is_shown() {
    let counts = |all: &[(&str, u64)]| all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let quorum = QuorumStatus {
        mode: "require".to_owned(),
        k: Some(2),
        of: 3,
        attestations: 7,
        bare_signatures: 2,
        paths: counts(&[("agreed", 1), ("conflict", 2)]),
        conflicts: vec!["aaa-x\u{1b}".to_owned()],
        refused: counts(&[("conflict", 4)]),
    };
    let text = without_colours(&Status { quorum: Some(quorum), ..status() }.text());
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "CONFLICT  aaa-x\\u{1b}", "{text}");
    assert_eq!(lines[1].trim(), "and 1 more paths on which builders disagree", "{text}");
    for line in [
        "quorum    require, 2 of 3 groups must agree; 7 attestations and 2 bare signatures",
        "          paths: 1 agreed, 2 conflict",
        "          not given to Nix: 4 conflict",
    ] {
        assert!(lines.contains(&line), "{line}: {text}");
    }
}

#[test]
fn each_builder_has_a_line_that_says_which_peers_may_be_told_of_it() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let builder = |name: &str, audience, told: &[&str], not_told: &[&str]| BuilderStatus {
        name: name.to_owned(),
        audience,
        told: names(told),
        not_told: names(not_told),
        ..BuilderStatus::default()
    };
    let revoked = RevokedStatus { from_unix_s: 1_704_067_199, why: "stolen".to_owned() };
    let builders = vec![
        BuilderStatus {
            group: Some("acme".to_owned()),
            attestations: 12,
            last_unix_s: Some(1_704_067_199),
            peer: Some("node".to_owned()),
            from_roster: true,
            ..builder("a", BuilderAudience::Summary, &["c"], &["d\u{1b}"])
        },
        builder("b", BuilderAudience::LastSummary, &["1", "2", "3", "4", "5", "6", "7"], &[]),
        builder("own", BuilderAudience::Own, &["c", "d"], &[]),
        builder("new", BuilderAudience::Unknown, &[], &["c", "d"]),
        BuilderStatus { revoked: Some(revoked), ..builder("file", BuilderAudience::NoPeer, &[], &["c", "d"]) },
    ];
    let text = without_colours(&Status { builders, ..status() }.text());
    let expected = "
builders: 5
  name  group  named by       attestations  last                     peer  told to                                                                     revoked
  a     acme   roster         12            2023-12-31 23:59:59 UTC  node  c; its node does not tell d\\u{1b}                                          -
  b     -      configuration  0             -                        -     1, 2, 3, 4, 5 and 2 more, from the last summary of its node, which is away  -
  own   -      configuration  0             -                        -     c, d: this machine is the builder                                           -
  new   -      configuration  0             -                        -     nobody: no summary has ever come from its node                              -
  file  -      configuration  0             -                        -     nobody: it has no peer, so its attestations come only as files              from 2023-12-31 23:59:59 UTC: stolen
";
    let squeezed =
        |text: &str| text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    let (said, wanted) = (squeezed(&text), squeezed(expected));
    assert_eq!(said.get(said.len() - wanted.len()..).unwrap(), wanted, "{text}");
}

#[test]
fn a_status_is_aligned_and_harmless_to_a_terminal() {
    let expected = "\
node      12D3KooWa
          narmesh/0.1.0, pid 42, up 1 h 1 min, 20 MiB resident
config    /etc/narmesh/narmesh.toml, read 2023-12-31 23:59:59 UTC
listens   /ip4/127.0.0.1/tcp/40001
gateway   http://127.0.0.1:40002
          Nix has to trust narmesh-gateway-x:AA==
store     /nix/store: 10 valid paths, 3 advertised
relay     circuits: 2, 3.0 MiB passed on
summary   epoch 7 seq 1: 3 paths, filter 1.0 KiB
narinfos  3 asked, 1 found, 2 not found; 0 false hits
NARs      1 asked, 1 delivered, 0 not found, 0 cut short
bytes     5.0 MiB from peers, 0 B to peers, 999 B to Nix

peers: 2, connected: 1
  name      state          summary                                             asked/found/false  in       out  rate       rtt
  b         connected      5 paths, filter 2.0 KiB, 9.0, 3 min old, remembered  2/1/1              5.0 MiB  0 B  150 MiB/s  0.3 ms
  buildbox  not connected  -                                                   0/0/0              0 B      0 B  -          -
  buildbox: connection refused\\u{1b}[2J
  buildbox: this node is not in its allowlist
  buildbox: misbehaved 2 times, last: bad signature
  buildbox: no address known: none configured, none learned yet
";
    let squeeze =
        |text: &str| text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    let text = without_colours(&status().text());
    assert_eq!(squeeze(&text), squeeze(expected), "{text}");
    let columns: Vec<_> = text.lines().filter(|line| line.contains("0 B  ") || line.contains("out ")).collect();
    let starts: Vec<_> = columns.iter().map(|line| line.find("out").or_else(|| line.rfind("0 B  ")).unwrap()).collect();
    assert!(columns.len() == 3 && starts.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn a_refused_reload_is_shown() {
    let mut status = status();
    status.config.error = Some("gateway.listen = \"0.0.0.0:1\" is refused".to_owned());
    status.peers.clear();
    let text = without_colours(&status.text());
    assert!(
        text.contains("LAST RELOAD REFUSED") && text.contains("gateway.listen") && text.contains("no peers"),
        "{text}"
    );
}

/// The JSON is an interface: names and nulls as documented.
#[test]
fn the_json_has_the_documented_names() {
    let json = serde_json::to_value(status()).unwrap();
    assert_eq!(json["bytes"]["in"], 5 << 20);
    assert_eq!(json["peers"][1]["summary"], serde_json::Value::Null);
    assert_eq!(json["peers"][0]["summary"]["filter_bits"], 16_384);
    assert_eq!(json["peers"][0]["summary"]["source"], "remembered");
    let mut names: Vec<_> = json["peers"][1].as_object().unwrap().keys().map(String::as_str).collect();
    let mut documented = [
        "name",
        "peer_id",
        "connected",
        "why",
        "way",
        "relay",
        "relay_name",
        "not_direct",
        "allowed_there",
        "store_dir_differs",
        "software",
        "addresses",
        "summary",
        "asked",
        "hits",
        "false_hits",
        "bytes_in",
        "bytes_out",
        "rate_bytes_s",
        "rtt_ms",
        "distance_ms",
        "why_kind",
        "set_aside_s",
        "misdeeds",
        "last_misdeed",
    ];
    documented.sort_unstable();
    names.sort_unstable();
    assert_eq!(names, documented);
    assert_eq!((&json["peers"][0]["hits"], &json["peers"][0]["software"]), (&1.into(), &serde_json::Value::Null));
    assert_eq!(json["config"]["error"], serde_json::Value::Null);
    assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status());
}

#[test]
fn why_says_what_would_happen_and_what_happened() {
    let mut report = WhyReport {
        asked: "/nix/store/x-hello".to_owned(),
        hash_part: "x".to_owned(),
        own_store: OwnStoreView {
            held: true,
            advertised: false,
            reason: Some("unsigned".to_owned()),
            not_given: Some("no quorum".to_owned()),
        },
        remembered: Some(RememberedView {
            age_s: 65,
            holders: vec!["b".to_owned()],
            nar_hash: None,
            nar_size: Some(2_048),
        }),
        upstreams: Vec::new(),
        peers: vec![CandidateView {
            name: "b".to_owned(),
            peer_id: "12D3".to_owned(),
            would_ask: true,
            reason: "its filter says maybe".to_owned(),
        }],
        answer: WouldAnswer::Remembered,
        decisions: vec![LookedUp { at_unix_ms: u64::MAX, sentence: "12D3 holds it".to_owned() }],
        decisions_forgotten: true,
    };
    let text = without_colours(&report.text());
    for expected in [
        "own store: holds it, but peers may not see it: unsigned",
        "its copy is not given to Nix: no quorum",
        "remembered: answered 1 min ago, held by b, 2.0 KiB",
        "b  could be asked:  its filter says maybe",
        "answer: 200 from memory",
        "0 s ago: b holds it",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    report.decisions.clear();
    assert!(report.text().ends_with("because so many other paths were asked for since\n"), "{}", report.text());
    report.decisions_forgotten = false;
    assert!(report.text().ends_with("\nnot asked for since the daemon started\n"), "{}", report.text());
}

#[test]
fn each_advertised_path_is_shown_with_the_keys_that_signed_it() {
    let path = |path: &str, signed_by: &[&str]| AdvertisedPath {
        path: path.to_owned(),
        nar_size: 1_024,
        signed_by: signed_by.iter().map(ToString::to_string).collect(),
        attested: false,
    };
    let attested = AdvertisedPath { attested: true, ..path("/c", &["three-1"]) };
    let report = AdvertisedReport {
        paths: vec![path("/a", &["one-1", "two-1"]), path("/b", &[]), attested],
        ..AdvertisedReport::default()
    };
    let text = without_colours(&report.text());
    for line in [
        "  /a  1.0 KiB  signed by one-1, two-1",
        "  /b  1.0 KiB  not signed: it is content-addressed",
        "  /c  1.0 KiB  attested by three-1",
    ] {
        assert!(text.lines().any(|given| given == line), "{line}\n{text}");
    }
}

#[test]
fn a_probe_distinguishes_reachable_from_allowed() {
    let probe = |result| PeerProbe { name: "b".to_owned(), peer_id: "12D3".to_owned(), result };
    let unreachable = probe(ProbeResult::Unreachable { why: "refused".to_owned() });
    assert_eq!((unreachable.text().as_str(), unreachable.is_good()), ("b: NOT reachable: refused", false));
    let json = serde_json::to_value(&unreachable).unwrap();
    assert_eq!(json, serde_json::json!({"name": "b", "peer_id": "12D3", "outcome": "unreachable", "why": "refused"}));
    let refused = probe(ProbeResult::NotAllowedThere);
    assert!(refused.text().contains("NOT in its allowlist") && !refused.is_good());
    assert!(probe(ProbeResult::AllowedBothWays).is_good());
    let no_address = probe(ProbeResult::NoAddress);
    assert!(no_address.text().starts_with("b: no address configured, not probed") && no_address.is_good());
}

#[test]
fn sizes_durations_times_and_hostile_text_are_rendered_for_people() {
    assert_eq!(
        ["0 B", "1023 B", "1.0 KiB", "128 MiB", "1.0 GiB"],
        [0, 1_023, 1_024, 128 << 20, 1 << 30].map(bytes).each_ref().map(String::as_str)
    );
    assert_eq!(
        ["59 s", "1 min", "1 h 0 min", "2 d 1 h"],
        [59, 60, 3_600, 176_400].map(duration).each_ref().map(String::as_str)
    );
    assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
    assert_eq!(escaped("a\u{202e}b\n"), "a\\u{202e}b\\u{a}");
}
