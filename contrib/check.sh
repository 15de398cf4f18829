#!/usr/bin/env bash
# Tries what contrib builds: the Debian package in Debian roots, the static binary in an empty root, the image by tools that
# read images. Needs root, debootstrap, lintian, skopeo, umoci and `cargo deb`.
set -euo pipefail
cd "$(dirname "$0")/.."
contrib/debian/check.sh "$(contrib/debian/build.sh)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
image=$(contrib/oci.sh)
binary=${CARGO_TARGET_DIR:-target}/static/narmesh
if readelf --dynamic "$binary" | grep -q NEEDED; then
  echo "$binary needs shared libraries" >&2
  exit 1
fi
mkdir "$work/empty"
cp "$binary" "$work/empty/narmesh"
chroot "$work/empty" /narmesh --version
# Without libc as a library, randomness comes from these devices, which every container has.
randomness() { # ROOT
  mkdir -p "$1/dev"
  mknod -m 0666 "$1/dev/random" c 1 8
  mknod -m 0666 "$1/dev/urandom" c 1 9
}
randomness "$work/empty"
chroot "$work/empty" /narmesh --config /etc/narmesh/narmesh.toml init --no-upstreams --name empty >/dev/null
chroot "$work/empty" /narmesh check-config --offline
echo "the static binary works in an empty root"

skopeo inspect "oci:$image:latest" >"$work/inspected"
grep -q '"Architecture"' "$work/inspected"
umoci unpack --image "$image:latest" "$work/bundle" >/dev/null
cmp "$binary" "$work/bundle/rootfs/usr/bin/narmesh"
randomness "$work/bundle/rootfs"
chroot "$work/bundle/rootfs" /usr/bin/narmesh init --no-upstreams --name container >/dev/null
# Alone with its loopback, as the gateway's port may be taken here.
# shellcheck disable=SC2016
unshare --net -- bash -euc '
  ip link set lo up
  chroot "$1" /usr/bin/narmesh run 2>"$2" & daemon=$!
  for _ in $(seq 100); do chroot "$1" /usr/bin/narmesh status >/dev/null 2>&1 && break; sleep 0.1; done
  chroot "$1" /usr/bin/narmesh status >/dev/null || { cat "$2" >&2; exit 1; }
  kill "$daemon"
  wait "$daemon"
' _ "$work/bundle/rootfs" "$work/log"
echo "the image is read by skopeo and umoci, and its daemon runs"
