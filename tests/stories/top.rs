//! `narmesh top` in a terminal, and without one.

use std::process::Command;

use narmesh_tests::{TestMesh, TestNode, finish, narmesh_binary};

/// Runs a command in a terminal of its own, types what is given once the screen is there, and prints what came, what is
/// written to the terminal, the exit status, and whether the terminal is as it was.
const IN_A_TERMINAL: &str = r#"
import os, pty, sys, termios, time, select, fcntl, struct
keys, command = sys.argv[1].encode().decode("unicode_escape").encode(), sys.argv[2:]
parent, child = pty.openpty()
fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
before = termios.tcgetattr(child)
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(child, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2): os.dup2(child, fd)
    os.execv(command[0], command)
seen, until, typed = b"", time.time() + 60, False
while time.time() < until:
    if select.select([parent], [], [], 0.1)[0]: seen += os.read(parent, 65536)
    if not typed and b"\x1b[?25l" in seen and seen.count(b"\x1b[H") >= 2:
        os.write(parent, keys); typed = True
    done, status = os.waitpid(pid, os.WNOHANG)
    if done: break
else:
    os.kill(pid, 9); status = -1
while select.select([parent], [], [], 0.1)[0]: seen += os.read(parent, 65536)
print(status, termios.tcgetattr(child) == before)
print(seen.decode(errors="replace"))
"#;

#[track_caller]
fn top_in_a_terminal(node: &TestNode, keys: &str) -> String {
    let mut python = Command::new("python3");
    python.args(["-c", IN_A_TERMINAL, keys]).arg(narmesh_binary()).arg("--config").arg(node.config_file()).arg("top");
    finish(&mut python).expect_success("python3")
}

#[test]
fn the_screen_is_drawn_and_the_terminal_is_as_before_however_it_ends() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    node.start();
    for keys in ["q", "\\x03", "Q"] {
        let seen = top_in_a_terminal(&node, keys);
        assert!(seen.starts_with("0 True"), "{keys}: {seen:?}");
        assert!(seen.contains("machines connected") && seen.contains("on its way: 0"), "{keys}: {seen:?}");
        assert!(seen.trim_end().ends_with("\u{1b}[?25h\u{1b}[?1049l"), "{keys}: {seen:?}");
    }
    // Without a terminal it prints once, and nothing that a file should not have.
    let printed = node.narmesh(&["top"]).expect_success("narmesh top");
    assert!(printed.contains("machines connected") && !printed.contains('\u{1b}'), "{printed:?}");
    assert!(node.terminate().success());
    let refused = node.narmesh(&["top"]).expect_failure("without a daemon");
    assert!(refused.contains("no narmesh daemon answers"), "{refused}");
}
