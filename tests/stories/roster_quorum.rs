//! Builders of a mesh that count together: their roster names them and their groups, and no configuration does.

use std::fs;

use narmesh_tests::{TestMesh, TestNode, promised, wait_for, wait_until};
use serde_json::Value;

use crate::membership::{HEARD, founder, invite, join, list, machine, wait_met};

/// Two builders must agree, and whoever is a builder of the roster counts.
const RULES: &str = "\n[quorum]\nmode = 'require'\nk = 2\nfrom_roster = true\n";

/// Waits until the verdict on a path is `wanted`; returns the report.
fn wait_verdict(node: &TestNode, path: &str, wanted: &str) -> Value {
    wait_for(&format!("{path} is {wanted}"), promised(5 * HEARD), || {
        let said = node.narmesh(&["quorum", "report", "--json", "--path", path]).stdout;
        let report: Value = serde_json::from_str(&said).ok()?;
        (report["paths"][0]["verdict"] == *wanted).then_some(report)
    })
}

fn member(node: &TestNode, name: &str) -> Value {
    let list = list(node);
    let members = list["members"].as_array().expect("members");
    members.iter().find(|member| member["name"] == name).expect("a member").clone()
}

fn builder(node: &TestNode, name: &str) -> Option<Value> {
    let status = node.status();
    let builders = status.0["builders"].as_array().cloned().unwrap_or_default();
    builders.into_iter().find(|builder| builder["name"] == name)
}

/// Three machines that join by tokens. The client follows [`RULES`]; the two builders have built the same.
#[test]
fn builders_of_the_roster_count_under_their_groups_until_they_are_none_any_more() {
    let mesh = TestMesh::new();
    let mut founder = machine(&mesh, "founder");
    let mut second = machine(&mesh, "second");
    let lib = founder.store.build_one("lib");
    assert_eq!(second.store.build_one("lib"), lib);
    founder.start();
    founder.narmesh(&["mesh", "create", "home"]).expect_success("mesh create");
    second.start();
    join(&second, &invite(&founder, &["--role", "builder", "--group", "rack 2", "--relay"]));
    let mut client = machine(&mesh, "client");
    client.config.more = RULES.to_owned();
    client.write_config();
    join(&client, &invite(&founder, &[]));
    client.start_as_written(None);
    for other in [&founder, &second] {
        wait_met(other, &client);
    }
    let seen = member(&client, "second");
    assert_eq!((&seen["group"], &seen["relay"]), (&"rack 2".into(), &true.into()));

    // Two machines of different groups have got the same. Nothing but the roster names them.
    let report = wait_verdict(&client, &lib, "agreed");
    assert_eq!(report["builders_from_roster"].as_array().map(Vec::len), Some(2), "{report}");
    client.trust_the_gateway_alone();
    assert_eq!(client.get_narinfo(&lib).status, 200);
    let counted = builder(&client, "second").expect("it counts");
    assert_eq!((&counted["group"], &counted["from_roster"]), (&"rack 2".into(), &true.into()));
    let status = client.narmesh(&["status"]).expect_success("status");
    assert!(status.contains("rack 2") && status.contains("roster"), "{status}");
    let checked = client.narmesh(&["check-config"]).expect_success("check-config");
    assert!(checked.contains("founder (roster)") && checked.contains("second of rack 2 (roster)"), "{checked}");

    // Of one group, two builders have one voice.
    founder.narmesh(&["mesh", "group", "founder", "rack 2"]).expect_success("mesh group");
    wait_verdict(&client, &lib, "short");
    assert_eq!(client.get_narinfo(&lib).status, 404);
    founder.narmesh(&["mesh", "group", "founder"]).expect_success("mesh group without a group");
    wait_verdict(&client, &lib, "agreed");
    // Another name is the same builder.
    founder.narmesh(&["mesh", "rename", "second", "other"]).expect_success("mesh rename");
    wait_until("the new name is shown", promised(HEARD), || builder(&client, "other").is_some());
    wait_verdict(&client, &lib, "agreed");
    assert!(builder(&client, "second").is_none());
    // A client does not count, whatever it attested before.
    founder.narmesh(&["mesh", "role", "other", "client"]).expect_success("mesh role");
    wait_verdict(&client, &lib, "short");
    founder.narmesh(&["mesh", "role", "other", "builder"]).expect_success("mesh role");
    wait_verdict(&client, &lib, "agreed");
    assert_eq!(client.get_narinfo(&lib).status, 200);
    founder.narmesh(&["mesh", "remove", "other"]).expect_success("mesh remove");
    wait_verdict(&client, &lib, "short");
    assert_eq!(client.get_narinfo(&lib).status, 404, "one is not enough");
    client.wait_logged(&["quorum.k = 2 is out of reach"]);
}

#[test]
fn a_builder_that_the_configuration_names_counts_once_and_as_written_there() {
    let mesh = TestMesh::new();
    let founder = founder(&mesh);
    let mut client = machine(&mesh, "client");
    let key = founder.builder_key();
    client.config.more = format!(
        "{}[[builder]]\nname = 'box'\npublic_key = '{key}'\ngroup = 'ours'\n",
        RULES.replace("'require'", "'observe'")
    );
    client.write_config();
    join(&client, &invite(&founder, &["--group", "a group of its own"]));
    client.start_as_written(None);
    wait_met(&founder, &client);
    let box_ = builder(&client, "box").expect("the configured one");
    assert_eq!(
        (&box_["group"], &box_["from_roster"], &box_["peer"]),
        (&"ours".into(), &false.into(), &"founder".into())
    );
    assert!(builder(&client, "founder").is_none(), "it counts once");
    // Without a daemon the roster counts as well.
    client.kill();
    let checked = client.narmesh(&["check-config"]).expect_success("check-config");
    assert!(checked.contains("builders that count: box of ours (configuration)"), "{checked}");
    assert!(checked.contains("quorum.k = 2 is out of reach"), "{checked}");
    fs::write(client.config_file(), fs::read_to_string(client.config_file()).unwrap().replace("k = 2", "k = 0"))
        .unwrap();
    client.narmesh(&["check-config"]).expect_failure("no k");
    let bad = founder.narmesh(&["mesh", "group", "founder", " x"]).expect_failure("a bad name");
    assert!(bad.contains("group \" x\" is refused"), "{bad}");
}
