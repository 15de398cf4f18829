//! How long it takes until a path that one machine built can be substituted on another.

use crate::daemon::Node;
use crate::nix::Nix;
use crate::row::Planned;
use crate::subject::{Bench, Report, Subject};
use std::time::{Duration, Instant};

/// Builds in one round.
const BUILDS_PER_ROUND: usize = 3;
const MEETING_MAX: Duration = Duration::from_secs(30);

/// Two daemons that know each other, and real builds on the first.
#[derive(Debug)]
pub(super) struct Spread;

impl Subject for Spread {
    fn planned(&self) -> Vec<Planned> {
        let about = "from the end of a real build on one machine to the first narinfo of its output on another";
        vec![Planned::new("mesh/build-to-substitutable", "ms", about)]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        Nix::need_builds()?;
        let dir = bench.scratch.subdir("spread-")?;
        let nix = Nix::new(&dir.join("client"))?;
        let (built_in, wanted_in) = (dir.join("builder-store"), dir.join("user-store"));
        nix.make_store(&built_in)?;
        nix.make_store(&wanted_in)?;
        let binary = bench.binaries.narmesh()?;
        let mut builder = Node::init(binary, &dir.join("builder"), "builder", &built_in)?;
        let mut user = Node::init(binary, &dir.join("user"), "user", &wanted_in)?;
        Node::introduce(&mut builder, &mut user)?;
        let _builder = builder.start()?;
        let mut daemon = user.start()?;
        daemon.wait_for_summaries(&["builder"], 0, MEETING_MAX)?;
        let mut samples = Vec::new();
        for number in 0..bench.rounds * BUILDS_PER_ROUND {
            let derivation = nix.instantiate_fresh(&built_in, &number.to_string())?;
            let output = nix.output_of(&built_in, &derivation)?;
            let hash_part = output.trim_start_matches("/nix/store/").get(..32).unwrap_or_default().to_owned();
            nix.build(&built_in, &derivation)?;
            samples.push(daemon.time_to_answer_ms(Instant::now(), &format!("/{hash_part}.narinfo"))?);
        }
        report.figure("mesh/build-to-substitutable", &samples, None);
        Ok(())
    }
}
