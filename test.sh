#!/usr/bin/env bash
# All tests, in stages, with the minutes of each. On a fresh Debian 12 with a Rust toolchain it installs what it needs.
#
#   ./test.sh           everything that CI runs
#   ./test.sh --full    also what needs the network or long: the advisory database, every row of the benchmark
set -euo pipefail
cd "$(dirname "$0")"
full=false
case "${1:-}" in
  "") ;;
  --full) full=true ;;
  *) echo "test.sh: unknown argument '$1'; accepted: --full" >&2; exit 2 ;;
esac

# What is built together: one choice of packages and features for all builds of the debug profile. Another one would compile
# libp2p and half of the rest again.
everything=(--workspace --features narmesh-fuzz/config)

started=$SECONDS
summary=()
cpu_s() { # seconds of processor time of all commands that have ended
  awk -v hz="$(getconf CLK_TCK)" '{ print int(($16 + $17) / hz) }' /proc/$$/stat
}
stage() { # stage NAME COMMAND...: runs it, remembers how long it took, and how much processor time of that
  local name=$1 since=$SECONDS before
  before=$(cpu_s)
  shift
  printf '\n=== %s\n' "$name"
  "$@"
  local line
  line=$(awk -v s=$((SECONDS - since)) -v c=$(($(cpu_s) - before)) -v n="$name" \
    'BEGIN { printf "%6.1f min, processors %5.1f min  %s", s / 60, c / 60, n }')
  echo "$line"
  summary+=("$line")
}

# Debian packages that the tests use: the real Nix, a static shell for its sandbox, nginx as the figures' neighbour,
# a browser for the pages that must not reach the gateway.
packages() {
  local wanted=(nix-bin busybox-static sqlite3 nginx-light curl iproute2 faketime systemd python3 gcc libc6-dev chromium debootstrap nftables iptables procps zsh fish mandoc man-db python3-yaml) missing=()
  for package in "${wanted[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || { echo "all there: ${wanted[*]}"; return 0; }
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -q
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# Newer versions of Nix, each in a Debian root of its own: half a minute each, and kept. They need root, as entering them does.
nix_roots() {
  local roots=${CARGO_TARGET_DIR:-target}/nix-roots as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  mkdir -p "$roots"
  "${as_root[@]}" tests/nix-root.sh make trixie "$roots/trixie"
  "${as_root[@]}" tests/nix-root.sh make sid "$roots/sid"
}

# Prometheus's judge of metrics, taken out of its package: the package as such would start a server.
promtool() {
  local dir=${CARGO_TARGET_DIR:-target}/promtool
  [ -x "$dir/usr/bin/promtool" ] && return
  mkdir -p "$dir"
  (cd "$dir" && apt-get download -q prometheus && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb usr/bin/prometheus)
}

deny_version=0.20.2
deny() {
  command -v cargo-deny >/dev/null || cargo install --quiet --locked "cargo-deny@$deny_version"
  cargo deny --all-features check --hide-inclusion-graph bans licenses sources
}

documentation() {
  RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps
}

# The largest fleet takes one processor for minutes; all else runs beside it, the release build of the daemon as well. Its
# thousand tables are memory that is read at random, so large pages make it a tenth faster.
fleet=
start_fleet() {
  local target=${CARGO_TARGET_DIR:-target}
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 "$target/release/narmesh-sim" run fleet-1000 --seed 1 >"$target/fleet-1000.txt" 2>&1 &
  fleet=$!
  trap 'kill "$fleet" 2>/dev/null || true' EXIT
}
wait_for_fleet() {
  local table=${CARGO_TARGET_DIR:-target}/fleet-1000.txt ended=0
  wait "$fleet" || ended=$?
  trap - EXIT
  cat "$table"
  return "$ended"
}

simulation() {
  local target=${CARGO_TARGET_DIR:-target} sim mutants
  sim=$target/release/narmesh-sim mutants=$target/release/narmesh-sim-mutants
  "$sim" all --seed 1 | awk '{ print $1, $2 }' | tee "$target/all-1.txt"
  "$sim" all --seed 1 | awk '{ print $1, $2 }' | cmp - "$target/all-1.txt" || { echo "one seed, two stories" >&2; return 1; }
  "$sim" all --seed 2
  for scenario in lan-5 office-50 partition flapping mass-gc rolling-restart hostile-10-percent wan-3-sites; do
    "$sim" run "$scenario" --seed 1 | grep -E '^(violation|replay|digest|[0-9]+ machines)'
  done
  for seed in 1 2 3 4 5; do
    "$sim" quorum --small --seed "$seed" | grep -E '^(violation|replay|digest|[0-9]+ machines)'
  done
  "$sim" quorum --seed 1
  for seed in $(seq 1 40); do
    "$sim" rosters --small --seed "$seed" | grep -E '^(violation|replay)' && return 1
  done
  "$sim" rosters --seed 1
  "$sim" swarm --seeds 200
  "$mutants" mutants
  "$sim" docs --check
  wait_for_fleet
}

# A subject that is longer is cut where commits are listed.
subjects() {
  local long
  long=$(git log --format=%s -100 | awk 'length > 72')
  [ -z "$long" ] || { printf 'subjects over 72 characters:\n%s\n' "$long" >&2; return 1; }
}

# The book, by the mdBook of the newest Debian: its root is there for Nix already.
book() {
  local root=${CARGO_TARGET_DIR:-target}/nix-roots/sid as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo)
  "${as_root[@]}" tests/nix-root.sh run "$root" sh -c 'command -v mdbook >/dev/null ||
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends mdbook; } >/dev/null'
  MDBOOK="${as_root[*]} tests/nix-root.sh run $root mdbook" contrib/book.sh
}

