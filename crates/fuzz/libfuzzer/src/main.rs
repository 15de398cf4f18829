//! Runs the target named by `NARMESH_FUZZ_TARGET` under libFuzzer. `run.sh` builds it with coverage on stable Rust.

#![no_main]

use libfuzzer_sys::fuzz_target;
use narmesh_fuzz::{Target, targets};
use std::sync::LazyLock;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("NARMESH_FUZZ_TARGET").expect("NARMESH_FUZZ_TARGET names a target");
    targets::by_name(&name).unwrap_or_else(|| panic!("no target {name:?}"))
});

fuzz_target!(|input: &[u8]| {
    (TARGET.run)(input);
});
