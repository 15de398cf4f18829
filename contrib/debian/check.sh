#!/usr/bin/env bash
# Tries a package: lintian, then in fresh Debian roots, in which systemd runs, installed, used, upgraded, removed and purged.
#
#   contrib/debian/check.sh PACKAGE.deb [SUITE...]     default: bookworm and trixie
#
# Needs root, debootstrap, lintian and systemd-nspawn (package systemd-container); the roots are kept in target/debian-roots. Each try has a root of its own above them.
set -euo pipefail
cd "$(dirname "$0")/../.."
package=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- bookworm trixie
roots=$(realpath -m "${CARGO_TARGET_DIR:-target}/debian-roots")
mkdir -p "$roots"

lintian --fail-on error,warning "$package"

make_root() { # SUITE
  [ -d "$roots/$1" ] && return
  local mirror
  # shellcheck disable=SC2016  # apt expands it.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sed -n 1p)
  debootstrap --variant=minbase --include=systemd,systemd-sysv,adduser "$1" "$roots/$1.part" "${mirror:?no Debian mirror}" \
    >"$roots/$1.log" 2>&1 || { tail -5 "$roots/$1.log" >&2; return 1; }
  mv "$roots/$1.part" "$roots/$1"
}

# What is done within the root, in which systemd runs. Words after `must` are a command that has to succeed.
# shellcheck disable=SC2016  # Expanded in the root.
steps='
  must() { "$@" || { echo "failed: $*"; journalctl -u narmesh -n 20 --no-pager; exit 1; }; }
  answers() { for _ in $(seq 100); do narmesh status >/tmp/status 2>&1 && return; sleep 0.1; done; cat /tmp/status; return 1; }
  must dpkg -i /package.deb
  must narmesh --version
  must test "$(stat -c %U:%a /etc/narmesh/node.key)" = narmesh:600
  must test "$(stat -c %G:%a /etc/narmesh/narmesh.toml)" = narmesh:640
  must test "$(stat -c %U:%a /var/lib/narmesh)" = narmesh:750
  must test -s /usr/share/bash-completion/completions/narmesh
  must systemctl is-enabled narmesh.service narmesh.socket
  must systemctl is-active narmesh.service narmesh.socket
  must answers
  must test "$(systemctl show -P User narmesh.service)" = narmesh
  pid=$(systemctl show -P MainPID narmesh.service)
  # The socket is that of systemd, and a reload keeps the process.
  must grep -q "127.0.0.1:7281" /tmp/status
  must systemctl reload narmesh.service
  must narmesh reload
  must test "$pid" = "$(systemctl show -P MainPID narmesh.service)"
  before=$(sha256sum /etc/narmesh/node.key; narmesh id)
  echo "# edited" >>/etc/narmesh/narmesh.toml

  must dpkg -i /newer.deb
  must test "$(dpkg-query -W -f "\${Version}" narmesh)" = "$(dpkg-deb -f /newer.deb Version)"
  must systemctl is-active narmesh.service narmesh.socket
  must answers
  must test "$pid" != "$(systemctl show -P MainPID narmesh.service)"
  must grep -q "^# edited" /etc/narmesh/narmesh.toml
  must test "$before" = "$(sha256sum /etc/narmesh/node.key; narmesh id)"

  # Keys by LoadCredential, with whatever mode this systemd gives them.
  mkdir -p /etc/systemd/system/narmesh.service.d
  printf "[Service]\nLoadCredential=node.key:/root/node.key\n" >/etc/systemd/system/narmesh.service.d/key.conf
  must mv /etc/narmesh/node.key /root/node.key
  must chown root:root /root/node.key
  sed -i "s|^#* *key_file = .*|key_file = \"/run/credentials/narmesh.service/node.key\"|" /etc/narmesh/narmesh.toml
  must grep -q run/credentials /etc/narmesh/narmesh.toml
  must systemctl daemon-reload
  must systemctl restart narmesh.service
  must answers
  stat -c "the credential has mode %a and is of %U" /run/credentials/narmesh.service/node.key
  must test "${before#* }" != "" -a "$(narmesh id | head -1)" = "$(echo "$before" | sed -n 2p)"

  must dpkg --remove narmesh
  must test ! -e /usr/bin/narmesh
  must test -e /etc/narmesh/builder.key
  must test "$(systemctl is-active narmesh.service)" = inactive
  must dpkg --purge narmesh
  must test ! -e /etc/narmesh -a ! -e /var/lib/narmesh
  must test -z "$(find /etc/systemd/system /var/lib/systemd -name "*narmesh*" -not -path "*/narmesh.service.d*")"
  echo "all steps done"
'

# The same package with a higher version.
newer() { # FILE
  local dir
  dir=$(mktemp -d)
  dpkg-deb -R "$package" "$dir"
  sed -i 's/^\(Version: .*\)/\1+newer/' "$dir/DEBIAN/control"
  dpkg-deb --root-owner-group -b "$dir" "$1" >/dev/null
  rm -rf "$dir"
}

for suite; do
  make_root "$suite"
  work=$(mktemp -d)
  mkdir "$work/try"
  newer "$work/newer.deb"
  echo "$steps" >"$work/steps"
  # A private mount namespace: nothing has to be unmounted afterwards. systemd in it powers its container off in the end.
  # shellcheck disable=SC2016
  unshare --mount --propagation private -- bash -euc '
    mount -t tmpfs tmpfs "$2/try"
    mkdir "$2"/try/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/try/upper,workdir=$2/try/work" "$2/try/root"
    cd "$2/try/root"
    cp "$3" package.deb
    cp "$2/newer.deb" newer.deb
    cp "$2/steps" steps
    cat >etc/systemd/system/try.service <<END
[Unit]
After=basic.target
[Service]
Type=oneshot
Environment=LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
ExecStart=/bin/bash -uc ". /steps"
StandardOutput=file:/said
StandardError=inherit
ExecStopPost=+/bin/systemctl poweroff --no-block
END
    mkdir -p etc/systemd/system/multi-user.target.wants
    ln -s ../try.service etc/systemd/system/multi-user.target.wants/try.service
    # Debian 13 has a systemd that wants the unified hierarchy, whatever this machine has.
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout 300 systemd-nspawn --quiet --boot --register=no --keep-unit --private-network \
      --directory=. </dev/null >"$2/boot" 2>&1 || true
    cp said "$2/said" 2>/dev/null || cp "$2/boot" "$2/said"
  ' _ "$roots/$suite" "$work" "$package"
  grep -q "^all steps done$" "$work/said" || {
    tail -40 "$work/said" >&2
    echo "the package fails in $suite" >&2
    exit 1
  }
  grep "the credential has" "$work/said"
  echo "$suite: installed, run, upgraded, removed, purged"
  rm -rf "$work"
done
