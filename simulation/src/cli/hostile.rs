//! What each kind of liar achieves.

use narmesh_simulation::{Report, Row, Scenario, ScenarioError, Subject, TRICKS, Trick, run};
use std::process::ExitCode;

/// The scenario of honest machines beside one liar in ten.
const BASE: &str = "hostile-10-percent";

pub(crate) fn run_hostile() -> ExitCode {
    super::show(measure_table(false))
}

/// One row for each trick, which four liars of forty machines play; before them the same fleet without liars. With
/// `form_only` nothing is run, and the figures are left out.
pub(crate) fn measure_table(form_only: bool) -> Result<(String, bool), ScenarioError> {
    let mut text = String::from(
        "| what one in ten does | a new path is known, p99 | bytes/s of a machine | of 1,000 absent paths asked in vain \
         | blamed for |\n|---|---|---|---|---|\n",
    );
    let mut content = true;
    for trick in std::iter::once(None).chain(TRICKS.map(Some)) {
        let name = trick.map_or("nothing".to_owned(), name_of);
        if form_only {
            text += &format!("| {name} |||||\n");
            continue;
        }
        let report = attempt(trick)?;
        content &= report.is_content();
        for violation in &report.violations {
            eprintln!("{trick:?}: violation: {violation}");
        }
        let row = |name: &str| report.rows.iter().find(|row: &&Row| row.name == name).and_then(|row| row.value);
        let wasted =
            row("wasted probes for 1,000 absent paths").unwrap_or(0.0) + row("of them at liars").unwrap_or(0.0);
        let blamed: Vec<_> = report.blamed.keys().map(|label| label.replace('_', " ")).collect();
        text += &format!(
            "| {} | {:.0} ms | {:.0} | {wasted:.1} | {} |\n",
            name,
            row("a new path is known, p99").unwrap_or(f64::NAN),
            row("all in all, bytes of one machine").unwrap_or(f64::NAN),
            if blamed.is_empty() { "nothing".to_owned() } else { blamed.join(", ") },
        );
    }
    Ok((text, content))
}

fn name_of(trick: Trick) -> String {
    let name = serde_json::to_string(&trick).unwrap_or_default();
    name.trim_matches('"').replace('-', " ")
}

fn attempt(trick: Option<Trick>) -> Result<Report, ScenarioError> {
    let mut scenario = Scenario::load(BASE)?;
    scenario.run_s = 600;
    scenario.hostile.strangers = 0;
    scenario.hostile.tricks = trick.into_iter().collect();
    if trick.is_none() {
        scenario.hostile.permille = 0;
    }
    Ok(run(scenario, 1, Subject::None))
}
