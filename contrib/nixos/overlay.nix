# `pkgs.narmesh`, built from the commit that is given, if one is known.
{
  commit ? "",
}:

final: _previous: { narmesh = final.callPackage ./package.nix { inherit commit; }; }
