//! Three real Nix stores that need neither root nor namespaces: they share one logical store directory.
//!
//! Nix builds only where the physical directory is the logical one: that is so in the first store. The others are
//! relocated (`local?real=…`), with databases of their own.

use crate::configuration::StoreConfig;
use crate::process::run_for_output;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What is built: deterministic, with references, and with only a shell; about 39 MB, so that a rate means something.
const PACKAGES: &str = r#"let
  mk = name: script: extra: derivation ({
    inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" ("set -e\n" + script) ];
    PATH = "/bin:/usr/bin";
  } // extra);
in rec {
  numbers = mk "demo-numbers-1.0" "mkdir -p $out/share; seq 1 5000000 > $out/share/numbers" {};
  library = mk "demo-library-1.0" "mkdir -p $out/lib; seq 1 2000 > $out/lib/library; ln -s library $out/lib/link" {};
  program = mk "demo-program-1.0" ''
    mkdir -p $out/bin
    printf '#!/bin/sh\nhead -n 1 %s/lib/library %s/share/numbers\n' "$library" "$numbers" > $out/bin/program
    chmod +x $out/bin/program
  '' { inherit library numbers; };
}
"#;

/// One of the stores.
#[derive(Clone, Debug)]
pub(crate) struct DemoStore {
    dir: PathBuf,
    place: PathBuf,
    builds: bool,
}

impl DemoStore {
    /// The store `name` of the demo in `dir`. If it `builds`, its files are in the logical directory.
    pub(crate) fn new(dir: &Path, name: &str, builds: bool) -> Self {
        Self { dir: dir.to_owned(), place: dir.join("stores").join(name), builds }
    }

    /// `[store]` in the configuration of this store's daemon.
    pub(crate) fn config(&self) -> StoreConfig {
        StoreConfig { store_dir: self.store_dir(), real_dir: self.real_dir(), state_dir: self.place.join("var") }
    }

    /// Builds the demo's closure; returns its paths, the root last.
    pub(crate) fn build(&self) -> anyhow::Result<Vec<String>> {
        let expression = self.dir.join("packages.nix");
        std::fs::write(&expression, PACKAGES)?;
        let mut command = self.nix("nix-build")?;
        command.arg(&expression).args(["-A", "program", "--no-out-link"]);
        let root = run_for_output(&mut command)?.trim().to_owned();
        let mut command = self.nix("nix-store")?;
        command.args(["--query", "--requisites", &root]);
        Ok(run_for_output(&mut command)?.lines().map(str::to_owned).collect())
    }

    /// Starts to substitute `path`, with the gateway as the only substituter and building forbidden.
    pub(crate) fn realise(&self, path: &str, gateway: &str, trusted_public_key: &str) -> anyhow::Result<Child> {
        let mut command = self.nix("nix-store")?;
        command.args(["--store", &self.url(), "--realise", path, "--option", "max-jobs", "0"]);
        command.args(["--option", "substituters", &format!("http://{gateway}")]);
        command.args(["--option", "trusted-public-keys", trusted_public_key]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("nix-store")
    }

    /// The NarHash that Nix has recorded in this store for `path`.
    pub(crate) fn ask_nar_hash(&self, path: &str) -> anyhow::Result<String> {
        let mut command = self.nix("nix-store")?;
        if !self.builds {
            command.args(["--store", &self.url()]);
        }
        command.args(["--query", "--hash", path]);
        Ok(run_for_output(&mut command)?.trim().to_owned())
    }

    /// Reads the files of `path` again and compares them with the recorded NarHash.
    pub(crate) fn verify(&self, path: &str) -> anyhow::Result<()> {
        let mut command = self.nix("nix-store")?;
        command.args(["--store", &self.url(), "--verify-path", path]);
        run_for_output(&mut command).map(drop)
    }

    /// A command line that builds something else here.
    pub(crate) fn build_example(&self) -> String {
        let expression = r#"derivation { name = "mine"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo hello > $out" ]; }"#;
        format!("{} nix-build --no-out-link -E '{expression}'", self.environment_text())
    }

    /// A command line that fetches `path` into this store.
    pub(crate) fn realise_example(&self, gateway: &str, path: &str) -> String {
        format!(
            "{} nix-store --store '{}' --realise {path} --option substituters http://{gateway} \
             --option trusted-public-keys \"$(cat {})\"",
            self.environment_text(),
            self.url(),
            self.dir.join("trusted-public-key").display()
        )
    }

    fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    fn real_dir(&self) -> PathBuf {
        if self.builds { self.store_dir() } else { self.place.join("store") }
    }

    fn url(&self) -> String {
        let place = self.place.display();
        format!("local?real={}&state={place}/var&log={place}/log", self.real_dir().display())
    }

    /// The environment of Nix's programs, so that they neither read nor write anything of the user's own Nix.
    fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let mut variables = vec![
            ("NIX_CONF_DIR", self.dir.join("etc")),
            ("NIX_STORE_DIR", self.store_dir()),
            ("XDG_CACHE_HOME", self.place.join("cache")),
            ("HOME", self.place.join("home")),
            ("XDG_CONFIG_HOME", self.place.join("home/config")),
            ("no_proxy", "127.0.0.1".into()),
        ];
        if self.builds {
            variables.push(("NIX_STATE_DIR", self.place.join("var")));
            variables.push(("NIX_LOG_DIR", self.place.join("log")));
        }
        variables
    }

    fn environment_text(&self) -> String {
        let variables = self.environment();
        variables.iter().map(|(name, value)| format!("{name}={}", value.display())).collect::<Vec<_>>().join(" ")
    }

    fn nix(&self, program: &str) -> anyhow::Result<Command> {
        let conf_dir = self.dir.join("etc");
        std::fs::create_dir_all(&conf_dir)?;
        std::fs::create_dir_all(self.place.join("home"))?;
        std::fs::write(conf_dir.join("nix.conf"), "sandbox = false\nbuild-users-group =\nsubstituters =\n")?;
        let mut command = Command::new(program);
        for theirs in ["NIX_REMOTE", "NIX_PATH", "NIX_CONFIG", "NIX_USER_CONF_FILES"] {
            command.env_remove(theirs);
        }
        command.envs(self.environment());
        Ok(command)
    }
}
