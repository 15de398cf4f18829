//! `narmesh top` in a terminal, and without one.

use narmesh_tests::TestMesh;

#[test]
fn the_screen_is_drawn_and_the_terminal_is_as_before_however_it_ends() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    node.start();
    for keys in ["q", "\\x03", "Q", "\\x1b", "signal:TERM", "signal:HUP", "signal:INT"] {
        let top = node.narmesh_in_a_terminal(&["top"], keys, &[]);
        assert!(top.is_success && top.is_restored, "{keys}: {top:?}");
        let seen = top.seen;
        assert!(seen.contains("machines connected") && seen.contains("on its way: 0"), "{keys}: {seen:?}");
        assert!(seen.contains("\u{1b}[1m"), "{keys}: in colours: {seen:?}");
        assert!(seen.trim_end().ends_with("\u{1b}[?25h\u{1b}[?1049l"), "{keys}: {seen:?}");
    }
    let plain = node.narmesh_in_a_terminal(&["top"], "q", &[("NO_COLOR", "1")]);
    assert!(plain.is_success && !plain.seen.contains("\u{1b}[1m"), "{plain:?}");
    // Without a terminal it prints once, and nothing that a file should not have.
    let printed = node.narmesh(&["top"]).expect_success("narmesh top");
    assert!(printed.contains("machines connected") && !printed.contains('\u{1b}'), "{printed:?}");
    assert!(node.terminate().success());
    let refused = node.narmesh(&["top"]).expect_failure("without a daemon");
    assert!(refused.contains("no narmesh daemon answers"), "{refused}");
}
