//! One figure: what was measured, beside what, and whether the target is met.

use serde::Serialize;

/// The longest reason, characters: a reason is a cell of a table.
const WHY_NOT_CHARS_MAX: usize = 240;

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// The ratio to what it was measured beside must be at least this.
    RatioAtLeast(f64),
    /// The ratio must be at most this.
    RatioAtMost(f64),
    /// The value itself must be at most this.
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
    /// Segments with slashes between them; the row can be selected by any number of leading segments.
    pub(crate) name: String,
    /// The unit of the value, its minimum and its maximum.
    pub(crate) unit: &'static str,
    /// One sentence for `--list`.
    pub(crate) about: String,
    /// What the value or the ratio has to reach, if anything.
    pub(crate) target: Option<Target>,
    /// What it costs, if it is only measured when it is named or `--full` is given.
    pub(crate) heavy: Option<&'static str>,
}

impl Planned {
    /// A row that has no target and is cheap enough for every run.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, about: impl Into<String>) -> Self {
        Self { name: name.into(), unit, about: about.into(), target: None, heavy: None }
    }

    /// The same row with a target.
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// The same row, but only measured when it is asked for, because of what it costs.
    pub(crate) fn heavy(mut self, why: &'static str) -> Self {
        self.heavy = Some(why);
        self
    }

    /// Whether `selector` names this row or a group that it belongs to.
    pub(crate) fn is_named_by(&self, selector: &str) -> bool {
        let selector = selector.trim_end_matches('/');
        self.name.strip_prefix(selector).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The target in words.
    pub(crate) fn target_sentence(&self) -> Option<String> {
        self.target.map(|target| target.sentence(self.unit))
    }

    /// The measured row, from one sample a round and what was measured beside it in the same rounds.
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

    /// The row without a value that says why. Only the beginning of a long reason is kept, on one line.
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

/// What was measured beside a figure in the same rounds.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    /// What the table calls it.
    pub(crate) what: &'static str,
    /// One sample a round, in the unit of the row.
    pub(crate) samples: Vec<f64>,
}

impl Beside {
    /// Something measured beside a row, with its samples.
    pub(crate) fn new(what: &'static str, samples: Vec<f64>) -> Self {
        Self { what, samples }
    }

    /// The ratios of each round, so that a disturbance of a whole round affects both sides. Ratio of the medians if the
    /// counts differ; `None` without a sample.
    fn ratios(&self, samples: &[f64]) -> Option<Vec<f64>> {
        if self.samples.len() == samples.len() {
            return Some(samples.iter().zip(&self.samples).map(|(value, other)| value / other).collect());
        }
        Some(vec![median(samples)? / median(&self.samples)?])
    }
}

/// A figure as it is printed. When it has no value, `why_not` says why.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Median over the rounds.
    pub(crate) value: Option<f64>,
    pub(crate) unit: &'static str,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
    /// What was measured beside it in the same rounds, with the median of that.
    pub(crate) against: Option<String>,
    /// Median over the rounds of this value divided by the other one.
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

/// Formats three significant digits, and all digits before the point.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle sample, or the mean of the two in the middle when their count is even.
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
    fn median_of_no_odd_and_even_counts() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_paired_by_round() {
        // The rounds have the ratios 0.5, 0.6 and 1. Their median is not the ratio of the medians, 60 to 90.
        let beside = Beside::new("nginx", vec![120.0, 50.0, 90.0]);
        let planned = Planned::new("a/b", "requests/s", "").target(Target::RatioAtLeast(0.6));
        let row = planned.measured(&[60.0, 30.0, 90.0], Some(&beside));
        assert_eq!(row.ratio, Some(0.6));
        assert_eq!(row.met, Some(true));
        assert_eq!((row.value, row.min, row.max), (Some(60.0), Some(30.0), Some(90.0)));
        assert_eq!(row.against.as_deref(), Some("nginx: 90.0 requests/s"));
    }

    #[test]
    fn targets_bound_ratios_and_values() {
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
    fn unmeasured_row_says_why() {
        let row = Planned::new("copy/file", "s", "").unmeasured("nginx is\n not |installed|");
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["why_not"], "nginx is not /installed/");
        assert!(json["value"].is_null());
        assert!(row.to_table_line().contains("not measured: nginx is not /installed/ |"));
    }
}
