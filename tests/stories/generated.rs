//! What the program makes of its own command line: completions, manual pages, and the version that it names.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use narmesh_tests::{TestMesh, finish, narmesh_binary, repository_root, scratch_dir};

fn narmesh(words: &[&str]) -> String {
    finish(Command::new(narmesh_binary()).args(words)).expect_success(&format!("narmesh {words:?}"))
}

#[test]
fn each_shell_completes_commands_and_options() {
    let scratch = scratch_dir("completions");
    let written = |shell: &str| {
        let file = scratch.path().join(format!("narmesh.{shell}"));
        fs::write(&file, narmesh(&["completions", shell])).unwrap();
        file.display().to_string()
    };
    let in_bash = format!(
        "source {} && COMP_WORDS=(narmesh check) COMP_CWORD=1 && _narmesh narmesh check narmesh && echo \"${{COMPREPLY[@]}}\"",
        written("bash")
    );
    let in_fish = format!("source {}; complete --do-complete 'narmesh check'", written("fish"));
    // Zsh completes only at a terminal. It reads the file, and knows whom to call for which command.
    let in_zsh = format!(
        "autoload -U compinit; compinit -u -d {}/dump; source {}; print -r -- $_comps[narmesh]; functions _narmesh_commands",
        scratch.path().display(),
        written("zsh")
    );
    for (shell, words, wanted) in [
        ("bash", ["--norc", "-c", &in_bash], "check-config"),
        ("fish", ["--no-config", "-c", &in_fish], "check-config"),
        ("zsh", ["-f", "-c", &in_zsh], "check-config"),
    ] {
        let mut command = Command::new(shell);
        let said = finish(command.args(words).env("HOME", scratch.path()));
        assert_eq!(said.stderr, "", "{shell}");
        let said = said.expect_success(shell);
        assert!(said.contains(wanted), "{shell} completes to:\n{said}");
    }
    let said = finish(Command::new(narmesh_binary()).args(["completions", "tcsh"])).expect_failure("another shell");
    assert!(said.contains("bash") && said.contains("zsh"), "{said}");
}

