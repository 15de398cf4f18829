# narmesh on NixOS: `services.narmesh`. docs/nixos.md lists the options and is made from this file.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib)
    attrNames
    attrValues
    concatMap
    concatStringsSep
    filterAttrs
    last
    literalExpression
    mkDefault
    mkEnableOption
    mkForce
    mkIf
    mkMerge
    mkOption
    optional
    optionalAttrs
    optionals
    recursiveUpdate
    splitString
    types
    unique
    ;

  cfg = config.services.narmesh;
  format = pkgs.formats.toml { };

  # The options of one daemon; `unit` is the name of its units, its user and its state directory.
  optionsOf = unit: {
    enable = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether to run narmesh, a peer-to-peer substituter for Nix.";
    };

    settings = mkOption {
      type = format.type;
      default = { };
      example = literalExpression ''
        {
          node.name = "one";
          gateway.sign = true;
          trust.trusted_public_keys = [ "two-narmesh-1:…" ];
          peer = [
            {
              name = "two";
              peer_id = "12D3KooW…";
              addresses = [ "/dns/two.example/tcp/7280" ];
            }
          ];
        }
      '';
      description = ''
        What narmesh.toml holds: every key of docs/configuration.md. The file is checked when the system is built.
        What it does not say of `node.key_file`, `node.state_dir` and `trust.builder_key_file` lies in the state directory,
        and `gateway.sign` is `true`. Everybody can read the file, so name files with secrets here and write no secret.
        They need absolute paths, and only the user of the daemon may be able to read them.
      '';
    };

    nodeKeyFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/narmesh-node.key";
      description = ''
        The file of the node key, the identity of this machine on the mesh. systemd hands it to the daemon
        (`LoadCredential`), so only root needs to be able to read it. If it is not set, a key is made at the first start
        and kept in the state directory.
      '';
    };

    signBuilds = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether this machine has a builder key. Without one, nothing that is built here can be substituted elsewhere.
      '';
    };

    builderKeyFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/narmesh-builder.key";
      description = ''
        The file of the builder key, which signs what was built here; it is handed over in the same way. If it is not set, a
        key is made at the first start.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to open the TCP ports of `settings.node.listen` (7280 by default) and those of each
        `settings.gateway.listener` with an IP address that is not of loopback.
      '';
    };

    socketActivation = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether systemd holds the gateway's socket, so that Nix waits instead of failing while the daemon restarts.
      '';
    };

    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = literalExpression ''{ NARMESH_LOG = "narmesh=debug"; }'';
      description = "The daemon's environment: the filter of its log, and the proxies by which upstream caches are asked.";
    };

    unit = mkOption {
      type = types.str;
      default = unit;
      readOnly = true;
      internal = true;
      description = "The name of the units, the user and the state directory.";
    };
  };

  instances = filterAttrs (_: instance: instance.enable) (cfg.instances // { "" = cfg; });
  enabled = attrValues instances;

  stateDir = instance: "/var/lib/${instance.unit}";
  # Where the daemon finds a key: with its credentials if a file was named, else in its state directory.
  keyOf =
    instance: file: name:
    if file != null then "/run/credentials/${instance.unit}.service/${name}" else "${stateDir instance}/${name}";

  gatewayOf = instance: instance.settings.gateway.listen or "127.0.0.1:7281";

  # The file as the daemon reads it; the settings of the user go before.
  settingsOf =
    instance:
    recursiveUpdate (
      {
        node = {
          state_dir = stateDir instance;
          key_file = keyOf instance instance.nodeKeyFile "node.key";
        };
        gateway.sign = true;
      }
      // optionalAttrs instance.signBuilds {
        trust.builder_key_file = keyOf instance instance.builderKeyFile "builder.key";
      }
    ) instance.settings;

  # Everything that is wrong with the file is said when the system is built, not when the daemon starts.
  configOf =
    instance:
    let
      written = format.generate "${instance.unit}.toml" (settingsOf instance);
    in
    pkgs.runCommand "${instance.unit}-checked.toml" { } ''
      ${cfg.package}/bin/narmesh --config ${written} check-config --offline
      cp ${written} $out
    '';

  commandOf = instance: "${cfg.package}/bin/narmesh --config ${configOf instance}";

  credentialsOf =
    instance:
    optional (instance.nodeKeyFile != null) "node.key:${instance.nodeKeyFile}"
    ++ optional (instance.builderKeyFile != null) "builder.key:${instance.builderKeyFile}";

  # "/ip4/0.0.0.0/tcp/7280" and "0.0.0.0:7282" have their port at the end.
  portOf = separator: address: last (splitString separator address);
  isPort = port: builtins.match "[1-9][0-9]*" port != null;
  isLoopback = address: builtins.match "(127\\.[0-9.]*|\\[::1])(:.*)?" address != null;
  portsOf =
    instance:
    let
      listen =
        instance.settings.node.listen or [
          "/ip4/0.0.0.0/tcp/7280"
          "/ip6/::/tcp/7280"
        ];
      listeners = map (listener: listener.address or "") (instance.settings.gateway.listener or [ ]);
      isOpen = address: builtins.match "[^/]*:[0-9]+" address != null && !isLoopback address;
      ports = map (portOf "/") listen ++ map (portOf ":") (builtins.filter isOpen listeners);
    in
    map builtins.fromJSON (builtins.filter isPort ports);

  # As contrib/systemd has it; a test compares the two.
  hardening = {
    CapabilityBoundingSet = "";
    AmbientCapabilities = "";
    NoNewPrivileges = true;
    ProtectSystem = "strict";
    ProtectHome = true;
    PrivateTmp = true;
    PrivateDevices = true;
    # Not PrivateUsers: all local users would look like one, and they share the gateway's connections by user.
    ProtectClock = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectControlGroups = true;
    ProtectProc = "invisible";
    ProcSubset = "pid";
    RestrictAddressFamilies = "AF_UNIX AF_INET AF_INET6 AF_NETLINK";
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    RemoveIPC = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
    SystemCallErrorNumber = "EPERM";
  };

  serviceOf = instance: {
    description = "narmesh: substitutes Nix store paths from trusted peers";
    documentation = [ "man:nix.conf(5)" ];
    wantedBy = [ "multi-user.target" ];
    wants = [ "network-online.target" ];
    after = [ "network-online.target" ] ++ optional instance.socketActivation "${instance.unit}.socket";
    requires = optional instance.socketActivation "${instance.unit}.socket";
    inherit (instance) environment;
    serviceConfig = hardening // {
      Type = "notify";
      # Keys that are named nowhere and not there yet.
      ExecStartPre = "${commandOf instance} init --keys";
      ExecStart = "${commandOf instance} run";
      ExecReload = "${commandOf instance} reload";
      # Bodies under way get ten seconds after SIGTERM.
      TimeoutStopSec = 20;
      # A gateway that is gone aborts builds of Nix <= 2.31: it has to be back at once.
      Restart = "always";
      RestartSec = "200ms";
      User = instance.unit;
      Group = instance.unit;
      StateDirectory = instance.unit;
      StateDirectoryMode = "0750";
      UMask = "0077";
      LimitNOFILE = 16384;
    }
    // optionalAttrs (credentialsOf instance != [ ]) { LoadCredential = credentialsOf instance; };
  };

  socketOf = instance: {
    description = "narmesh: the substituter that Nix asks on this machine";
    wantedBy = [ "sockets.target" ];
    socketConfig = {
      # Outlives the daemon: while it restarts, connections wait here instead of being refused.
      ListenStream = gatewayOf instance;
      NoDelay = true;
      Backlog = 4096;
    };
  };

  # nix.conf is made before the gateway key is, so it includes a file that is made at each start of the machine.
  nixConfKey = "/run/narmesh-nix-key/nix.conf";
  nixKeyService = {
    description = "narmesh: tells Nix the gateway key";
    # Nix waits for it, and goes on without it.
    wantedBy = [
      "multi-user.target"
      "nix-daemon.service"
    ];
    before = [ "nix-daemon.service" ];
    # The daemon makes the key before it says that it is ready.
    after = [ "${cfg.unit}.service" ];
    requires = [ "${cfg.unit}.service" ];
    script = ''
      key=$(${commandOf cfg} id --gateway-key)
      echo "extra-trusted-public-keys = $key" > ${nixConfKey}
    '';
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      # Not the directory of the daemon, whose user could write another key into it.
      RuntimeDirectory = "narmesh-nix-key";
      RuntimeDirectoryPreserve = true;
      UMask = "0022";
    };
  };

  gatewayUrl = "http://${gatewayOf cfg}";
