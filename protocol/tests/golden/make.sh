#!/usr/bin/env bash
# Makes the golden files beside this script with a real Nix: NARs, a signed binary cache, digests in all spellings.
#
#   ./make.sh          # needs nix (made with 2.8.0) and a static busybox; root or user namespaces for the sandbox
#
# The result does not depend on the machine or the day, so `git diff` after a run says what another Nix does differently.
# The key pair is kept if it is there: it protects nothing, and a new one would change every signature.
set -euo pipefail
export LC_ALL=C
golden=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
export HOME=$work/home NIX_CONF_DIR=$work/etc XDG_CACHE_HOME=$work/cache
unset NIX_PATH NIX_REMOTE
mkdir -p "$HOME" "$NIX_CONF_DIR"
cat > "$NIX_CONF_DIR/nix.conf" <<C
experimental-features = nix-command ca-derivations
substituters =
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh=$(command -v busybox)
build-users-group =
C
store="local?root=$work/root"
on_store() { "$1" --store "$store" "${@:2}"; }
rm -rf "$golden/nar" "$golden/cache"
mkdir -p "$golden/nar" "$golden/cache"

if [ ! -e "$golden/secret.key" ]; then
  nix-store --generate-binary-cache-key golden-1 "$golden/secret.key" "$golden/public.key"
fi

# --- NARs of trees, and their hashes as Nix gives them ---
trees=$work/trees
mkdir -p "$trees"/{empty-directory,tree/sub/subsub/empty,odd-names}
printf 'hello\n' > "$trees/file"
printf '' > "$trees/empty-file"
printf '#!/bin/sh\n' > "$trees/executable"
chmod +x "$trees/executable"
ln -s ../somewhere/else "$trees/symlink"
for size in 0 1 7 8 9 15 16 1000; do head -c "$size" /dev/zero | tr '\0' x > "$trees/tree/size-$size"; done
printf 'deep\n' > "$trees/tree/sub/subsub/file"
ln -s sub/subsub/file "$trees/tree/link"
ln -s /nix/store "$trees/tree/absolute"
cp "$trees/executable" "$trees/tree/sub/run"
printf x > "$trees/odd-names/$(printf 'n%.0s' $(seq 255))"
for name in a A a.b a-b ab 'a b' ... .hidden '~' '$x' $'new\nline' $'\303\251' $'\377\376' '*' '~nix~case~hack~1'; do
  printf x > "$trees/odd-names/$name"
done
for tree in file empty-file executable symlink empty-directory tree odd-names; do
  nix-store --dump "$trees/$tree" > "$golden/nar/$tree.nar"
  echo "$tree $(nix-hash --type sha256 --base32 "$trees/$tree") $(stat -c %s "$golden/nar/$tree.nar")"
done > "$golden/nar/index"

# --- digests in all spellings: algorithm, base-16, nix32, base-64, SRI ---
for algorithm in md5 sha1 sha256 sha512; do
  for text in '' narmesh 'The quick brown fox'; do
    hex=$(printf %s "$text" | "${algorithm}sum" | cut -d' ' -f1)
    echo "$algorithm $hex $(nix-hash --type "$algorithm" --to-base32 "$hex")" \
      "$(nix hash to-base64 --type "$algorithm" "$hex") $(nix hash to-sri --type "$algorithm" "$hex")"
  done
done > "$golden/digests"

# --- a store with every kind of path, copied to a signed cache ---
cat > "$work/paths.nix" <<'N'
let
  make = name: script: extra: derivation ({
    inherit name; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" ("set -e\n" + script) ]; PATH = "/bin";
  } // extra);
  floating = { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
in rec {
  leafs = map (n: make "leaf-${n}" "echo ${n} > $out" { }) [ "a" "b" "c" "d" "e" ];
  library = make "library-1.0" "mkdir -p $out/lib $out/share; echo text > $out/lib/text; ln -s text $out/lib/link" { };
  # references to others and to itself
  app = make "app-1.0" ''
    mkdir -p $out/bin
    printf '#!/bin/sh\ncat %s/lib/text\necho %s %s %s\n' $library $out "$leafs" $out > $out/bin/app
    chmod +x $out/bin/app
  '' { inherit library leafs; };
  multi = make "multi-1.0" "echo doc > $doc; echo $doc > $out" { outputs = [ "out" "doc" ]; };
  flat = make "flat.txt" "echo fixed > $out" {
    outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "fixed\n";
  };
  floating-plain = make "floating-plain" "echo contents > $out" floating;
  floating-refs = make "floating-refs" "echo uses $dependency > $out" (floating // { dependency = floating-plain; });
  # self-references at the very beginning, next to each other, and across what a reader may cut into pieces
  floating-self = make "floating-self" ''
    mkdir -p $out
    h=''${out##*/}; h=''${h%%-*}
    printf '%s' "$out" > $out/one
    printf '%s%s%s' "$h" "$h" "$h" > $out/three
    i=0; while [ $i -lt 300 ]; do printf 'line %s %s\n' $i "$out"; i=$((i+1)); done > $out/many
    printf '%s' "''${h%?}" > $out/almost
    ln -s $out/one $out/link
  '' floating;
  floating-self-refs = make "floating-self-refs" "echo $out uses $dependency > $out" (floating // { dependency = floating-plain; });
}
N
build() { on_store nix-build "$work/paths.nix" -A "$1" --no-out-link 2>> "$work/build.log"; }
{
  for name in app multi flat floating-plain floating-refs floating-self floating-self-refs; do build "$name"; done
  printf 'source\n' > "$work/source.txt"
  on_store nix-store --add "$work/source.txt"
  mkdir -p "$work/source-directory/sub"
  printf 'source\n' > "$work/source-directory/sub/file"
  on_store nix-store --add "$work/source-directory"
  for algorithm in md5 sha1 sha256 sha512; do
    cp "$work/source.txt" "$work/added-$algorithm"
    on_store nix-store --add-fixed "$algorithm" "$work/added-$algorithm"
    cp -r "$work/source-directory" "$work/added-recursive-$algorithm"
    on_store nix-store --add-fixed --recursive "$algorithm" "$work/added-recursive-$algorithm"
  done
  on_store nix-instantiate --eval --read-write-mode -E \
    'builtins.toFile "text-with-references" "${builtins.toFile "text-b" "b"} ${builtins.toFile "text-a" "a"}"' | tr -d '"'
  # A closure rewritten to content addresses, self-reference and all.
  app=$(build app)
  on_store nix store make-content-addressed --json "$app" | grep -o '/nix/store/[0-9a-z]\{32\}-app-1.0"}' | tr -d '"}'
} > "$work/paths"
copy() { nix copy --from "$store" --to "file://$golden/cache?compression=none&secret-key=$golden/secret.key" "$@"; }
xargs -a "$work/paths" -- nix copy --from "$store" \
  --to "file://$golden/cache?compression=none&secret-key=$golden/secret.key"
# Derivations are texts with references.
drv=$(on_store nix-instantiate "$work/paths.nix" -A multi 2>/dev/null | cut -d'!' -f1 | head -1)
copy --derivation "$drv"
rm -rf "$golden/cache/realisations" "$golden/cache/log"
echo "$(ls "$golden/cache" | grep -c narinfo) paths, $(du -sh "$golden" | cut -f1)"
