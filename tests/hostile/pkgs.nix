# What the attacks are about. `tags` is a JSON list of names; each names a set of files of `kib` KiB, and something that
# needs them.
{ tags, kib ? "64" }:
let
  mk = name: script: extra: derivation ({
    inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" ("set -e\n" + script) ];
    PATH = "/bin:/usr/bin";
  } // extra);
  one = tag: rec {
    leaf = name: mk "hostile-${tag}-${name}" "yes '${tag} ${name}' | head -c ${toString (1024 * builtins.fromJSON kib)} > $out" {};
    # Claimed by the liar alone.
    a = leaf "a"; b = leaf "b"; c = leaf "c"; later = leaf "later";
    # By the liar and by an honest node; and by the honest one alone.
    both = leaf "both"; held = leaf "held";
    # Fixed outputs: their store paths follow from their contents.
    fixed = name: contents: mk "hostile-${tag}-${name}" "echo '${contents}' > $out" {
      outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "${contents}\n";
    };
    flat1 = fixed "flat1" "flat1 of ${tag}"; flat2 = fixed "flat2" "flat2 of ${tag}"; flat3 = fixed "flat3" "flat3 of ${tag}";
    recursive = mk "hostile-${tag}-recursive" "echo recursive > $out" {
      outputHashMode = "recursive"; outputHashAlgo = "sha256";
      outputHash = "946cf8f16f341a07e1a97f0319f4cecf95162a3c528f22faf765aed338b46222";
    };
    addressed = mk "hostile-${tag}-addressed" "echo $flat1 $flat2 $flat3 $recursive $held > $out" {
      inherit flat1 flat2 flat3 recursive held;
    };
    top = mk "hostile-${tag}-top" "echo $a $b $c $both $held > $out" { inherit a b c both held; };
    # Something else each time it is built.
    varies = mk "hostile-${tag}-varies" "echo $a > $out; head -c 16 /dev/urandom | od -An -tx1 >> $out" { inherit a; };
    single = mk "hostile-${tag}-single" "echo $a $both $held > $out" { inherit a both held; };
  };
  all = builtins.fromJSON tags;
  sets = builtins.listToAttrs (map (tag: { name = tag; value = one tag; }) all);
in {
  of = sets;
  paths = builtins.mapAttrs (_: set: builtins.mapAttrs (_: leaf: leaf.outPath) (removeAttrs set [ "leaf" "fixed" ])) sets;
  honest = builtins.concatMap (tag: [ sets.${tag}.both sets.${tag}.held ]) all;
}
