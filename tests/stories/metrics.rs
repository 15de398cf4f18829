//! What Prometheus and Grafana make of `/metrics`.

use crate::generated::assert_is_current;
use narmesh_tests::{TestMesh, finish, get, promised, repository_root, target_directory, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Verdicts are counted within this time after the start.
const LOOKED: Duration = Duration::from_secs(5);

/// The names by which these metrics can be asked for.
fn names_of(metrics: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for family in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = family.split_once(' ').unwrap();
        let endings: &[_] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        names.extend(endings.iter().map(|ending| format!("{name}{ending}")));
    }
    names
}

/// The queries of a board.
fn queries_of(board: &Value) -> Vec<String> {
    match board {
        Value::Object(fields) => {
            let own = ["expr", "query"].into_iter().filter_map(|field| Some(fields.get(field)?.as_str()?.to_owned()));
            own.chain(fields.values().flat_map(queries_of)).collect()
        }
        Value::Array(items) => items.iter().flat_map(queries_of).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn promtool_accepts_metrics_and_alerts_and_no_other_metrics_are_asked_for() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("a");
    let key = node.builder_key();
    node.config.more = format!("[quorum]\nmode = 'observe'\nk = 1\n[[builder]]\nname = 'a'\npublic_key = '{key}'\n");
    node.start();
    let metrics = wait_for("a first look at what is attested", promised(LOOKED), || {
        Some(get(node.gateway(), "/metrics").unwrap().text()).filter(|text| text.contains("narmesh_quorum_paths"))
    });

    let rules = repository_root().join("contrib/prometheus/narmesh.rules.yml");
    let program = target_directory().join("promtool/usr/bin/promtool");
    let checked = finish(Command::new(&program).args(["check", "rules"]).arg(&rules));
    checked.expect_success("promtool check rules");
    let mut promtool = Command::new(&program)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("./test.sh has taken promtool out of its package");
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let judged = promtool.wait_with_output().unwrap();
    let said = [judged.stdout, judged.stderr].concat();
    assert!(judged.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));

    let names = names_of(&metrics);
    let of_process = ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"];
    for name in of_process.into_iter().chain(["narmesh_build_info", "narmesh_mesh_sent_bytes_total"]) {
        assert!(names.contains(name), "{name} in {names:?}");
    }
    let board = std::fs::read(repository_root().join("contrib/grafana/narmesh.json")).unwrap();
    let queries = queries_of(&serde_json::from_slice(&board).unwrap());
    assert!(queries.len() > 20, "{queries:?}");
    let rules = std::fs::read_to_string(rules).unwrap();
    let alerts: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned).collect();
    assert!(alerts.len() > 4, "{alerts:?}");
    for query in queries.iter().chain(&alerts) {
        let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let asked = words.filter(|word| word.starts_with("narmesh_") || word.starts_with("process_"));
        asked.for_each(|name| assert!(names.contains(name), "{name} of {query:?} in {names:?}"));
    }
}

/// The labels of the samples of a family, in the order in which they stand there.
fn labels_of<'m>(metrics: &'m str, names: &[String]) -> Vec<&'m str> {
    let mut labels = Vec::new();
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    for (_, inner) in
        samples.filter_map(|line| line.split_once('{')).filter(|(name, _)| names.iter().any(|n| n == name))
    {
        let found = inner.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0));
        for label in found.filter(|label| *label != "le") {
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
    }
    labels
}

/// The page on metrics: each family with what it says of itself.
fn page_of(metrics: &str) -> String {
    let mut rows = std::collections::BTreeMap::new();
    let mut help = "";
    for line in metrics.lines() {
        if let Some((_, text)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            help = text.trim_end_matches('.');
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) else { continue };
        let names: Vec<String> = ["", "_bucket"].iter().map(|ending| format!("{name}{ending}")).collect();
        let labels: Vec<_> = labels_of(metrics, &names).iter().map(|label| format!("`{label}`")).collect();
        rows.insert(name, format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", ")));
    }
    let rows: String = rows.into_values().collect();
    format!(
        "# Metrics\n\nWhat `/metrics` of the gateway tells Prometheus, as it says it there. Labels are those that a daemon with a peer, \
         an upstream cache and a listener shows; some come with the first event. \
         [Operate](operations.md#how-is-it) names those worth an alarm.\n\n\
         | name | kind | labels | meaning |\n|---|---|---|---|\n{rows}"
    )
}

#[test]
fn docs_metrics_lists_each_metric() {
    let mesh = TestMesh::new();
    let [mut a, mut b] = ["a", "b"].map(|name| mesh.node(name));
    let key = a.builder_key();
    a.config.more = format!(
        "[quorum]\nmode = 'observe'\nk = 1\n[[builder]]\nname = 'a'\npublic_key = '{key}'\n\
         [[upstream]]\nname = 'cache'\nurl = 'file://{}'\n[[gateway.listener]]\naddress = '127.0.0.1:0'\nrole = 'serve'\n",
        mesh.path().display()
    );
    TestMesh::start_all(&mut [&mut a, &mut b]);
    let page = wait_for("a first look at what is attested", promised(LOOKED), || {
        let metrics = get(a.gateway(), "/metrics").unwrap().text();
        metrics.contains("narmesh_quorum_paths{").then(|| page_of(&metrics))
    });
    assert_is_current("docs/metrics.md", &page);
}
