#!/usr/bin/env bash
# A Debian root that holds another version of Nix, and a way to run its programs as if they were this machine's.
#
#   nix-root.sh make SUITE DIR    makes DIR from SUITE (trixie: Nix 2.26, sid: Nix 2.34); a DIR that is finished is only reported
#   nix-root.sh run DIR CMD...    runs CMD in DIR, with the same process id, environment, current directory and network
#
# Environment:
#   SHARE    directories of this machine that the root sees at the same path, separated by colons (default: the current one);
#            /tmp, /dev, /proc and /sys are always shared
#   MIRROR   the Debian mirror of `make` (default: the one in this machine's apt sources)
#
# The root is entered by pivot_root, not chroot: the kernel refuses user namespaces to processes in a chroot, and Nix would then
# build without its sandbox and not say so. The mount namespace is private, so nothing has to be unmounted afterwards.
# Needs root; `make` needs debootstrap and a past `apt-get update` too.
set -euo pipefail
packages=nix-bin,busybox-static,sqlite3,mount,netbase
finished=.nix-root
die() { echo "nix-root.sh: $*" >&2; exit 125; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \?//;p}' "$0" >&2; exit 2; }

make() { # SUITE DIR
  local suite=$1 dir part mirror=${MIRROR:-}
  dir=$(realpath -m "$2")
  if [ -e "$dir/$finished" ]; then
    [ "$(cut -d' ' -f1 "$dir/$finished")" = "$suite" ] || die "$dir holds another suite: $(cat "$dir/$finished")"
    cat "$dir/$finished"
    return
  fi
  [ ! -e "$dir" ] || die "$dir exists and is not a finished root"
  command -v debootstrap >/dev/null || die "debootstrap is not installed"
  # apt knows its sources in both of their file formats. Only Debian's main archive will do.
  [ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
    'Label: Debian' | sed -n 1p)
  [ -n "$mirror" ] || die "apt's sources name no Debian mirror (run apt-get update, or set MIRROR)"
  part=$dir.part.$$
  mkdir -p "$part"
  # shellcheck disable=SC2064  # Expanded now; the directory holds no mounts of ours, they went with their namespace.
  trap "rm -rf --one-file-system '$part'" EXIT
  # Two steps: debootstrap does not resolve the virtual packages that nix-bin depends on, and apt does. apt's proxies and clock
  # checks are to be those of this machine.
  unshare --mount --propagation private -- bash -euc '
    debootstrap --variant=minbase "$1" "$2" "$3"
    apt-config dump | grep "^Acquire::" > "$2/etc/apt/apt.conf.d/90machine"
    mount -t proc proc "$2/proc"
    export DEBIAN_FRONTEND=noninteractive
    unset TMPDIR
    chroot "$2" apt-get update
    chroot "$2" apt-get install -y --no-install-recommends ${4//,/ }
    chroot "$2" apt-get clean
    version=$(chroot "$2" nix --version)
    echo "$1 $version" > "$2/$5"' _ "$suite" "$part" "$mirror" "$packages" "$finished" >"$dir.log" 2>&1 </dev/null ||
    { tail -5 "$dir.log" >&2; die "no $suite to be had from $mirror, see $dir.log"; }
  mv "$part" "$dir"
  trap - EXIT
  rm -f "$dir.log"
  cat "$dir/$finished"
}

inside() { # ROOT DIRECTORY SHARES CMD...: in the private mount namespace, still on the old root
  local new=$1 directory=$2 shares=$3 shared
  shift 3
  # pivot_root demands a mount point.
  mount --bind "$new" "$new"
  for shared in /dev /proc /sys /tmp; do
    mkdir -p "$new$shared"
    mount --rbind "$shared" "$new$shared"
  done
  local IFS=:
  for shared in $shares; do
    [ -n "$shared" ] || continue
    shared=$(realpath -e "$shared") || die "no such directory to share: $shared"
    case $shared/ in
      /tmp/*|/dev/*|/proc/*|/sys/*) continue ;;
      /|//|/bin/*|/etc/*|/lib*|/sbin/*|/usr/*|/var/lib/*) die "$shared would hide the root's own" ;;
    esac
    mkdir -p "$new$shared"
    mount --rbind "$shared" "$new$shared"
  done
  unset IFS
  cd "$new"
  # The old root now lies over the new one at the same place, and goes: from here on every program is the new root's.
  pivot_root . .
  umount -l . || exit 125
  cd "$directory" 2>/dev/null || cd /
  hash -r
  exec "$@"
}

run() { # DIR CMD...: `exec` all the way down, so that the process id that the caller knows is the command's own
  local dir
  dir=$(realpath -e "$1") || die "there is no root at $1"
  shift
  [ -e "$dir/$finished" ] || die "$dir is not a finished root (nix-root.sh make SUITE $dir)"
  exec unshare --mount --propagation private -- "$(readlink -f "$BASH")" "$(readlink -f "$0")" \
    --inside "$dir" "$(pwd -P)" "${SHARE-$PWD}" "$@"
}

case ${1:-} in
  make) [ $# = 3 ] || usage; make "$2" "$3" ;;
  run) [ $# -ge 3 ] || usage; shift; run "$@" ;;
  --inside) shift; inside "$@" ;;
  *) usage ;;
esac
