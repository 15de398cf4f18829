//! The whole terminal, for as long as a command shows something live there.
//!
//! A terminal that stays without echo and on its second screen cannot be used until somebody types `reset` blindly. So what
//! was there is restored once, by whichever comes first: the end of the command, a signal, or a panic.

use parking_lot::Mutex;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;
use std::{panic, thread};
use tokio::signal::unix::{SignalKind, signal};

/// The terminal of the open screen, and how it was before.
static BEFORE: Mutex<Option<(File, Termios)>> = Mutex::new(None);

/// Bytes that one key sends at most; an arrow sends three.
const KEY_BYTES_MAX: usize = 16;

/// The alternate screen without a cursor; dropping it restores what was there.
pub(super) struct Screen {
    asked_to_end: Receiver<()>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let keyboard = keyboard()?;
        let before = tcgetattr(&keyboard)?;
        let mut raw = before.clone();
        raw.make_raw();
        // What is written goes on as it did: only keys are wanted at once.
        raw.output_modes = before.output_modes;
        let (ends, asked_to_end) = mpsc::channel();
        // Before anything changes, because a signal may come between any two lines.
        end_on_signals(ends.clone())?;
        restore_on_panic();
        let keys = keyboard.try_clone()?;
        *BEFORE.lock() = Some((keyboard.try_clone()?, before));
        let screen = Self { asked_to_end };
        tcsetattr(&keyboard, OptionalActions::Drain, &raw)?;
        write("\x1b[?1049h\x1b[?25l")?;
        end_on_keys(keys, ends)?;
        Ok(screen)
    }

    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        // Each line is ended with "erase to the right", and the rest of the screen is erased: that does not flicker.
        let text = lines.iter().map(|line| format!("{line}\x1b[K")).collect::<Vec<_>>().join("\r\n");
        write(&format!("\x1b[H{text}\x1b[J"))
    }

    /// Waits so long, or until a key or a signal ends this. Returns whether one did.
    pub(super) fn wait(&self, long: Duration) -> bool {
        !matches!(self.asked_to_end.recv_timeout(long), Err(RecvTimeoutError::Timeout))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// The keys come from the terminal, also where standard input is something else.
fn keyboard() -> io::Result<File> {
    let stdin = io::stdin();
    if stdin.is_terminal() { Ok(File::from(stdin.as_fd().try_clone_to_owned()?)) } else { File::open("/dev/tty") }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Restores what was there; does nothing the second time. If the terminal is gone, there is nothing to restore.
fn restore() {
    let Some((terminal, before)) = BEFORE.lock().take() else { return };
    tcsetattr(&terminal, OptionalActions::Drain, &before).ok();
    drop(write("\x1b[?25h\x1b[?1049l"));
}

/// Before the message of the panic, which would vanish together with the second screen.
fn restore_on_panic() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        restore();
        print(what);
    }));
}

/// From now on these signals end the screen, and not the process before it has cleaned up.
fn end_on_signals(ends: Sender<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()];
    let listening = {
        let _context = runtime.enter();
        kinds.into_iter().map(signal).collect::<io::Result<Vec<_>>>()?
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let received = listening.into_iter().map(|mut signal| Box::pin(async move { signal.recv().await }));
        runtime.block_on(futures::future::select_all(received));
        // Fails if the screen is closed already.
        ends.send(()).ok();
    })?;
    Ok(())
}

/// Reading a key blocks, and the screen goes on.
fn end_on_keys(mut keys: File, ends: Sender<()>) -> io::Result<()> {
    thread::Builder::new().name("keys".to_owned()).spawn(move || {
        let mut typed = [0; KEY_BYTES_MAX];
        while let Ok(count @ 1..) = keys.read(&mut typed)
            && !typed.get(..count).is_some_and(ends_screen)
        {}
        // Fails if the screen is closed already.
        ends.send(()).ok();
    })?;
    Ok(())
}

/// q, Ctrl-C and Escape. An Escape with more behind it is another key, such as an arrow.
fn ends_screen(typed: &[u8]) -> bool {
    typed == [0x1b] || (typed.first() != Some(&0x1b) && typed.iter().any(|byte| matches!(byte, b'q' | b'Q' | 3)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::process::Command;

    #[test]
    fn only_keys_that_say_so_end_it() {
        for ends in [&b"q"[..], b"Q", b"\x03", b"\x1b", b"xq"] {
            assert!(ends_screen(ends), "{ends:?}");
        }
        for other in [&b"x"[..], b"\x1b[A", b"\x1bq", b"\r", b""] {
            assert!(!ends_screen(other), "{other:?}");
        }
    }

    /// What the test below runs in a terminal; by itself it does nothing.
    #[test]
    fn panics_with_an_open_screen() {
        if env::var_os("NARMESH_TEST_PANIC").is_some() {
            let screen = Screen::open().unwrap();
            for _ in 0..3 {
                screen.draw(&["drawn".to_owned()]).unwrap();
            }
            panic!("the reason");
        }
    }

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was_and_its_message_to_be_read() {
        let mut python = Command::new("python3");
        python.args(["-c", include_str!("../../../tests/src/in_a_terminal.py"), "nothing"]);
        python.arg(env::current_exe().unwrap());
        python.args(["--exact", "cli::screen::tests::panics_with_an_open_screen", "--nocapture"]);
        let seen = python.env("NARMESH_TEST_PANIC", "1").output().unwrap();
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        let (first, rest) = seen.split_once('\n').unwrap();
        assert!(first.ends_with(" True"), "{seen:?}");
        let (drawn, said) = rest.split_once("\u{1b}[?25h\u{1b}[?1049l").unwrap();
        assert!(drawn.contains("drawn") && !drawn.contains("the reason") && said.contains("the reason"), "{seen:?}");
    }
}
