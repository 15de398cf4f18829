use super::*;
use std::io::Write;

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log of `events`, with the report of what was left out at its end.
fn logged(events: impl FnOnce()) -> String {
    let (out, limiter) = (Shared::default(), Arc::new(Limiter::new()));
    let (writer, lines) = (out.clone(), Lines { limiter: Arc::clone(&limiter), format: Format::default() });
    let log = tracing_subscriber::fmt().with_max_level(Level::DEBUG).with_ansi(false);
    let subscriber = log.with_writer(move || writer.clone()).event_format(lines).finish();
    tracing::subscriber::with_default(subscriber, || {
        events();
        drop(Log(limiter));
    });
    let bytes = out.0.lock().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn an_event_is_one_line_whatever_is_in_it() {
    const FORGED: &str = "x\r\n2026-01-01T00:00:00Z ERROR narmesh: forged\u{85}\u{2028}\u{202e}\u{1b}[2Jy";
    let log = logged(|| {
        tracing::warn!(name = FORGED, "a field");
        tracing::warn!(name = %FORGED, "a field shown");
        tracing::warn!("{FORGED}");
        tracing::info!("ünharmed");
        tracing::debug!(name = %FORGED, "for those who look");
    });
    assert_eq!(log.lines().count(), 5, "{log:?}");
    assert!(log.contains("ünharmed\n"), "{log:?}");
    assert!(!log.contains(|letter| letter != '\n' && is_harmful(letter)), "{log:?}");
    assert_eq!(log.matches("forged").count(), 4, "nothing is lost: {log:?}");
}

#[test]
fn a_long_event_is_cut() {
    let long = "\u{1b}".repeat(LINE_BYTES_MAX);
    let log = logged(|| {
        tracing::warn!(sent = %"é".repeat(LINE_BYTES_MAX), "a field");
        tracing::warn!("{long}");
        tracing::warn!("whole");
        tracing::debug!(sent = "a".repeat(3 * LINE_BYTES_MAX), "for those who look");
    });
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 4);
    for cut in &lines[..2] {
        assert!(cut.len() > LINE_BYTES_MAX - 20 && cut.len() <= LINE_BYTES_MAX + " (cut)".len(), "{}", cut.len());
        assert!(cut.ends_with(" (cut)"), "{cut}");
    }
    assert!(lines[2].ends_with("whole"), "{}", lines[2]);
    assert!(lines[3].len() > 3 * LINE_BYTES_MAX, "DEBUG is not cut");
}

#[test]
fn repeated_event_of_a_peer_is_logged_ten_times_and_then_counted() {
    let log = logged(|| {
        for number in 0..1_000 {
            tracing::warn!(peer = "noisy", number, "peer misbehaved");
        }
        tracing::warn!(peer = "other", "peer misbehaved");
        tracing::error!(peer = "noisy", "of another kind");
    });
    // All those lines come from one place in the program, so they are of one kind.
    assert_eq!(log.matches("number=").count(), 10, "{log}");
    assert!(log.contains(r#"peer="other""#) && log.contains("of another kind"), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains("990 more lines were left out") && last.contains(r#"peer="\"noisy\"""#), "{last}");
    assert!(last.contains("WARN") && last.contains("peer misbehaved"), "{last}");
}

#[test]
fn failures_of_one_upstream_hide_none_of_another() {
    let log = logged(|| {
        (0..1_000).for_each(|_| tracing::warn!(upstream = "flapping", "upstream is down for a while"));
        tracing::warn!(upstream = "other", "upstream is down for a while");
    });
    assert_eq!(log.matches(r#"upstream="flapping""#).count(), 10, "{log}");
    assert!(log.contains(r#"upstream="other""#), "{log}");
}

#[test]
fn misdeeds_logged_at_one_place_are_limited_separately() {
    let log = logged(|| {
        for misdeed in ["first", "second"] {
            for _ in 0..100 {
                tracing::warn!(peer = "noisy", misdeed, "peer misbehaved");
            }
        }
    });
    assert_eq!(log.matches(r#"misdeed="first""#).count(), 10, "{log}");
    assert_eq!(log.matches(r#"misdeed="second""#).count(), 10, "{log}");
}

#[test]
fn event_that_is_left_out_is_not_formatted() {
    struct Costly<'a>(&'a std::cell::Cell<usize>);
    impl fmt::Display for Costly<'_> {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.set(self.0.get() + 1);
            formatter.write_str("costly")
        }
    }
    let formatted = std::cell::Cell::new(0);
    let log = logged(|| {
        for _ in 0..1_000 {
            tracing::warn!(cost = %Costly(&formatted), "{}", Costly(&formatted));
        }
    });
    let lines = log.matches("cost=").count();
    assert!(lines < 100, "{lines}");
    // The first event is formatted once more, to remember its text.
    assert_eq!(formatted.get(), 2 * lines + 1);
}

#[test]
fn records_of_the_log_crate_are_distinguished_by_target_and_line() {
    // As tracing-log makes them: with one callsite for all.
    let record = |target: &str, line: u64, text: &str| {
        tracing::error!("log.target" = target, "log.line" = line, "{text}");
    };
    let log = logged(|| {
        for connection in 0..1_000 {
            record("yamux", 754, &format!("{connection}: the window overflows"));
        }
        record("yamux", 620, "another line");
        record("other", 754, "another library");
    });
    assert!(log.matches("overflows").count() < 100, "{log}");
    assert!(log.contains("another line") && log.contains("another library"), "{log}");
}

#[test]
fn debug_is_logged_whole() {
    let log = logged(|| (0..1_000).for_each(|number| tracing::debug!(peer = "noisy", number, "decided")));
    assert_eq!(log.lines().count(), 1_000);
}

#[test]
fn lines_about_requests_have_limits_of_their_own() {
    let log = logged(|| {
        for path in 0..100 {
            tracing::info!(target: ACCESS_TARGET, path, "request");
        }
    });
    assert_eq!(log.matches("narmesh::access: request path=").count(), 100, "{log}");
}
