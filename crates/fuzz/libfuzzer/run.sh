#!/usr/bin/env bash
# One target under libFuzzer, guided by coverage, on stable Rust. Needs a C++ compiler.
#
#   crates/fuzz/libfuzzer/run.sh TARGET [SECONDS [FLAG OF LIBFUZZER...]]
#
# New inputs go to target/libfuzzer/found/TARGET, failing ones beside it as TARGET-crash-*. MERGE=1 adds to the committed
# corpus what covers something new, instead of running.
set -euo pipefail
cd "$(dirname "$0")"
target=${1:?a target of \`cargo run -p narmesh-fuzz -- --list\`} seconds=${2:-60}
shift $(($# < 2 ? $# : 2))

# The passes and counters that cargo-fuzz uses. Only its sanitizers need a nightly compiler, and there is no unsafe code here.
flags="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
flags+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
triple=$(rustc -vV | sed -n 's/^host: //p')
# With --target, build scripts and macros are left without counters.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(cd ../../.. && pwd)/target/libfuzzer}
RUSTFLAGS=$flags cargo build --quiet --release --target "$triple"
found=$CARGO_TARGET_DIR/found/$target corpus=../corpus/$target
mkdir -p "$found" "$corpus"
(cd ../../.. && cargo run --quiet --profile fuzz -p narmesh-fuzz -- "$target" --seeds-to "$found")
export NARMESH_FUZZ_TARGET=$target
binary=$CARGO_TARGET_DIR/$triple/release/narmesh-libfuzzer
if [ "${MERGE:-}" ]; then
  exec "$binary" -merge=1 -max_len=4096 "$corpus" "$found"
fi
exec "$binary" -max_total_time="$seconds" -artifact_prefix="$found-" -print_final_stats=1 "$@" "$found" "$corpus"
