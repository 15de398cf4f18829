//! `contrib/nixos` and `flake.nix`, evaluated and built by real Nix with stubs in place of nixpkgs, which is not here.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::generated::assert_is_current;
use narmesh_tests::{Finished, NixStoreFixture, finish, narmesh_binary, repository_root, scratch_dir};
use serde_json::Value;
use tempfile::TempDir;

/// A store of which no daemon knows, and the program as a package has it.
struct Builder {
    store: NixStoreFixture,
    package: PathBuf,
    _scratch: TempDir,
}

impl Builder {
    fn new() -> Self {
        let scratch = scratch_dir("nixos");
        let package = scratch.path().join("package");
        fs::create_dir_all(package.join("bin")).unwrap();
        symlink(narmesh_binary(), package.join("bin/narmesh")).unwrap();
        let store = NixStoreFixture::relocated_builder(scratch.path(), &scratch.path().join("store"));
        Self { store, package, _scratch: scratch }
    }

    fn run(&self, program: &str, file: &str, arguments: &[&str]) -> Finished {
        let file = repository_root().join("tests/fixtures/nixos").join(file);
        let package = self.package.to_str().unwrap();
        let words = [&[file.to_str().unwrap(), "--argstr", "narmesh", package], arguments].concat();
        finish(self.store.nix(program).args(words))
    }

    fn evaluate(&self, file: &str, arguments: &[&str]) -> Value {
        // The test of two machines builds their keys while it is evaluated.
        let words = [&["--eval", "--strict", "--json", "--read-write-mode"], arguments].concat();
        let said = self.run("nix-instantiate", file, &words).expect_success("nix-instantiate --eval");
        serde_json::from_str(&said).unwrap()
    }

    /// One attribute of the machine of this name.
    fn machine(&self, name: &str, attribute: &str) -> Value {
        self.evaluate("system.nix", &["--argstr", "machine", name, "-A", attribute])
    }

    fn refusal(&self, name: &str, attribute: &str) -> String {
        let words = ["--eval", "--strict", "--json", "--argstr", "machine", name, "-A", attribute];
        self.run("nix-instantiate", "system.nix", &words).expect_failure("a machine that is refused")
    }

    /// Builds narmesh.toml of the machine of this name, which narmesh checks meanwhile.
    fn build_file(&self, name: &str) -> Finished {
        self.run("nix-build", "system.nix", &["--argstr", "machine", name, "-A", "file", "--no-out-link"])
    }
}

/// The settings of one section of a unit, as systemd reads them.
type Lines = BTreeSet<(String, String)>;

