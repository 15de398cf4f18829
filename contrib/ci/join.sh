#!/usr/bin/env bash
# Makes a runner of CI a member of a mesh for as long as it lives: joins, starts the daemon, and prints the value of NIX_CONFIG
# with which Nix asks it. Its user has to be one of Nix's trusted-users.
#
#   export NIX_CONFIG; NIX_CONFIG=$(NARMESH_TOKEN=narmesh-join-… contrib/ci/join.sh)
#
# The token is a secret of CI. On the machine with the mesh key:
#   narmesh mesh invite --ephemeral 1h --uses 1000 --for 90d [--role builder]
# --ephemeral removes runners that are gone; of a builder, the mesh also takes what it built.
#
#   NARMESH_TOKEN    the token (required)
#   NARMESH_DIR      where configuration, keys and log are; made if missing (default: narmesh in RUNNER_TEMP, or in /tmp)
#   NARMESH_PROGRAM  the program (default: narmesh)
set -euo pipefail
token=${NARMESH_TOKEN:?needs the token that narmesh mesh invite printed}
dir=${NARMESH_DIR:-${RUNNER_TEMP:-/tmp}/narmesh}
program=${NARMESH_PROGRAM:-narmesh}
narmesh() { "$program" --config "$dir/narmesh.toml" "$@"; }

mkdir -p "$dir"
# Its configuration names keys, and its log names machines.
chmod 0700 "$dir"
narmesh join --unless-member "$token" >&2
"$program" --config "$dir/narmesh.toml" run </dev/null >"$dir/log" 2>&1 &
daemon=$!
echo "$daemon" >"$dir/pid"
for _ in $(seq 300); do
  if narmesh status >/dev/null 2>&1; then
    # As NIX_CONFIG goes before nix.conf, what stands there is added to.
    gateway=$(narmesh id --json | sed -n 's/^ *"gateway": "\(.*\)",*$/\1/p')
    printf 'extra-substituters = %s\nextra-trusted-public-keys = %s\n' "$gateway" "$(narmesh id --gateway-key)"
    exit 0
  fi
  kill -0 "$daemon" 2>/dev/null || break
  sleep 0.1
done
echo "join.sh: the daemon does not answer; its log:" >&2
cat "$dir/log" >&2
exit 1
