#!/usr/bin/env bash
# Builds narmesh as a Debian package with `cargo deb` and prints where the package is.
#
# It is built for the Debian that this runs on, and for later ones.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
# Beside Cargo.toml, because `cargo deb` finds assets by their path from there.
made=contrib/debian/made

cargo build --quiet --release -p narmesh >&2
rm -rf "$made"
mkdir -p "$made/completions" "$made/units"
"$target/release/narmesh" man "$made/man" >&2
gzip -9n "$made"/man/*.1
for shell in bash zsh fish; do
  "$target/release/narmesh" completions "$shell" >"$made/completions/$shell"
done
# Programs of a package are in /usr/bin.
for unit in service socket; do
  sed 's|/usr/local/bin/|/usr/bin/|' "contrib/systemd/narmesh.$unit" >"$made/units/narmesh.$unit"
done
# The version's time is that of the commit, so that the same commit makes the same package.
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)
date=$(git log -1 --format=%cD 2>/dev/null || date -R)
cat >"$made/changelog" <<END
narmesh ($version-1) unstable; urgency=medium

  * See /usr/share/doc/narmesh/changelog.gz.

 -- narmesh contributors <narmesh@localhost>  $date
END
gzip -9nc CHANGELOG.md >"$made/changelog.gz"
cargo deb --quiet --no-build -p narmesh "$@" | tail -1
