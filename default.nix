# narmesh without flakes: `nix-build -A narmesh`, or in configuration.nix
#   imports = [ (import ./narmesh { }).module ];
{
  pkgs ? import <nixpkgs> { },
}:

{
  narmesh = pkgs.callPackage ./contrib/nixos/package.nix { };
  module = ./contrib/nixos/module.nix;
  overlay = import ./contrib/nixos/overlay.nix { };
}
