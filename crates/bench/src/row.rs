//! One figure: what was measured, beside what, and whether the target is met.

use serde::Serialize;

/// A reason is a cell of a table.
const WHY_NOT_CHARS_MAX: usize = 240;

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// The ratio to what it was measured beside is at least this.
    RatioAtLeast(f64),
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// The value itself is at most this.
    AtMost(f64),
}

impl Target {
    fn sentence(self, unit: &str) -> String {
        match self {
            Self::RatioAtLeast(limit) => format!("ratio >= {limit}"),
            Self::RatioAtMost(limit) => format!("ratio <= {limit}"),
            Self::AtMost(limit) => format!("<= {limit} {unit}"),
        }
    }

    fn is_met(self, value: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Self::RatioAtLeast(limit) => ratio.map(|ratio| ratio >= limit),
            Self::RatioAtMost(limit) => ratio.map(|ratio| ratio <= limit),
            Self::AtMost(limit) => Some(value <= limit),
        }
    }
}

/// A row before it is measured.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// Segments by slashes; any leading ones select it.
    pub(crate) name: String,
    /// Of value, min and max.
    pub(crate) unit: &'static str,
    /// One sentence for `--list`.
    pub(crate) about: String,
    /// If there is one.
    pub(crate) target: Option<Target>,
    /// Why it is not measured unless it is named or `--full` is given.
    pub(crate) heavy: Option<&'static str>,
}

impl Planned {
    /// A row without target, cheap enough for every run.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, about: impl Into<String>) -> Self {
        Self { name: name.into(), unit, about: about.into(), target: None, heavy: None }
    }

    /// With a target.
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Only when asked for.
    pub(crate) fn heavy(mut self, why: &'static str) -> Self {
        self.heavy = Some(why);
        self
    }

    /// Whether `selector` names this row or a group that it is in.
    pub(crate) fn is_named_by(&self, selector: &str) -> bool {
        let selector = selector.trim_end_matches('/');
        self.name.strip_prefix(selector).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The target in words.
    pub(crate) fn target_sentence(&self) -> Option<String> {
        self.target.map(|target| target.sentence(self.unit))
    }

    /// The row with one sample a round, and what was measured beside it in the same rounds.
    pub(crate) fn measured(&self, samples: &[f64], beside: Option<&Beside>) -> Row {
        let value = median(samples);
        let ratio = beside.and_then(|beside| median(&beside.ratios(samples)?));
        let against = beside.and_then(|beside| {
            let other = median(&beside.samples)?;
            Some(format!("{}: {} {}", beside.what, digits(other), self.unit))
        });
        Row {
            name: self.name.clone(),
            value,
            unit: self.unit,
            min: samples.iter().copied().reduce(f64::min),
            max: samples.iter().copied().reduce(f64::max),
            against,
            ratio,
            target: self.target_sentence(),
            met: value.zip(self.target).and_then(|(value, target)| target.is_met(value, ratio)),
            why_not: None,
        }
    }

    /// The row that says why it has no value; of a long reason the beginning, on one line.
    pub(crate) fn unmeasured(&self, why_not: &str) -> Row {
        let words = why_not.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/");
        let why_not = words.chars().take(WHY_NOT_CHARS_MAX).collect();
        Row {
            name: self.name.clone(),
            value: None,
            unit: self.unit,
            min: None,
            max: None,
            against: None,
            ratio: None,
            target: self.target_sentence(),
            met: None,
            why_not: Some(why_not),
        }
    }
}

/// What stood beside a figure in the same rounds.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    /// Its name.
    pub(crate) what: &'static str,
    /// One sample a round, in the unit of the row.
    pub(crate) samples: Vec<f64>,
}

impl Beside {
    /// `what` with its samples.
    pub(crate) fn new(what: &'static str, samples: Vec<f64>) -> Self {
        Self { what, samples }
    }

    /// Round by round, so that a disturbance of a whole round counts on both sides; `None` without a sample.
    fn ratios(&self, samples: &[f64]) -> Option<Vec<f64>> {
        if self.samples.len() == samples.len() {
            return Some(samples.iter().zip(&self.samples).map(|(value, other)| value / other).collect());
        }
        Some(vec![median(samples)? / median(&self.samples)?])
    }
}

