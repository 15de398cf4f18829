# The package of narmesh, for `pkgs.callPackage`. It needs the Rust of nixpkgs-unstable (Cargo.toml names the version).
{
  lib,
  rustPlatform,
  installShellFiles,
  # The commit that `narmesh --version` names; a flake knows it.
  commit ? "",
}:

rustPlatform.buildRustPackage {
  pname = "narmesh";
  version = (builtins.fromTOML (builtins.readFile ../../Cargo.toml)).workspace.package.version;

  src = lib.cleanSourceWith {
    src = ../..;
    filter = path: type: lib.cleanSourceFilter path type && baseNameOf path != "target";
  };
  cargoLock.lockFile = ../../Cargo.lock;
  buildAndTestSubdir = "node";
  # They need a Nix store to write to, and a network.
  doCheck = false;

  env.NARMESH_COMMIT = commit;

  nativeBuildInputs = [ installShellFiles ];

  postInstall = ''
    $out/bin/narmesh man man
    installManPage man/*.1
    for shell in bash zsh fish; do
      $out/bin/narmesh completions $shell > narmesh.$shell
      installShellCompletion --cmd narmesh --$shell narmesh.$shell
    done
  '';

  meta = {
    description = "Peer-to-peer Nix substituter: machines that trust each other share what they built";
    license = with lib.licenses; [
      mit
      asl20
    ];
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
    mainProgram = "narmesh";
  };
}