/// What NixOS writes for this section of a unit.
fn written(section: &Value) -> Lines {
    let word = |value: &Value| match value {
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let lines = section.as_object().unwrap().iter().flat_map(|(key, value)| match value {
        Value::Array(values) => values.iter().map(|value| (key.clone(), word(value))).collect(),
        value => vec![(key.clone(), word(value))],
    });
    lines.collect()
}

/// The lines of this section in a unit of `contrib/systemd`.
fn shipped(unit: &str, section: &str) -> Lines {
    let text = fs::read_to_string(repository_root().join("contrib/systemd").join(unit)).unwrap();
    let lines = text.lines().skip_while(|line| *line != format!("[{section}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('[')).filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn without(lines: Lines, keys: &[&str]) -> Lines {
    lines.into_iter().filter(|(key, _)| !keys.contains(&key.as_str())).collect()
}

#[test]
fn units_of_the_module_are_those_of_contrib_systemd() {
    let builder = Builder::new();
    let units = builder.machine("least", "units");
    let service = &units["services"]["narmesh"];
    // The programs are elsewhere; the configuration is in the store, and nobody has to run `init`.
    let other = ["ExecStart", "ExecStartPre", "ExecReload", "ConfigurationDirectory", "ConfigurationDirectoryMode"];
    assert_eq!(
        without(written(&service["serviceConfig"]), &other),
        without(shipped("narmesh.service", "Service"), &other)
    );
    assert_eq!(written(&units["sockets"]["narmesh"]["socketConfig"]), shipped("narmesh.socket", "Socket"));
    for (key, name) in [("after", "After"), ("wants", "Wants"), ("requires", "Requires")] {
        let ours: BTreeSet<_> = service[key].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let theirs = shipped("narmesh.service", "Unit");
        let theirs = theirs.iter().find(|(known, _)| known == name).unwrap();
        assert_eq!(ours, theirs.1.split(' ').collect(), "{name}");
    }
}

#[test]
fn systemd_accepts_the_units_of_the_module() {
    let builder = Builder::new();
    let dir = scratch_dir("nixos-units");
    for machine in ["least", "full", "several", "beside"] {
        // What is run has to exist.
        builder.build_file(if machine == "several" { "least" } else { machine }).expect_success("the file");
        let units = builder.machine(machine, "units");
        let mut files = Vec::new();
        for (kind, end) in [("services", "service"), ("sockets", "socket")] {
            for (name, unit) in units[kind].as_object().unwrap() {
                let file = dir.path().join(format!("{name}.{end}"));
                fs::write(&file, text_of(unit, dir.path())).unwrap();
                files.push(file);
            }
        }
        let mut command = Command::new("systemd-analyze");
        // A unit may name another one of the same directory.
        command.env("SYSTEMD_UNIT_PATH", format!("{}:", dir.path().display()));
        command.args(["verify", "--man=no", "--recursive-errors=no"]).args(&files);
        let verified = finish(&mut command);
        assert_eq!(verified.stderr.trim(), "", "{machine}: systemd-analyze says nothing about good units");
        verified.expect_success("systemd-analyze verify");
    }
}

/// A unit as NixOS writes it.
fn text_of(unit: &Value, dir: &Path) -> String {
    let mut text = format!("[Unit]\nDescription={}\n", unit["description"].as_str().unwrap());
    for (key, name) in [("after", "After"), ("before", "Before"), ("wants", "Wants"), ("requires", "Requires")] {
        for value in unit[key].as_array().into_iter().flatten() {
            text += &format!("{name}={}\n", value.as_str().unwrap());
        }
    }
    for (key, name) in [("serviceConfig", "Service"), ("socketConfig", "Socket")] {
        if !unit[key].is_object() {
            continue;
        }
        text += &format!("[{name}]\n");
        written(&unit[key]).iter().for_each(|(key, value)| text += &format!("{key}={value}\n"));
        // NixOS makes a program of a script.
        if let Some(script) = unit["script"].as_str() {
            let file = dir.join("script");
            fs::write(&file, format!("#!/bin/sh\n{script}")).unwrap();
            text += &format!("ExecStart=/bin/sh {}\n", file.display());
        }
    }
    text
}

#[test]
fn the_file_is_checked_while_the_system_is_built() {
    let builder = Builder::new();
    let read = |name: &str| {
        let path = builder.build_file(name).expect_success("a file that narmesh accepts");
        fs::read_to_string(path).unwrap().parse::<toml::Table>().unwrap()
    };
    let least = read("least");
    assert_eq!(least["node"]["state_dir"].as_str(), Some("/var/lib/narmesh"));
    assert_eq!(least["node"]["key_file"].as_str(), Some("/var/lib/narmesh/node.key"));
    assert_eq!(least["trust"]["builder_key_file"].as_str(), Some("/var/lib/narmesh/builder.key"));
    assert_eq!(least["gateway"]["sign"].as_bool(), Some(true));
    let full = read("full");
    assert_eq!(full["node"]["name"].as_str(), Some("one \"quoted\" \\"), "what was written comes out");
    assert_eq!(full["node"]["key_file"].as_str(), Some("/run/credentials/narmesh.service/node.key"));
    assert_eq!(full["peer"][0]["addresses"][0].as_str(), Some("/dns/two.example/tcp/7280"));
    assert!(read("beside").get("trust").is_none(), "no builder key");
    let said = builder.build_file("refused").expect_failure("a value out of bounds");
    for words in ["limits.uploads_total", "accepted", "65536"] {
        assert!(said.contains(words), "{words} is not in what Nix says:\n{said}");
    }
}

#[test]
fn nix_asks_the_gateway_as_the_operator_wants() {
    let builder = Builder::new();
    let full = builder.machine("full", "nix");
    let key = "narmesh-gateway-one:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    // It has upstream caches, so Nix needs no other substituter.
    assert_eq!(full["settings"]["substituters"], serde_json::json!(["http://127.0.0.1:7281"]));
    assert_eq!(full["settings"]["trusted-public-keys"], serde_json::json!([key]));
    assert_eq!(full["extraOptions"], "");
    let beside = builder.machine("beside", "nix");
    let both: BTreeSet<_> =
        beside["settings"]["substituters"].as_array().unwrap().iter().map(Value::to_string).collect();
    assert_eq!(both, ["\"http://127.0.0.1:7281\"", "\"https://cache.nixos.org/\""].map(str::to_owned).into());
    assert_eq!(beside["extraOptions"], "!include /run/narmesh-nix-key/nix.conf\n");
    assert_eq!(builder.machine("least", "nix")["settings"], serde_json::json!({}), "it is off by default");
    let units = builder.machine("beside", "units");
    assert!(units["services"]["narmesh-nix-key"]["script"].as_str().unwrap().contains("id --gateway-key"));
    assert_eq!(builder.machine("full", "units")["services"].as_object().unwrap().len(), 1);
}

#[test]
fn several_daemons_share_nothing() {
    let builder = Builder::new();
    let units = builder.machine("several", "units");
    let names = |kind: &str| units[kind].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        (names("services"), names("sockets")),
        (vec!["narmesh".into(), "narmesh-lab".into()], vec!["narmesh".into()])
    );
    let lab = &units["services"]["narmesh-lab"]["serviceConfig"];
    assert_eq!((&lab["User"], &lab["StateDirectory"]), (&Value::from("narmesh-lab"), &Value::from("narmesh-lab")));
    let users = builder.machine("several", "users");
    assert_eq!(users["users"].as_object().unwrap().len(), 2);
    let ports = |name: &str| builder.machine(name, "networking")["firewall"]["allowedTCPPorts"].clone();
    assert_eq!(ports("several"), serde_json::json!([7380]));
    assert_eq!(ports("full"), serde_json::json!([7280, 7280, 7282]), "not the listener of loopback");
    assert_eq!(ports("least"), serde_json::json!([]));
    // Without the first daemon there is nothing at /etc.
    assert_eq!(builder.machine("only_an_instance", "etc"), serde_json::json!({}));
    assert_eq!(builder.machine("only_an_instance", "problems"), serde_json::json!([]));
}

#[test]
fn mistakes_are_named_when_the_system_is_evaluated() {
    let builder = Builder::new();
    let problems = builder.machine("contradictory", "problems").to_string();
    for words in [
        "one settings.gateway.listen: 127.0.0.1:7281, 127.0.0.1:7281; accepted",
        "setupNix.enable needs services.narmesh.enable",
        "narmesh-b has builderKeyFile = /run/secrets/builder.key and signBuilds = false; accepted",
        "instances.Lab: accepted",
    ] {
        assert!(problems.contains(words), "{words} is not in {problems}");
    }
    assert!(builder.refusal("misspelt", "problems").contains("services.narmesh.openFirwall' does not exist"));
    assert!(
        builder.refusal("of_another_type", "etc").contains("`services.narmesh.settings.trust.builder_key_file' is not")
    );
}

#[test]
fn flake_and_default_nix_give_package_module_and_test() {
    let builder = Builder::new();
    let seen = builder.evaluate("flake.nix", &[]);
    for (output, names) in [
        ("packages", &["aarch64-linux", "x86_64-linux"][..]),
        ("checks", &["aarch64-linux", "x86_64-linux"]),
        ("devShells", &["aarch64-linux", "x86_64-linux"]),
        ("formatter", &["aarch64-linux", "x86_64-linux"]),
        ("overlays", &["default"]),
        ("nixosModules", &["default"]),
    ] {
        assert_eq!(seen["names"][output], serde_json::json!(names), "{output}");
    }
    let manifest: toml::Table = fs::read_to_string(repository_root().join("Cargo.toml")).unwrap().parse().unwrap();
    assert_eq!(seen["version"].as_str(), manifest["workspace"]["package"]["version"].as_str());
    assert_eq!(seen["commits"], serde_json::json!(["0123456789abcdef0123456789abcdef01234567", ""]));
    for machine in [&seen["of_flake"], &seen["without_flake"], &seen["nodes"]["one"], &seen["nodes"]["two"]] {
        assert_eq!(machine["problems"], serde_json::json!([]));
    }
    assert_eq!(seen["nodes"]["two"]["services"], serde_json::json!(["narmesh", "narmesh-nix-key"]));
}

/// `docs/nixos.md` from here to its end is made of the options.
const OPTIONS: &str = "\n## Options\n";

#[test]
fn docs_nixos_has_each_option_as_the_module_describes_it() {
    let builder = Builder::new();
    let options = builder.evaluate("system.nix", &["-A", "options"]);
    let text = fs::read_to_string(repository_root().join("docs/nixos.md")).unwrap();
    let (prose, _) = text.split_once(OPTIONS).expect("the document has its options at the end");
    let mut made = format!("{prose}{OPTIONS}");
    for option in options.as_array().unwrap() {
        let field = |name: &str| option[name].as_str().map(str::trim_end);
        made += &format!("\n### {}\n{}\n\n", field("name").unwrap(), field("description").unwrap());
        made += &format!("Type: {}. Default: {}.\n", field("type").unwrap(), code(field("default").unwrap()));
        if let Some(example) = field("example") {
            made += &format!("\nExample:\n\n```nix\n{example}\n```\n");
        }
    }
    assert_is_current("docs/nixos.md", &made);
}

fn code(text: &str) -> String {
    format!("`{text}`")
}
