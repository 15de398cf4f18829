//! The long run: `narmesh-fuzz TARGET --seconds N`.

use anyhow::{Context as _, bail};
use clap::Parser;
use narmesh_fuzz::{Engine, Failure, Target, targets};
use std::io::Write as _;
use std::time::{Duration, Instant};
use std::{fs, io, path::PathBuf};

/// Runs one decoder, or all in turn, on inputs made of valid ones, until the time is over or an invariant is broken.
#[derive(Debug, Parser)]
struct Arguments {
    /// A target of `--list`, or `all`.
    #[arg(required_unless_present = "list")]
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Every choice follows from it; random, and printed, when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs these files through the target and nothing else.
    #[arg(long)]
    file: Vec<PathBuf>,
    /// Writes the seeds into this directory, one file each, and runs nothing.
    #[arg(long)]
    seeds_to: Option<PathBuf>,
    /// Names the targets.
    #[arg(long)]
    list: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut out = io::stdout().lock();
    let all = targets::all();
    if arguments.list {
        all.iter().try_for_each(|target| writeln!(out, "{}", target.name))?;
        return Ok(());
    }
    let name = arguments.target.context("a target, or all")?;
    let chosen: Vec<Target> = all.into_iter().filter(|target| name == "all" || target.name == name).collect();
    if chosen.is_empty() {
        bail!("no target {name:?}; --list names them");
    }
    if let ([target], false) = (chosen.as_slice(), arguments.file.is_empty()) {
        for file in &arguments.file {
            let outcome = (target.run)(&fs::read(file).with_context(|| file.display().to_string())?);
            writeln!(out, "{}: {outcome:?}", file.display())?;
        }
        return Ok(());
    }
    if let Some(directory) = &arguments.seeds_to {
        fs::create_dir_all(directory)?;
        for target in &chosen {
            for (number, seed) in (target.seeds)().iter().enumerate() {
                fs::write(directory.join(format!("{}-seed-{number}", target.name)), seed)?;
            }
        }
        return Ok(());
    }
    // The engine reports the panic together with its input. The hook would print the panic alone.
    std::panic::set_hook(Box::new(|_| {}));
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let mut failures = 0;
    for target in chosen {
        failures += usize::from(!run(&mut out, target, seed, Duration::from_secs(arguments.seconds))?);
    }
    if failures > 0 {
        bail!("{failures} targets failed");
    }
    Ok(())
}

/// Runs a target. Returns whether all its invariants held.
fn run(out: &mut impl io::Write, target: Target, seed: u64, time: Duration) -> anyhow::Result<bool> {
    let mut engine = Engine::new(target, seed);
    let started = Instant::now();
    let mut outcome = engine.replay()?;
    while outcome.is_ok() && started.elapsed() < time {
        // The clock is read once for many inputs.
        outcome = (0..256).try_for_each(|_| engine.step());
    }
    let seconds = started.elapsed().as_secs_f64();
    write!(out, "{:16} seed {seed}: {} inputs in {seconds:.0} s, ", target.name, engine.inputs_run)?;
    write!(out, "{} outcomes told apart: ", engine.outcomes())?;
    match outcome {
        Ok(()) => writeln!(out, "all held")?,
        Err(Failure { input, message }) => {
            let file = std::env::temp_dir().join(format!("narmesh-fuzz-{}-{seed}", target.name));
            fs::write(&file, &input)?;
            writeln!(
                out,
                "FAILED\n  {message}\n  {} bytes in {}: {}",
                input.len(),
                file.display(),
                input.escape_ascii()
            )?;
            return Ok(false);
        }
    }
    out.flush()?;
    Ok(true)
}