in
{
  options.services.narmesh = optionsOf "narmesh" // {
    package = mkOption {
      type = types.package;
      default = pkgs.narmesh or (pkgs.callPackage ./package.nix { });
      defaultText = literalExpression "pkgs.narmesh";
      description = "The package of narmesh, for all daemons.";
    };

    setupNix = {
      enable = mkEnableOption "the gateway of the daemon `services.narmesh` as a substituter of this machine's Nix";

      gatewayPublicKey = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "narmesh-gateway-one:…";
        description = ''
          The gateway key of this machine, as `narmesh id --gateway-key` prints it. If it is not set, nix.conf includes a file
          under /run that has the key, and Nix's daemon starts after that file was made.
        '';
      };

      exclusive = mkOption {
        type = types.bool;
        default = cfg.settings ? upstream;
        defaultText = literalExpression "config.services.narmesh.settings ? upstream";
        description = ''
          Whether the gateway is the only substituter and its key the only trusted one, in place of all others (`mkForce`).
          It can be once narmesh asks the caches by itself, as it does if `settings` names upstream caches.
        '';
      };
    };

    instances = mkOption {
      type = types.attrsOf (types.submodule ({ name, ... }: { options = optionsOf "narmesh-${name}"; }));
      default = { };
      example = literalExpression ''
        {
          lab = {
            enable = true;
            settings = {
              node.listen = [ "/ip4/0.0.0.0/tcp/7380" ];
              gateway.listen = "127.0.0.1:7381";
              store.root = "/srv/lab";
            };
          };
        }
      '';
      description = ''
        More daemons beside the first, each with its own store or mesh: their units, users and state directories are called
        `narmesh-NAME`. Each needs ports of its own, and has the options of the first daemon but for `package` and `setupNix`.
      '';
    };
  };

  config = mkIf (enabled != [ ]) {
    assertions =
      let
        gateways = map gatewayOf enabled;
      in
      [
        {
          assertion = unique gateways == gateways;
          message = "services.narmesh: two daemons have one settings.gateway.listen: ${concatStringsSep ", " gateways}; accepted: an address and port of its own for each";
        }
        {
          assertion = cfg.setupNix.enable -> cfg.enable;
          message = "services.narmesh.setupNix.enable needs services.narmesh.enable, whose gateway Nix is to ask";
        }
        {
          assertion = cfg.setupNix.enable -> (settingsOf cfg).gateway.sign;
          message = "services.narmesh.setupNix.enable needs settings.gateway.sign = true, which is the default: Nix trusts the gateway key";
        }
      ]
      ++ concatMap (instance: [
        {
          assertion = instance.signBuilds || instance.builderKeyFile == null;
          message = "services.narmesh: ${instance.unit} has builderKeyFile = ${toString instance.builderKeyFile} and signBuilds = false; accepted: one of them";
        }
      ]) enabled
      # They become names of users, which have 31 letters at most.
      ++ map (name: {
        assertion = builtins.match "[a-z0-9][a-z0-9-]{0,21}" name != null;
        message = "services.narmesh.instances.${name}: accepted: names of 1 to 22 lower-case letters, digits and hyphens, no hyphen first";
      }) (attrNames cfg.instances);

    environment.systemPackages = [ cfg.package ];

    # `narmesh status` and the other commands look there.
    environment.etc = mkIf cfg.enable { "narmesh/narmesh.toml".source = configOf cfg; };

    users.users = mkMerge (
      map (instance: {
        ${instance.unit} = {
          isSystemUser = true;
          group = instance.unit;
          home = stateDir instance;
          description = "narmesh daemon";
        };
      }) enabled
    );
    users.groups = mkMerge (map (instance: { ${instance.unit} = { }; }) enabled);

    networking.firewall.allowedTCPPorts = concatMap (instance: optionals instance.openFirewall (portsOf instance)) enabled;

    systemd.sockets = mkMerge (
      map (instance: mkIf instance.socketActivation { ${instance.unit} = socketOf instance; }) enabled
    );
    systemd.services = mkMerge (
      map (instance: {
        ${instance.unit} = serviceOf instance;
      }) enabled
      ++ [ (mkIf (cfg.setupNix.enable && cfg.setupNix.gatewayPublicKey == null) { narmesh-nix-key = nixKeyService; }) ]
    );

    nix = mkIf cfg.setupNix.enable {
      settings =
        let
          # Instead of all others, or beside them.
          strong = if cfg.setupNix.exclusive then mkForce else (value: value);
          keys = optional (cfg.setupNix.gatewayPublicKey != null) cfg.setupNix.gatewayPublicKey;
        in
        {
          substituters = strong [ gatewayUrl ];
          trusted-public-keys = strong keys;
          # docs/operations.md has the reasons.
          connect-timeout = mkDefault 5;
          stalled-download-timeout = mkDefault 30;
          download-attempts = mkDefault 5;
          narinfo-cache-negative-ttl = mkDefault 0;
          fallback = mkDefault true;
        };
      extraOptions = mkIf (cfg.setupNix.gatewayPublicKey == null) "!include ${nixConfKey}\n";
    };
  };
}
