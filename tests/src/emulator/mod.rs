//! A network between tap devices, in user space, with delay, jitter, loss, rate and cuts that can change while it runs.
//!
//! A kernel without `sch_netem` can only limit rates. Here one thread is a switch: it reads the frames that machines send
//! into their taps, puts each copy on the line from its sender's site to its receiver's, and writes to the receiver's tap
//! what has arrived. docs/decisions/0014-own-link-emulator.md says why it is our own.
//!
//! Walk: [`Emulator::start`] is given taps with their sites, and lines; [`Emulator::set`] changes a line in both directions.
//! Invariants: frames of one line keep their order; a line loses the same frames for the same seed and the same traffic;
//! nothing waits longer than [`Link::queue_max`] for a line, which bounds the memory; the taps go with the emulator.

mod line;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tappers::Tap;

pub use line::{LineCounts, Link};

use line::Line;

/// Frames read from one tap before others have their turn.
const FRAMES_AT_ONCE: usize = 64;
/// Larger than any frame: a tap hands over several segments in one piece only when asked to, which this one is not.
const FRAME_BYTES_MAX: usize = 2_048;
/// Length of an Ethernet address, by which machines are known.
const ADDRESS_BYTES: usize = 6;

/// A place in the network, by a number that the caller chooses.
pub type Site = usize;

/// A running emulator.
#[derive(Debug)]
pub struct Emulator {
    state: Arc<Mutex<State>>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// A copy of a frame, and the number of the tap that it is on its way to.
type Copy = (usize, Arc<[u8]>);

#[derive(Debug)]
struct State {
    sites: Vec<Site>,
    lines: BTreeMap<(Site, Site), Line<Copy>>,
    /// The tap behind which each Ethernet address was last seen.
    learned: BTreeMap<[u8; ADDRESS_BYTES], usize>,
}

impl Emulator {
    /// Carries frames between `taps`, each in its site, until it is dropped. Machines of one site are joined by `near`,
    /// those of different sites by `far`.
    ///
    /// # Errors
    /// When the system refuses a thread or a descriptor.
    pub fn start(taps: Vec<(Tap, Site)>, near: Link, far: Link, seed: u64) -> io::Result<Self> {
        let (taps, sites): (Vec<_>, Vec<_>) = taps.into_iter().unzip();
        let count = sites.iter().max().map_or(0, |site| site + 1);
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        let lines = pairs
            .zip(seed..)
            .map(|((from, to), seed)| ((from, to), Line::new(if from == to { near } else { far }, seed)))
            .collect();
        let state = Arc::new(Mutex::new(State { sites, lines, learned: BTreeMap::new() }));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        let thread =
            thread::Builder::new().name("emulator".to_owned()).spawn(move || carry(&taps, &shared, &stopped))?;
        Ok(Self { state, stop, thread: Some(thread) })
    }

    /// Changes the lines between two sites, in both directions.
    pub fn set(&self, one: Site, other: Site, change: impl Fn(&mut Link)) {
        self.set_one_way(one, other, &change);
        if one != other {
            self.set_one_way(other, one, &change);
        }
    }

    /// Changes the line from one site to another, and not the way back.
    ///
    /// # Panics
    /// When there is no such site.
    pub fn set_one_way(&self, from: Site, to: Site, change: impl Fn(&mut Link)) {
        let mut state = self.locked();
        let line = state.lines.get_mut(&(from, to)).expect("a site of this emulator");
        let mut link = line.link();
        change(&mut link);
        line.set(link);
    }

    /// Cuts `site` off from all others, or joins it again.
    pub fn set_cut(&self, site: Site, cut: bool) {
        let sites: Vec<_> = self.locked().lines.keys().map(|(from, _)| *from).filter(|other| *other != site).collect();
        sites.into_iter().for_each(|other| self.set(site, other, |link| link.cut = cut));
    }

    /// Moves the tap of this number, in the order of [`Emulator::start`], to another site.
    ///
    /// # Panics
    /// When there is no such tap.
    pub fn move_tap(&self, tap: usize, site: Site) {
        *self.locked().sites.get_mut(tap).expect("a tap of this emulator") = site;
    }

    /// What became of the frames from one site to another.
    #[must_use]
    pub fn counts(&self, from: Site, to: Site) -> LineCounts {
        self.locked().lines.get(&(from, to)).map_or_else(LineCounts::default, |line| line.counts)
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).ok();
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Ok(Err(error))) = ended
            && !thread::panicking()
        {
            panic!("the emulator ended: {error}");
        }
    }
}

/// The switch itself: runs until `stop` is written to.
fn carry(taps: &[Tap], state: &Mutex<State>, stop: &OwnedFd) -> io::Result<()> {
    let begin = Instant::now();
    let mut buffer = [0; FRAME_BYTES_MAX];
    let mut fds: Vec<_> = taps.iter().map(|tap| PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN)).collect();
    fds.push(PollFd::new(stop, PollFlags::IN));
    loop {
        let next = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            for (number, (tap, fd)) in taps.iter().zip(&fds).enumerate() {
                if fd.revents().intersects(PollFlags::IN) {
                    for _ in 0..FRAMES_AT_ONCE {
                        let Ok(bytes) = tap.recv(&mut buffer) else { break };
                        state.offer(begin.elapsed(), number, buffer.get(..bytes).unwrap_or_default());
                    }
                }
            }
            state.hand_over(begin.elapsed(), taps)
        };
        let timeout = next.map(|due| due.saturating_sub(begin.elapsed()));
        let timeout =
            timeout.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds.last().is_some_and(|stop| !stop.revents().is_empty()) {
            return Ok(());
        }
    }
}

impl State {
    /// Puts a frame from a tap on the line to its receiver; on the lines to all others while the receiver's tap is unknown.
    fn offer(&mut self, now: Duration, from: usize, frame: &[u8]) {
        let Some((receiver, rest)) = frame.split_first_chunk::<ADDRESS_BYTES>() else { return };
        let Some(sender) = rest.first_chunk::<ADDRESS_BYTES>() else { return };
        self.learned.insert(*sender, from);
        let copy: Arc<[u8]> = frame.into();
        // Like a switch: a frame to an unknown receiver, or to all, is copied to every other tap.
        let known = self.learned.get(receiver).copied();
        let everyone = 0..self.sites.len();
        let Some(from_site) = self.sites.get(from).copied() else { return };
        for to in everyone.filter(|to| *to != from && known.is_none_or(|known| known == *to)) {
            let line = self.sites.get(to).and_then(|to_site| self.lines.get_mut(&(from_site, *to_site)));
            if let Some(line) = line {
                line.offer(now, frame.len(), (to, Arc::clone(&copy)));
            }
        }
    }

    /// Writes the frames that have arrived to their taps; returns when the next one arrives.
    fn hand_over(&mut self, now: Duration, taps: &[Tap]) -> Option<Duration> {
        for line in self.lines.values_mut() {
            while let Some((to, frame)) = line.take(now) {
                // A machine that is switched off, or whose queue is full, loses it.
                taps.get(to).map(|tap| tap.send(&frame).ok());
            }
        }
        self.lines.values().filter_map(Line::due).min()
    }
}
