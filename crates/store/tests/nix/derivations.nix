let
  mk = name: script: extra: derivation ({
    inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" ("set -e\n" + script) ];
    PATH = "/bin:/usr/bin";
  } // extra);
in rec {
  lib = mk "lib-1.0" ''
    mkdir -p $out/lib $out/share/empty
    i=0; while [ $i -lt 200 ]; do echo "line $i"; i=$((i+1)); done > $out/lib/text
    ln -s text $out/lib/link; ln -s /nowhere/at/all $out/dangling
    : > $out/lib/nothing; printf 1234567 > $out/lib/seven; printf 12345678 > $out/lib/eight
    printf '#!/bin/sh\n' > $out/lib/run; chmod +x $out/lib/run
    echo x > "$out/lib/$(printf 'bytes-\377-\303\050')"; echo y > "$out/lib/a b"; echo z > "$out/lib/.hidden"
    mkdir "$out/lib/a"; echo in > "$out/lib/a/b"; echo after > "$out/lib/a-b"; echo dot > "$out/lib/a.b"
  '' {};
  app = mk "app-1.0" ''
    mkdir -p $out/bin
    printf '#!/bin/sh\ncat %s/lib/text\necho self %s\n' "$lib" "$out" > $out/bin/app
    chmod +x $out/bin/app
  '' { inherit lib; };
  many = mk "many-1.0" ''
    mkdir -p $out; i=0; while [ $i -lt 2000 ]; do echo $i > $out/f$i; i=$((i+1)); done
  '' {};
  hundred = mk "hundred-1.0" ''
    mkdir -p $out; i=0; while [ $i -lt 100 ]; do echo $i > $out/f$i; i=$((i+1)); done
  '' {};
  big = mk "big-1.0" ''
    mkdir -p $out; i=0
    while [ $i -lt 3 ]; do
      a=1; j=0; while [ $j -lt 20000 ]; do a=$(( (a*1103515245+12345+i) % 2147483648 )); echo $a$a$a$a; j=$((j+1)); done > $out/blob$i
      i=$((i+1))
    done
  '' {};
  large = mk "large-1.0" ''
    mkdir -p $out; i=0; while [ $i -lt 9 ]; do head -c 1048576 /dev/zero > $out/f$i; i=$((i+1)); done
  '' {};
  empty = mk "empty-1.0" ": > $out" {};
  file = mk "file-1.0" "echo contents > $out; chmod +x $out" {};
  symlink = mk "symlink-1.0" "ln -s somewhere/else $out" {};
  multi = mk "multi-1.0" "mkdir -p $out; echo doc > $doc; echo $doc > $out/docref" { outputs = [ "out" "doc" ]; };
  fod = mk "fod-1.0" "echo fixed > $out" {
    outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "fixed\n";
  };
  # Content-addressed; the second refers to the first.
  calib = mk "calib-1.0" "echo library > $out" {
    __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
  };
  caapp = mk "caapp-1.0" "echo $calib > $out" {
    inherit calib; __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";
  };
  # What must not leave by default, and what refers to it.
  local = mk "local-1.0" "echo local > $out" { allowSubstitutes = false; };
  overlocal = mk "overlocal-1.0" "echo $local > $out" { inherit local; };
  top = mk "top-1.0" "echo $overlocal $lib > $out" { inherit overlocal lib; };
  structured = derivation {
    name = "structured-1.0"; system = builtins.currentSystem; builder = "/bin/sh"; __structuredAttrs = true;
    args = [ "-c" ''
      PATH=/bin:/usr/bin; echo structured > $(sed -n 's/.*"outputs":{"out":"\([^"]*\)".*/\1/p' .attrs.json)
    '' ]; allowSubstitutes = false;
  };
  unit = mk "unit-test.service" "echo unit > $out" {};
  etc = mk "etc" "mkdir $out; ln -s $unit $out/unit" { inherit unit; };
  system = mk "nixos-system-host-1" "ln -s $etc $out" { inherit etc; };
  etcd = mk "etcd-1.0" "echo not etc > $out" {};
  # Refers to a source that was added, not built.
  # Deeper than any NAR reader goes.
  deep = mk "deep-1.0" "mkdir -p $out/$(yes d | head -n 70 | tr '\\n' /)" {};
  withsource = mk "withsource-1.0" "echo $src > $out" { src = builtins.toFile "a-source" "text of a source"; };
}
