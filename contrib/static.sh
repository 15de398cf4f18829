#!/usr/bin/env bash
# Builds narmesh without any shared library: one file that runs on every Linux of this processor that has /dev/random and
# /dev/urandom. Prints where it is.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/static"
# Only the last step, linking, differs from an ordinary build.
cargo rustc --quiet --release -p narmesh --bin narmesh -- -C target-feature=+crt-static >&2
cp "$target/release/narmesh" "$target/static/narmesh"
# The next ordinary build makes its own again.
touch node/src/main.rs
echo "$target/static/narmesh"
