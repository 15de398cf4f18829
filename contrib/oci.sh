#!/usr/bin/env bash
# Makes an image for containers of the static binary, with nothing else in it, as a directory in OCI's layout.
#
#   contrib/oci.sh [DIR]     default: target/oci
#
#   skopeo copy oci:target/oci:latest docker-daemon:narmesh:latest      for Docker; containers-storage:… for Podman
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
image=${1:-$target/oci}
binary=$(contrib/static.sh)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

mkdir -p "$root"/{usr/bin,etc/narmesh,var/lib/narmesh,tmp}
chmod 1777 "$root/tmp"
cp "$binary" "$root/usr/bin/narmesh"
# What TLS and names of users need.
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ca-certificates.crt"
echo 'root:x:0:0:root:/:/usr/bin/narmesh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"

# Layers and blobs are named by their SHA-256. The same binary makes the same image.
rm -rf "$image"
blobs=$image/blobs/sha256
mkdir -p "$blobs"
blob() { # FILE: moves it to its place; prints its digest and size
  local digest
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  mv "$1" "$blobs/$digest"
  echo "$digest $(stat -c %s "$blobs/$digest")"
}
work=$image.part
mkdir -p "$work"
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$root" -cf "$work/layer.tar" .
diff_id=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
gzip -9n "$work/layer.tar"
read -r layer layer_bytes < <(blob "$work/layer.tar.gz")
case $(uname -m) in
  x86_64) architecture=amd64 ;;
  aarch64) architecture=arm64 ;;
  *) echo "oci.sh: unknown processor $(uname -m); accepted: x86_64, aarch64" >&2; exit 1 ;;
esac
cat >"$work/config" <<END
{"architecture":"$architecture","os":"linux",
 "config":{"Entrypoint":["/usr/bin/narmesh"],"Cmd":["run"],"Env":["PATH=/usr/bin","SSL_CERT_FILE=/etc/ca-certificates.crt"],
  "ExposedPorts":{"7280/tcp":{}},"Volumes":{"/etc/narmesh":{},"/var/lib/narmesh":{}}},
 "rootfs":{"type":"layers","diff_ids":["sha256:$diff_id"]}}
END
read -r config config_bytes < <(blob "$work/config")
cat >"$work/manifest" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
 "config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$config_bytes},
 "layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:$layer","size":$layer_bytes}]}
END
read -r manifest manifest_bytes < <(blob "$work/manifest")
cat >"$image/index.json" <<END
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest",
 "size":$manifest_bytes,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}
END
echo '{"imageLayoutVersion":"1.0.0"}' >"$image/oci-layout"
rmdir "$work"
echo "$image"
