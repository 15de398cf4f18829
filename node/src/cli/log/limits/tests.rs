use super::*;

/// A log with a clock that the test sets.
struct Played {
    limits: Limits,
    now: Instant,
    lines: u64,
    bytes: usize,
}

impl Played {
    fn new() -> Self {
        let now = Instant::now();
        Self { limits: Limits::new(now), now, lines: 0, bytes: 0 }
    }

    /// Logs an event whose line has `bytes`. If it passes, returns how many were left out before it.
    fn log(&mut self, kind: u64, peer: Option<u64>, bytes: usize) -> Option<u64> {
        self.log_at(Level::WARN, kind, peer, bytes)
    }

    fn log_at(&mut self, level: Level, kind: u64, peer: Option<u64>, bytes: usize) -> Option<u64> {
        let origin = Origin { kind, peer, level };
        let described = || Description {
            text: format!("kind {kind}"),
            peer: peer.map_or_else(String::new, |peer| format!("peer {peer}")),
        };
        let description = (!self.limits.knows(origin)).then(described);
        match self.limits.admit(self.now, origin, description) {
            Passage::Log { left_out } => {
                self.limits.charge(peer, bytes);
                (self.lines, self.bytes) = (self.lines + 1, self.bytes + bytes);
                Some(left_out)
            }
            Passage::LeaveOut { .. } => None,
        }
    }