#[test]
fn each_command_has_a_manual_page_that_man_reads_without_complaint() {
    let scratch = scratch_dir("man");
    let dir = scratch.path().join("not/there/yet");
    narmesh(&["man", dir.to_str().unwrap()]);
    let pages: BTreeSet<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    for page in ["narmesh.1", "narmesh-init.1", "narmesh-mesh-create.1", "narmesh-check-config.1"] {
        assert!(pages.contains(page), "{page} is not among {pages:?}");
    }
    for page in &pages {
        let mut man = Command::new("man");
        man.args(["--warnings", "--encoding=UTF-8", "--local-file"]).arg(dir.join(page));
        let read = finish(man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80").env("MANROFFSEQ", ""));
        assert_eq!(read.stderr, "", "{page}");
        assert!(read.expect_success("man").contains("SYNOPSIS"), "{page}");
        // Errors only: it would rather have another macro package, which clap_mangen does not write.
        let lint = finish(Command::new("mandoc").args(["-T", "lint", "-W", "error"]).arg(dir.join(page)));
        assert_eq!(lint.stdout, "", "{page}");
        lint.expect_success("mandoc");
    }
}

#[test]
fn version_names_the_commit_of_a_checkout() {
    let mut git = Command::new("git");
    let commit = finish(git.arg("-C").arg(repository_root()).args(["rev-parse", "--short=12", "HEAD"]));
    let manifest: toml::Table = fs::read_to_string(repository_root().join("Cargo.toml")).unwrap().parse().unwrap();
    let version = manifest["workspace"]["package"]["version"].as_str().unwrap();
    let wanted = match commit.status.success() {
        true => format!("narmesh {version} ({})", commit.stdout.trim()),
        // A tarball knows no commit.
        false => format!("narmesh {version}"),
    };
    assert_eq!(narmesh(&["--version"]), wanted);
}

#[test]
fn keys_of_a_configuration_that_others_wrote_are_made_once() {
    let mesh = TestMesh::new();
    let node = mesh.node("a");
    node.write_config();
    let said = node.narmesh(&["id", "--gateway-key"]).expect_failure("no key yet, and nothing is signed");
    assert!(said.contains("gateway.sign") && said.contains("init --keys"), "{said}");
    let signing = fs::read_to_string(node.config_file()).unwrap().replace("[gateway]\n", "[gateway]\nsign = true\n");
    let signing = signing.replace("sign = false\n", "");
    fs::write(node.config_file(), &signing).unwrap();
    for key in ["node.key", "builder.key", "state/gateway.key"] {
        fs::remove_file(node.dir().join(key)).unwrap();
    }
    let first = node.narmesh(&["init", "--keys"]).expect_success("init --keys");
    assert_eq!(first.matches("wrote ").count(), 3, "{first}");
    for key in ["node.key", "builder.key", "state/gateway.key"] {
        let mode = fs::metadata(node.dir().join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let second = node.narmesh(&["init", "--keys"]).expect_success("init --keys again");
    assert_eq!((second.matches("kept  ").count(), second.matches("wrote ").count()), (2, 0), "{second}");
    assert_eq!(second.lines().last(), first.lines().last(), "one peer id");
    assert_eq!(fs::read_to_string(node.config_file()).unwrap(), signing, "the configuration is left alone");
    let key = node.narmesh(&["id", "--gateway-key"]).expect_success("id --gateway-key");
    assert!(key.starts_with("narmesh-gateway-") && key.lines().count() == 1, "{key}");
    node.narmesh(&["check-config"]).expect_success("check-config");
    node.narmesh(&["init", "--keys", "--force"]).expect_failure("options that contradict each other");
}

#[test]
fn offline_check_needs_nothing_of_the_machine() {
    let scratch = scratch_dir("offline");
    let file = scratch.path().join("narmesh.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        let mut command = Command::new(narmesh_binary());
        command.env_clear().arg("--config").arg(&file).args(["check-config", "--offline"]);
        finish(&mut command)
    };
    let elsewhere = "[node]\nkey_file = '/run/credentials/x/node.key'\nstate_dir = '/var/lib/of/another'\n\
        control_group = 'no-such-group'\n[trust]\nbuilder_key_file = '/nowhere/builder.key'\n[store]\nroot = '/nowhere'\n\
        [[upstream]]\nname = 'a'\nurl = 'https://cache.invalid'\ntoken_file = '/nowhere/token'\n\
        [[gateway.listener]]\naddress = '192.0.2.1:1'\nrole = 'site'\ntokens_file = '/nowhere/tokens'\n\
        [quorum]\nmode = 'observe'\nk = 1\ncount_own_rebuild = true\n";
    let said = check(elsewhere).expect_success("a configuration of another machine");
    assert!(said.contains("is valid") && said.contains("1 upstream") && said.contains("warning: "), "{said}");
    assert!(!scratch.path().join("state").exists());
    let said = check(&elsewhere.replace("k = 1", "k = 2")).expect_failure("more groups than there are");
    assert!(said.contains("quorum.k"), "{said}");
    let said = check(&elsewhere.replace("'site'", "'sight'")).expect_failure("no such role");
    assert!(said.contains("role") && said.contains("accepted"), "{said}");
}

/// The names of the commands in a help text.
fn commands_of(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter(|line| !line.starts_with("    ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// The help of a command and of those below it, as sections of a page.
fn help_of(command: &[String], page: &mut String) {
    let help = finish(Command::new(narmesh_binary()).args(command).arg("--help")).expect_success("--help");
    let name: Vec<&str> = std::iter::once("narmesh").chain(command.iter().map(String::as_str)).collect();
    *page += &format!("\n{} {}\n```text\n{}\n```\n", "#".repeat(name.len() + 1), name.join(" "), help.trim_end());
    for below in commands_of(&help) {
        help_of(&[command, &[below]].concat(), page);
    }
}

#[test]
fn docs_command_line_has_the_help_of_each_command() {
    let mut page = "# Command line\n\nWhat `--help` says, command by command. It is the same as the manual pages that `narmesh man DIR` writes.\n".to_owned();
    help_of(&[], &mut page);
    assert_is_current("docs/command-line.md", &page);
}

/// Asserts that the document is what was made; writes it first if `NARMESH_WRITE_DOCS` is set.
#[track_caller]
pub(crate) fn assert_is_current(document: &str, made: &str) {
    let file = repository_root().join(document);
    if std::env::var_os("NARMESH_WRITE_DOCS").is_some() {
        fs::write(&file, made).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap();
    assert!(written == made, "{document} is not current; NARMESH_WRITE_DOCS=1 cargo test … writes it anew");
}
