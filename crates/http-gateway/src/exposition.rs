//! The two text formats of `/metrics`: [OpenMetrics], which Prometheus asks for, and Prometheus's [plain one] for
//! everybody else.
//!
//! [OpenMetrics]: https://prometheus.io/docs/specs/om/open_metrics_spec/
//! [plain one]: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format

use hyper::header::{ACCEPT, HeaderMap, HeaderValue};

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exposition {
    OpenMetrics,
    Plain,
}

impl Exposition {
    /// The one for a client with these headers.
    pub(crate) fn choose(headers: &HeaderMap) -> Self {
        let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        if accepted.any(|value| value.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Plain
        }
    }

    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        })
    }

    /// Turns a text in OpenMetrics into this format.
    pub(crate) fn render(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Plain => plain(&open_metrics),
        }
    }
}

/// In OpenMetrics a family has its name without the ending of its samples (`_total`, `_info`); in the plain format it has
/// it with that. There are no units and no end mark. The samples are the same.
fn plain(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + open_metrics.len() / 16);
    let mut help = None;
    let mut push = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), about) => help = Some((name, about.unwrap_or_default())),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (ending, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    other => ("", other),
                };
                if let Some((_, about)) = help.take().filter(|(helped, _)| *helped == name) {
                    push(&format!("# HELP {name}{ending} {about}"));
                }
                push(&format!("# TYPE {name}{ending} {kind}"));
            }
            (Some("#"), ..) => {}
            _ => push(line),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_METRICS: &str = "\
# HELP n_seen Things seen.
# TYPE n_seen counter
n_seen_total{kind=\"a\"} 1
# HELP n_wait_seconds Time of a wait, in seconds.
# TYPE n_wait_seconds histogram
# UNIT n_wait_seconds seconds
n_wait_seconds_bucket{le=\"+Inf\"} 2
n_wait_seconds_sum 0.5
n_wait_seconds_count 2
# HELP n_build What this is.
# TYPE n_build info
n_build_info{version=\"1\"} 1
# TYPE n_open gauge
n_open 3
# EOF
";

    const PLAIN: &str = "\
# HELP n_seen_total Things seen.
# TYPE n_seen_total counter
n_seen_total{kind=\"a\"} 1
# HELP n_wait_seconds Time of a wait, in seconds.
# TYPE n_wait_seconds histogram
n_wait_seconds_bucket{le=\"+Inf\"} 2
n_wait_seconds_sum 0.5
n_wait_seconds_count 2
# HELP n_build_info What this is.
# TYPE n_build_info gauge
n_build_info{version=\"1\"} 1
# TYPE n_open gauge
n_open 3
";

    #[test]
    fn families_of_the_plain_format_have_the_names_of_their_samples() {
        assert_eq!(Exposition::Plain.render(OPEN_METRICS.to_owned()), PLAIN);
        assert_eq!(Exposition::OpenMetrics.render(OPEN_METRICS.to_owned()), OPEN_METRICS);
    }

    #[test]
    fn open_metrics_are_for_who_asks_for_them() {
        let chosen = |accept: Option<&'static str>| {
            let accept = accept.map(|accept| (ACCEPT, HeaderValue::from_static(accept)));
            Exposition::choose(&accept.into_iter().collect())
        };
        // What Prometheus 2.42 sends.
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(chosen(Some(prometheus)), Exposition::OpenMetrics);
        for plain in [None, Some("*/*"), Some("text/plain;version=0.0.4;q=1,*/*;q=0.1")] {
            assert_eq!(chosen(plain), Exposition::Plain, "{plain:?}");
        }
    }
}
