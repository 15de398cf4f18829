{
  description = "narmesh, a peer-to-peer binary cache mesh for Nix";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      overlay = import ./contrib/nixos/overlay.nix { commit = self.rev or ""; };
      forEachSystem =
        make:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: make (nixpkgs.legacyPackages.${system}.extend overlay));
    in
    {
      overlays.default = overlay;

      nixosModules.default = {
        imports = [ ./contrib/nixos/module.nix ];
        nixpkgs.overlays = [ overlay ];
      };

      packages = forEachSystem (pkgs: {
        inherit (pkgs) narmesh;
        default = pkgs.narmesh;
      });

      devShells = forEachSystem (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ pkgs.narmesh ];
          packages = [
            pkgs.clippy
            pkgs.rustfmt
            pkgs.cargo-deny
            pkgs.sqlite
          ];
        };
      });

      formatter = forEachSystem (pkgs: pkgs.nixfmt-tree);

      checks = forEachSystem (pkgs: {
        inherit (pkgs) narmesh;
        two-machines = import ./contrib/nixos/test.nix { inherit pkgs; };
      });
    };
}