stage "packages" packages
stage "other versions of Nix" nix_roots
stage "promtool" promtool
stage "subjects of commits" subjects
stage "format" cargo fmt --all --check
stage "clippy" cargo clippy --quiet "${everything[@]}" --all-targets -- -D warnings
stage "documentation" documentation
stage "book" book
stage "licences, duplicates, sources" deny
if $full; then stage "advisories" cargo deny check advisories; fi
# Package by package: built together, they would share features and be built again apart. The mutants' build leaves out checks
# on demand, so its binary has a name of its own, and the one that all else uses comes after it.
build_simulation() {
  local release=${CARGO_TARGET_DIR:-target}/release
  cargo build --quiet --release -p narmesh-simulation --features mutants
  cp "$release/narmesh-sim" "$release/narmesh-sim-mutants"
  cargo build --quiet --release -p narmesh-simulation
}
stage "release build of the simulation" build_simulation
start_fleet
stage "release build, beside the largest fleet" cargo build --quiet --release -p narmesh
stage "simulation" simulation
stage "demo" cargo run --quiet --release -p narmesh -- demo --once
if $full; then stage "benchmarks" cargo run --quiet --release -p narmesh-bench; fi
# All tests but the targets of narmesh-tests, which have stages of their own.
rooms() {
  local targets
  mapfile -t targets < <(cargo metadata --no-deps --format-version 1 | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    for target in package["targets"]:
        if target["kind"] == ["test"] and package["name"] != "narmesh-tests":
            print("--test=" + target["name"])')
  cargo test --no-fail-fast --quiet "${everything[@]}" --lib --bins "${targets[@]}"
  cargo test --no-fail-fast --quiet "${everything[@]}" --doc
}
# The transfers of the resolver: any sequence of sources, in virtual time.
export NARMESH_TRANSFER_CASES=100000
stage "tests of the rooms" rooms
# run_tests TARGETS... [-- ARGUMENTS...]: of narmesh-tests, as they are built already.
run_tests() {
  local targets=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    targets+=("--test=$1")
    shift
  done
  cargo test --no-fail-fast "${everything[@]}" "${targets[@]}" "$@"
}
# Most stories wait for something most of the time, so twice as many run as there are processors; those that count bytes on
# lines, or kill at a certain moment, have them to themselves.
stories() {
  run_tests stories hostile -- --test-threads 4
  run_tests networks faults
}
stage "stories with real Nix" stories
newer_nix() {
  # What a client does; the others ask nothing of Nix, or the same again.
  NARMESH_TEST_NIX=2.34 run_tests stories -- --test-threads 4 \
    substitute failover interrupted corrupt collected busy restart systemd nondeterministic one_key upstream:: \
    serving_others like_a_cache tls:: realisations derivations nixos
  NARMESH_TEST_NIX=2.34 run_tests faults
  NARMESH_TEST_NIX=2.34 run_tests networks -- first_path
  if $full; then
    NARMESH_TEST_NIX=2.34 run_tests stories -- upstream_failures
    NARMESH_TEST_NIX=2.34 run_tests networks -- fleet second_connection moved_in_nar
  fi
}
stage "stories and faults with Nix 2.34" newer_nix
# Most of these wait for slow lines, so there may be more of them than processors.
arrival() {
  local also=()
  if $full; then also=(--include-ignored); fi
  run_tests arrival -- --test-threads 8 "${also[@]}"
}
stage "what somebody holds arrives" arrival
# All floods at once, on the release daemon. One test at a time: they measure memory, and how long lookups take meanwhile.
floods() {
  run_tests hostile -- --nocapture --test-threads 1 --ignored together::
}
stage "all floods of one hostile peer and of three" floods
# Optimised: a million announcements have to be signed, and 10,000 requests a second made.
floods_in_full() {
  local hostile=(cargo test --no-fail-fast --release --package narmesh-tests --test hostile -- --nocapture --test-threads 1)
  "${hostile[@]}" protocols::a_flood protocols::three_hostile_peers
  "${hostile[@]}" --ignored --skip together::
}
if $full; then stage "floods, and five minutes set aside" floods_in_full; fi
each_pair() {
  NARMESH_TEST_FULL=1 run_tests networks -- --nocapture nat::each_pair
}
if $full; then stage "every pair of machines behind NATs" each_pair; fi
if $full; then stage "several holders, and a fleet of twenty" run_tests networks -- --nocapture --ignored; fi
# Packages and images, tried in roots of their own.
built_for_others() {
  command -v cargo-deb >/dev/null || cargo install --quiet --locked cargo-deb
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo --preserve-env)
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -q -y --no-install-recommends lintian skopeo umoci systemd-container
  "${as_root[@]}" contrib/check.sh
}
if $full; then stage "Debian package, static binary, image" built_for_others; fi
printf '\n=== attacks\n'
cat "${CARGO_TARGET_DIR:-target}/tmp/attacks.md"
printf '\n=== real networks\n'
for table in first-path sites crowd nat relay; do
  # Without root there are none; the stories said so.
  if [ -e "${CARGO_TARGET_DIR:-target}/tmp/$table.md" ]; then cat "${CARGO_TARGET_DIR:-target}/tmp/$table.md"; fi
done

printf '\n=== what arrives\n'
cat "${CARGO_TARGET_DIR:-target}/tmp/arrival.md"

printf '\n=== minutes\n'
printf '%s\n' "${summary[@]}"
awk -v s=$((SECONDS - started)) 'BEGIN { printf "%6.1f min  in all\n", s / 60 }'
