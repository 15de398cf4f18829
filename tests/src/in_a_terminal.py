# Runs a command in a terminal of its own, and prints its exit status, whether the terminal is as it was, and what was written to
# it. Once a screen is drawn, it types the keys that are given, or sends a signal (`signal:TERM`);
# `nothing` waits for the end. python3 -c THIS KEYS COMMAND…
import fcntl, os, pty, select, signal, struct, sys, termios, time

keys, command = sys.argv[1].encode().decode("unicode_escape").encode(), sys.argv[2:]
parent, child = pty.openpty()
fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
before = termios.tcgetattr(child)
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(child, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(child, fd)
    os.execv(command[0], command)
seen, until, acted = b"", time.time() + 60, keys == b"nothing"
while time.time() < until:
    if select.select([parent], [], [], 0.1)[0]:
        seen += os.read(parent, 65536)
    if not acted and b"\x1b[?25l" in seen and seen.count(b"\x1b[H") >= 2:
        acted = True
        # It is raw now, or the comparison at the end would say nothing.
        assert termios.tcgetattr(child) != before, seen
        if keys.startswith(b"signal:"):
            os.kill(pid, getattr(signal, "SIG" + keys[7:].decode()))
        else:
            os.write(parent, keys)
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
else:
    os.kill(pid, signal.SIGKILL)
    status = -1
while select.select([parent], [], [], 0.1)[0]:
    seen += os.read(parent, 65536)
print(status, termios.tcgetattr(child) == before)
print(seen.decode(errors="replace"))