    /// Lets time pass and reports what is due, in lines of 300 bytes that are charged too.
    fn pass(&mut self, time: Duration) -> Vec<LeftOut> {
        self.now += time;
        let told = self.limits.take_left_out(self.now, false);
        for _ in &told {
            self.limits.charge(None, 300);
            self.bytes += 300;
        }
        told
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn ten_lines_of_a_peer_pass_at_once_and_six_a_minute() {
    let mut played = Played::new();
    let passed = (0..1_000).filter(|_| played.log(1, Some(1), 100).is_some()).count();
    assert_eq!(passed, 10);
    assert_eq!(played.log(1, Some(2), 100), Some(0), "another peer has its own");
    played.pass(10 * SECOND);
    assert_eq!(played.log(1, Some(1), 100), Some(990), "the next one says how many were left out");
    assert_eq!(played.log(1, Some(1), 100), None);
    let mut passed = 0;
    for _ in 0..60 {
        played.pass(SECOND);
        passed += (0..100).filter(|_| played.log(1, Some(1), 100).is_some()).count();
    }
    assert_eq!(passed, 6);
}

#[test]
fn sixty_lines_without_a_peer_pass_at_once() {
    let mut played = Played::new();
    let passed = (0..1_000).filter(|_| played.log(1, None, 100).is_some()).count();
    assert_eq!(passed, 60);
    let told = played.pass(MINUTE);
    let expected = LeftOut { count: 940, level: Level::WARN, like: "kind 1".to_owned(), peer: None };
    assert_eq!(told, [expected]);
}

#[test]
fn left_out_events_are_reported_after_a_minute_even_if_none_follow() {
    let mut played = Played::new();
    assert_eq!(played.limits.next_due(), None, "nobody is woken for nothing");
    let start = played.now;
    for _ in 0..15 {
        played.log_at(Level::INFO, 1, Some(1), 100);
    }
    for _ in 0..30 {
        played.log_at(Level::ERROR, 2, Some(1), 100);
    }
    assert_eq!(played.limits.next_due(), Some(start + MINUTE));
    assert_eq!(played.pass(59 * SECOND), []);
    let told = played.pass(SECOND);
    let expected =
        LeftOut { count: 25, level: Level::ERROR, like: "kind 2".to_owned(), peer: Some("peer 1".to_owned()) };
    assert_eq!(told, [expected], "one line for a peer, at the worst level, like most of them");
    assert_eq!(played.limits.next_due(), None);
    assert_eq!(played.log(2, Some(1), 100), Some(0), "it is told once");
}

/// The promised bound, for a peer that causes every kind of event all the time.
#[test]
fn one_hostile_peer_makes_no_more_than_a_megabyte_an_hour() {
    // The peer is named in twenty kinds of events, and causes three kinds in libraries that do not name it.
    let mut played = Played::new();
    for _ in 0..3_600 {
        for _ in 0..10 {
            for kind in 0..20 {
                played.log(kind, Some(1), 250);
            }
            for kind in 100..103 {
                played.log(kind, None, 250);
            }
        }
        played.pass(SECOND);
    }
    assert!(played.bytes <= 1_000_000, "{} bytes, {} lines", played.bytes, played.lines);
    assert!(played.bytes >= 300_000, "it is not silenced either: {} bytes", played.bytes);
}

#[test]
fn all_peers_together_are_bounded() {
    let mut played = Played::new();
    for _ in 0..600 {
        for peer in 0..100 {
            for kind in 0..10 {
                played.log(kind, Some(peer), 250);
            }
        }
        played.pass(SECOND);
    }
    // What may be logged at once and in ten minutes, and the lines that say what was left out.
    let bound = usize::try_from(ALL_BYTES.burst + 10 * ALL_BYTES.per_minute).unwrap() + 11 * (TOLD_MAX + 1) * 300;
    assert!(played.bytes <= bound, "{} bytes of {bound}", played.bytes);
}

#[test]
fn the_first_of_a_kind_in_a_minute_passes_whatever_else_is_logged() {
    let mut played = Played::new();
    for second in 0..600 {
        for peer in 0..100 {
            for kind in 0..10 {
                played.log(kind, Some(peer), 2_000);
            }
        }
        for kind in 100..120 {
            played.log(kind, None, 2_000);
        }
        // Once a minute comes another kind of event, one that an operator must see.
        if second % 60 == 30 {
            assert_eq!(played.log(999, None, 200), Some(0), "after {second} s");
            assert_eq!(played.log(1_000 + second, Some(5_000), 200), Some(0), "after {second} s");
        }
        played.now += SECOND;
    }
}

#[test]
fn a_quiet_log_loses_nothing() {
    let mut played = Played::new();
    // A start with 200 peers.
    for peer in 0..200 {
        for kind in 0..2 {
            assert_eq!(played.log(kind, Some(peer), 200), Some(0));
        }
    }
    for kind in 10..30 {
        assert_eq!(played.log(kind, None, 200), Some(0));
    }
    // Twenty peers build something every ten seconds.
    for _ in 0..5 {
        for peer in 0..20 {
            assert_eq!(played.log(2, Some(peer), 150), Some(0));
        }
        assert_eq!(played.pass(10 * SECOND), []);
    }
}

#[test]
fn memory_is_bounded_whatever_is_named_and_frees_itself() {
    let mut played = Played::new();
    for number in 1..20_000 {
        played.log(number, Some(number), 100);
        played.log(number % 7, Some(number), 100);
        played.log(number, None, 100);
    }
    let sizes = (played.limits.kinds.len(), played.limits.pairs.len(), played.limits.peers.len());
    assert!(sizes.0 <= KINDS_MAX + 1 && sizes.2 <= PEERS_MAX + 1, "{sizes:?}");
    // Above PAIRS_MAX there is one pair per kind, without a peer.
    assert!(sizes.1 <= PAIRS_MAX + KINDS_MAX + 1, "{sizes:?}");
    played.pass(MINUTE);
    let told = played.limits.take_left_out(played.now, true);
    assert!(told.len() <= TOLD_MAX + 1, "{}", told.len());
    assert_eq!(played.limits.untold, 0);
    played.pass(60 * MINUTE);
    assert_eq!(played.log(1 << 40, Some(1 << 40), 100), Some(0));
    let sizes = (played.limits.kinds.len(), played.limits.pairs.len(), played.limits.peers.len());
    assert_eq!(sizes, (1, 1, 1), "what is long gone is forgotten");
}
