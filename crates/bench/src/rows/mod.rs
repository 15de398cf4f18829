//! The rows, in files by subject. To add a subject, add a file here and an entry in [`all`].

mod build;
mod copy;
mod daemon;
mod line;
mod nar_large;
mod nar_small;
mod narinfo;
mod pair;
mod quorum;
mod real;
mod required;
mod simulated;
mod spread;
mod table;
mod told;
mod transport;
mod upstream;

use crate::subject::Subject;
use std::time::Duration;

/// Every subject, in the order of the table.
pub(crate) fn all() -> Vec<Box<dyn Subject>> {
    let simulated = simulated::ALL.into_iter().map(|subject| Box::new(subject) as Box<dyn Subject>);
    let mut all: Vec<Box<dyn Subject>> = vec![
        Box::new(narinfo::Narinfo { peers: 1 }),
        Box::new(narinfo::Narinfo { peers: 100 }),
        Box::new(narinfo::Narinfo { peers: 1_000 }),
        Box::new(transport::Transport),
        Box::new(nar_large::LargeNar { megabytes: 256 }),
        Box::new(nar_large::LargeNar { megabytes: 1_000 }),
        Box::new(nar_small::SmallNars),
        Box::new(copy::Copy { paths: 200 }),
        Box::new(copy::Copy { paths: 2_000 }),
        Box::new(upstream::small::Small),
        Box::new(upstream::large::Large { megabytes: 256 }),
        Box::new(upstream::large::Large { megabytes: 1_000 }),
        Box::new(upstream::copies::Xz),
        Box::new(upstream::copies::Copies { paths: 200 }),
        Box::new(upstream::copies::Copies { paths: 2_000 }),
        Box::new(daemon::Memory { peers: 1 }),
        Box::new(daemon::Memory { peers: 50 }),
        Box::new(daemon::Start),
        Box::new(daemon::Restart),
        Box::new(line::Line { megabits_per_s: 1, heavy: "a quarter of an hour and root" }),
        Box::new(line::Line { megabits_per_s: 10, heavy: "two minutes and root" }),
        Box::new(line::Line { megabits_per_s: 100, heavy: "a minute and root" }),
        Box::new(line::Lookups),
        Box::new(line::FromAfar),
        Box::new(quorum::Quorum),
        Box::new(required::Required),
        Box::new(told::Told),
        Box::new(spread::Spread),
        Box::new(table::Table),
        Box::new(real::Heal),
        Box::new(real::Crowd { daemons: 50, paths: 500, window: Duration::from_secs(120), heavy: "five minutes" }),
        Box::new(real::Crowd {
            daemons: 100,
            paths: 20_000,
            window: Duration::from_secs(600),
            heavy: "a quarter of an hour and 6 GB of memory",
        }),
        Box::new(build::ColdBuild),
        Box::new(build::BinarySize),
    ];
    all.extend(simulated);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn row_names_are_unique_and_not_groups() {
        let names: Vec<_> = all().iter().flat_map(|subject| subject.planned()).map(|planned| planned.name).collect();
        let unique: BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        for name in &names {
            assert!(!names.iter().any(|other| other.starts_with(&format!("{name}/"))), "{name} is also a group");
        }
    }
}
