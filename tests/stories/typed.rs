//! Commands of the documents' blocks: each is typed by a test that is named here, or there is a reason why none can.

use std::fs;

use narmesh_tests::{Shown, repository_root, shown_commands};

/// How it is known that commands of a document work.
enum Tried {
    /// By this test, in this file, which has these words: those of the command, or the name of the document that it reads.
    By { file: &'static str, test: &'static str, words: &'static str },
    /// By a stage of `test.sh` that has these words.
    InStage(&'static str),
    /// By nobody here, for this reason.
    Not(&'static str),
}

/// The document, how its commands begin (all that begin so), and how they are tried.
type Row = (&'static str, &'static str, Tried);

const fn by(file: &'static str, test: &'static str, words: &'static str) -> Tried {
    Tried::By { file, test, words }
}

const START: Tried = by(
    "tests/networks/first_path.rs",
    "five_machines_with_one_command_each_share_their_first_path_within_two_minutes",
    "docs/start.md",
);
const TWO_MACHINES: Tried =
    by("tests/stories/cli.rs", "the_quick_start_with_two_machines_works_as_written", r#""check-config", "--probe""#);
const JOIN: Tried = by(
    "tests/stories/membership.rs",
    "machines_join_with_one_command_each_and_share_what_builders_built",
    r#""mesh", "create", "home""#,
);
const SET_UP: Tried =
    by("tests/stories/membership.rs", "joining_can_set_nix_up_and_leaving_undoes_it", r#""join", "--setup-nix""#);
const MIGRATE: Tried = by(
    "tests/stories/migrate.rs",
    "machine_takes_over_its_cache_and_goes_back_by_the_commands_as_written",
    "docs/migrate.md",
);
const INSTALLED: Tried =
    by("tests/stories/installed.rs", "the_unit_can_read_and_write_what_init_creates", "systemd-sysusers");
const UNITS: Tried = by("tests/stories/systemd.rs", "systemd_accepts_the_units", "contrib/systemd");
const SERVE: Tried = by(
    "tests/stories/serving.rs",
    "a_machine_that_is_switched_off_gives_nothing_until_it_is_switched_on_also_after_a_restart",
    r#""serve", "off""#,
);
const TOKENS: Tried = by(
    "tests/stories/serving_others.rs",
    "clients_of_a_listener_with_tokens_need_one_that_counts",
    r#""token", "add", "ci""#,
);
const TWO_KEYS: Tried = by(
    "tests/stories/mesh_key.rs",
    "two_keys_in_the_place_of_one_are_shown_and_a_person_decides",
    r#""mesh", "rekey", "--accept""#,
);

const BUILT: Tried = Tried::InStage("cargo build");
const EDITED: Tried = Tried::Not("a person edits a file; a test writes what the document says");
const NO_SYSTEMD: Tried =
    Tried::Not("needs a machine that systemd has started; the stories of the units say what it would start");

const ROWS: &[Row] = &[
    ("README.md", "cargo run --release -p narmesh -- demo", Tried::InStage("demo --once")),
    ("README.md", "./test.sh", Tried::Not("it is what runs this test")),
    ("README.md", "cargo build --release -p narmesh", BUILT),
    (
        "README.md",
        "narmesh init --setup-nix",
        by(
            "tests/stories/cli.rs",
            "init_can_set_nix_up_and_leaves_to_nix_what_it_cannot_ask",
            r#""init", "--setup-nix""#,
        ),
    ),
    ("README.md", "narmesh mesh create home", JOIN),
    ("README.md", "narmesh run", START),
    ("README.md", "narmesh mesh invite --role builder", JOIN),
    ("README.md", "narmesh join --setup-nix", SET_UP),
    ("docs/start.md", "cargo build --release -p narmesh", BUILT),
    ("docs/start.md", "narmesh init --setup-nix", START),
    ("docs/start.md", "narmesh mesh ", START),
    ("docs/start.md", "narmesh run", START),
    ("docs/start.md", "narmesh join --setup-nix", START),
    ("docs/start.md", "nix-build -E", START),
    ("docs/start.md", "narmesh status", START),
    ("docs/start.md", "narmesh why", START),
    ("docs/start.md", "narmesh doctor", START),
    ("docs/start.md", "narmesh init --name", TWO_MACHINES),
    ("docs/start.md", "sudoedit", EDITED),
    ("docs/start.md", "systemctl restart nix-daemon", NO_SYSTEMD),
    ("docs/start.md", "narmesh check-config", TWO_MACHINES),
    (
        "docs/start.md",
        "narmesh leave",
        by("tests/networks/first_path.rs", "a_machine_that_leaves_is_as_it_was", "Going back"),
    ),
    ("docs/mesh.md", "narmesh mesh create home", JOIN),
    ("docs/mesh.md", "narmesh mesh invite", JOIN),
    ("docs/mesh.md", "narmesh join", JOIN),
    ("docs/mesh.md", "narmesh run", JOIN),
    (
        "docs/mesh.md",
        "narmesh mesh rekey --remove",
        by(
            "tests/stories/mesh_key.rs",
            "a_stolen_mesh_key_decides_nothing_after_a_rekey_not_even_for_who_was_away",
            r#""--remove", "stolen""#,
        ),
    ),
    ("docs/mesh.md", "narmesh mesh rekey --accept", TWO_KEYS),
    ("docs/mesh.md", "narmesh mesh import FILE --accept", TWO_KEYS),
    ("docs/migrate.md", "cp /etc/nix/nix.conf", MIGRATE),
    ("docs/migrate.md", "narmesh init --name one", MIGRATE),
    ("docs/migrate.md", "narmesh check-config --probe", MIGRATE),
    ("docs/migrate.md", "narmesh run", MIGRATE),
    ("docs/migrate.md", "narmesh doctor", MIGRATE),
    ("docs/migrate.md", "narmesh mesh create home", JOIN),
    ("docs/migrate.md", "narmesh mesh invite --role builder", JOIN),
    (
        "docs/operations.md",
        "install -m 0755",
        Tried::Not(
            "would write into /usr/local of this machine; the story of the installation runs the program from elsewhere",
        ),
    ),
    ("docs/operations.md", "install -m 0644 contrib/systemd/narmesh.service", UNITS),
    ("docs/operations.md", "install -m 0644 contrib/systemd/narmesh.sysusers", INSTALLED),
    ("docs/operations.md", "systemd-sysusers", INSTALLED),
    ("docs/operations.md", "narmesh init --name one", INSTALLED),
    ("docs/operations.md", "sudoedit", EDITED),
    ("docs/operations.md", "systemctl daemon-reload", NO_SYSTEMD),
    ("docs/operations.md", "systemctl enable --now narmesh.socket", NO_SYSTEMD),
    ("docs/operations.md", "narmesh serve", SERVE),
    ("docs/operations.md", "narmesh token", TOKENS),
    (
        "docs/operations.md",
        "install -D -o narmesh",
        by(
            "tests/stories/installed.rs",
            "a_renewed_certificate_is_copied_by_the_command_of_the_document",
            "docs/operations.md",
        ),
    ),
    (
        "docs/operations.md",
        "narmesh doctor",
        by(
            "tests/stories/doctor/daemon.rs",
            "configuration_that_the_daemon_has_not_read_is_named_and_reloaded",
            ".diagnose()",
        ),
    ),
    (
        "docs/benchmarks.md",
        "cargo run --release -p narmesh-bench",
        by("crates/bench/tests/command.rs", "commands_of_the_document_name_rows_that_there_are", "docs/benchmarks.md"),
    ),
    ("docs/fuzzing.md", "cargo test -p narmesh-fuzz", Tried::InStage("cargo test")),
    (
        "docs/fuzzing.md",
        "cargo run --profile fuzz -p narmesh-fuzz",
        by(
            "crates/fuzz/tests/commands.rs",
            "long_runs_of_the_document_begin_and_find_nothing_in_what_is_known",
            "docs/fuzzing.md",
        ),
    ),
    ("docs/fuzzing.md", "crates/fuzz/libfuzzer/run.sh", Tried::Not("needs a nightly compiler and cargo-fuzz")),
    ("docs/fuzzing.md", "MERGE=1 crates/fuzz/libfuzzer/run.sh", Tried::Not("needs a nightly compiler and cargo-fuzz")),
    (
        "docs/simulation.md",
        "cargo run --release -p narmesh-simulation",
        by(
            "simulation/tests/command.rs",
            "commands_of_the_document_run_as_written_on_fewer_machines",
            "docs/simulation.md",
        ),
    ),
];

fn read(file: &str) -> String {
    fs::read_to_string(repository_root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What is wrong with a row by itself.
fn fault(tried: &Tried) -> Option<String> {
    match tried {
        Tried::By { file, test, words } => {
            let source = read(file);
            let is_test = source.contains(&format!("#[test]\nfn {test}("));
            let problem = match (is_test, source.contains(words)) {
                (false, _) => "there is no such test",
                (true, false) => "its file has none of these words",
                (true, true) => return None,
            };
            Some(format!("{file}: {test}: {words:?}: {problem}"))
        }
        Tried::InStage(words) => (!read("test.sh").contains(words)).then(|| format!("test.sh has no {words:?}")),
        Tried::Not(why) => why.is_empty().then(|| "a reason is missing".to_owned()),
    }
}

#[test]
fn each_command_of_a_block_is_typed_by_a_test_or_has_a_reason() {
    let shown = shown_commands();
    let is_document = |shown: &&Shown| shown.is_in_block && shown.document.ends_with(".md");
    let commands: Vec<&Shown> = shown.iter().filter(is_document).collect();
    assert!(commands.len() > 60, "{}", commands.len());
    let is_of =
        |(document, begins, _): &Row, shown: &Shown| shown.document == *document && shown.text.starts_with(begins);
    let unknown: Vec<_> = commands.iter().filter(|shown| !ROWS.iter().any(|row| is_of(row, shown))).collect();
    assert!(unknown.is_empty(), "nothing here says which test types these: {unknown:#?}");
    for row in ROWS {
        let (document, begins, tried) = row;
        assert!(commands.iter().any(|shown| is_of(row, shown)), "{document} has no {begins:?} any more");
        assert_eq!(fault(tried), None, "{document}: {begins}");
    }
}

#[test]
fn a_row_that_names_what_is_not_there_would_be_noticed() {
    let file = "tests/stories/serving.rs";
    let test = "configuration_says_whether_and_when_peers_get_anything";
    assert!(fault(&by(file, "no_such_test", "serve")).is_some());
    assert!(fault(&by(file, test, "docs/no-such-document.md")).is_some());
    assert!(fault(&by(file, test, "serve")).is_none());
    assert!(fault(&Tried::InStage("no such stage")).is_some());
    assert!(fault(&Tried::Not("")).is_some());
}
