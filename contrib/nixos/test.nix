# Two NixOS machines: what one built, the other substitutes. `nix flake check` runs it where there is a nixpkgs and KVM.
{ pkgs }:

let
  inherit (pkgs) lib;

  # The keys of both are made while this is evaluated, because each machine names the other's.
  keys = pkgs.runCommand "narmesh-test-keys" { } ''
    for name in one two; do
      ${pkgs.narmesh}/bin/narmesh init --dir $out/$name --name $name --no-upstreams --no-nix-keys
      ${pkgs.narmesh}/bin/narmesh --config $out/$name/narmesh.toml id --json > $out/$name.json
    done
  '';
  identityOf = name: lib.importJSON "${keys}/${name}.json";

  machine =
    { own, other }:
    {
      imports = [ ./module.nix ];
      services.narmesh = {
        enable = true;
        package = pkgs.narmesh;
        openFirewall = true;
        setupNix.enable = true;
        nodeKeyFile = "${keys}/${own}/node.key";
        builderKeyFile = "${keys}/${own}/builder.key";
        settings = {
          trust.trusted_public_keys = [ (identityOf other).builder_key ];
          peer = [
            {
              name = other;
              inherit (identityOf other) peer_id;
              addresses = [ "/dns/${other}/tcp/7280" ];
            }
          ];
        };
      };
      nix.settings.substituters = lib.mkForce [ "http://127.0.0.1:7281" ];
      virtualisation.writableStore = true;
    };

  # It needs nothing but a shell that both machines have.
  expression = pkgs.writeText "fresh.nix" ''
    derivation {
      name = "fresh";
      system = "${pkgs.stdenv.hostPlatform.system}";
      builder = "${pkgs.runtimeShell}";
      args = [ "-c" "echo built on one > $out" ];
    }
  '';
in
pkgs.testers.runNixOSTest {
  name = "narmesh-two-machines";
  nodes = {
    one = machine {
      own = "one";
      other = "two";
    };
    two = machine {
      own = "two";
      other = "one";
    };
  };
  testScript = ''
    start_all()
    for machine in [one, two]:
        machine.wait_for_unit("narmesh.service")
        machine.wait_for_unit("narmesh-nix-key.service")
        machine.wait_until_succeeds("narmesh status | grep -q connected")
    path = one.succeed("nix-build --no-out-link ${expression}").strip()
    two.wait_until_succeeds(f"narmesh why {path} | grep -q one")
    two.succeed(f"nix-store --realise {path} --option max-jobs 0")
    assert "built on one" in two.succeed(f"cat {path}")
  '';
}