/// A figure as it is printed. Without a value, `why_not` says why.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Median over the rounds.
    pub(crate) value: Option<f64>,
    pub(crate) unit: &'static str,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    /// What it was measured beside in the same rounds, and that one's median.
    pub(crate) against: Option<String>,
    /// Median over the rounds of value / the other's value.
    pub(crate) ratio: Option<f64>,
    pub(crate) target: Option<String>,
    pub(crate) met: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why_not: Option<String>,
}

impl Row {
    /// One line of a Markdown table.
    pub(crate) fn to_table_line(&self) -> String {
        let number = |value: Option<f64>| value.map(digits).unwrap_or_default();
        let value = match &self.why_not {
            Some(why_not) => format!("not measured: {why_not}"),
            None => format!("{} {}", number(self.value), self.unit),
        };
        let range = match (self.min, self.max) {
            (Some(min), Some(max)) if min < max => format!("{} to {}", digits(min), digits(max)),
            (Some(_) | None, Some(_) | None) => String::new(),
        };
        let met = match self.met {
            Some(true) => ", met",
            Some(false) => ", **missed**",
            None => "",
        };
        let target = self.target.as_ref().map(|target| format!("{target}{met}")).unwrap_or_default();
        let against = self.against.as_deref().unwrap_or_default();
        let ratio = self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        format!("| {} | {value} | {range} | {against} | {ratio} | {target} |", self.name)
    }
}

/// The head of the table that [`Row::to_table_line`] continues.
pub(crate) const TABLE_HEAD: &str = "\
| row | value | min to max | measured beside | ratio | target |
|---|---|---|---|---|---|";

/// Three significant digits, and all digits before the point.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle sample; of an even count the mean of the two in the middle.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted.get(sorted.len() / 2 - 1).map(|lower| (lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_paired_by_round() {
        // Each round has its own ratio, 0.5, 0.6 and 1: their median is not the ratio of the medians, 60 to 90.
        let beside = Beside::new("nginx", vec![120.0, 50.0, 90.0]);
        let planned = Planned::new("a/b", "requests/s", "").target(Target::RatioAtLeast(0.6));
        let row = planned.measured(&[60.0, 30.0, 90.0], Some(&beside));
        assert_eq!(row.ratio, Some(0.6));
        assert_eq!(row.met, Some(true));
        assert_eq!((row.value, row.min, row.max), (Some(60.0), Some(30.0), Some(90.0)));
        assert_eq!(row.against.as_deref(), Some("nginx: 90.0 requests/s"));
    }

    #[test]
    fn targets_in_both_directions() {
        let met = |target: Target, value: f64, ratio: f64| target.is_met(value, Some(ratio));
        assert_eq!(met(Target::RatioAtLeast(0.6), 1.0, 0.59), Some(false));
        assert_eq!(met(Target::RatioAtMost(1.5), 1.0, 1.51), Some(false));
        assert_eq!(met(Target::RatioAtMost(1.5), 1.0, 1.5), Some(true));
        assert_eq!(met(Target::AtMost(40.0), 40.1, 0.0), Some(false));
        assert_eq!(Target::RatioAtLeast(0.6).is_met(1.0, None), None);
    }

    #[test]
    fn names_select_whole_segments() {
        let row = Planned::new("copy/200-paths/mesh", "s", "");
        assert!(
            row.is_named_by("copy") && row.is_named_by("copy/200-paths/") && row.is_named_by("copy/200-paths/mesh")
        );
        assert!(!row.is_named_by("copy/20") && !row.is_named_by("co") && !row.is_named_by("copy/200-paths/mesh/x"));
    }

    #[test]
    fn a_row_that_cannot_run_says_why() {
        let row = Planned::new("copy/file", "s", "").unmeasured("nginx is\n not |installed|");
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["why_not"], "nginx is not /installed/");
        assert!(json["value"].is_null());
        assert!(row.to_table_line().contains("not measured: nginx is not /installed/ |"));
    }
}
