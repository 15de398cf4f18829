//! Bodies and their readers in virtual time.

use super::*;

const STEP: Duration = Duration::from_millis(5);

/// A body, and how quickly its asker reads it.
struct Reading {
    peer: PeerId,
    ticket: Ticket,
    /// What it reads in a second; `None` for as fast as it comes.
    bytes_per_s: Option<f64>,
    left: u64,
    /// Granted and not read yet: it asks for more only when this is 0.
    in_hand: f64,
    waits: bool,
    sent: u64,
    last_grant: Duration,
    longest_wait: Duration,
    ended: Option<Duration>,
}

#[derive(Default)]
struct World {
    shares: Shares,
    now: Duration,
    bodies: Vec<Reading>,
}

impl World {
    fn with_rate(bytes_per_s: u32) -> Self {
        let mut world = Self::default();
        world.shares.set_rate(world.now, NonZeroU32::new(bytes_per_s));
        world
    }

    fn add(&mut self, peer: PeerId, bytes_per_s: Option<f64>, left: u64) {
        let ticket = Ticket(self.bodies.len() as u64);
        self.shares.join(peer, ticket);
        let now = self.now;
        self.bodies.push(Reading {
            peer,
            ticket,
            bytes_per_s,
            left,
            in_hand: 0.0,
            waits: false,
            sent: 0,
            last_grant: now,
            longest_wait: Duration::ZERO,
            ended: None,
        });
    }

    fn run(&mut self, lasting: Duration) {
        let until = self.now + lasting;
        while self.now < until {
            self.now += STEP;
            for body in &mut self.bodies {
                let reads = body.bytes_per_s.map_or(f64::INFINITY, |rate| rate * STEP.as_secs_f64());
                body.in_hand = (body.in_hand - reads).max(0.0);
            }
            self.exchange();
        }
    }

    /// Every body that can ask does, and gets what is due; one whose asker reads at once asks again at once.
    fn exchange(&mut self) {
        loop {
            for body in &mut self.bodies {
                if body.ended.is_none() && !body.waits && body.in_hand == 0.0 {
                    body.waits = true;
                    self.shares.want(body.peer, body.ticket, body.left.min(SLICE_BYTES_MAX));
                }
            }
            let Next::Grant(_, ticket, bytes) = self.shares.next(self.now) else { return };
            let body = self.bodies.iter_mut().find(|body| body.ticket == ticket).unwrap();
            assert!(body.waits, "nobody is granted what it did not ask for");
            body.longest_wait = body.longest_wait.max(self.now - body.last_grant);
            (body.waits, body.last_grant) = (false, self.now);
            body.sent += bytes;
            body.left -= bytes;
            body.in_hand = if body.bytes_per_s.is_some() { bytes as f64 } else { 0.0 };
            if body.left == 0 {
                body.ended = Some(self.now);
                self.shares.leave(body.peer, body.ticket);
            }
        }
    }

    fn sent_to(&self, peer: PeerId) -> u64 {
        self.bodies.iter().filter(|body| body.peer == peer).map(|body| body.sent).sum()
    }
}

#[test]
fn slow_readers_of_sixteen_bodies_leave_the_share_of_another_peer_alone() {
    const RATE: u32 = 1 << 20;
    let [one, two, honest] = [(); 3].map(|()| PeerId::random());
    let mut world = World::with_rate(RATE);
    for peer in [one, two] {
        (0..16).for_each(|_| world.add(peer, Some(9_500.0), u64::MAX));
    }
    world.run(Duration::from_secs(60));
    world.add(honest, None, u64::MAX);
    world.run(Duration::from_secs(60));
    let fair = u64::from(RATE) / 3 * 60;
    assert!(world.sent_to(honest) >= fair / 2, "{} of {fair}", world.sent_to(honest));
    // They read 9.5 kB/s on each body, and get what they read.
    for peer in [one, two] {
        let wanted = 16 * 9_500 * 120;
        assert!(world.sent_to(peer) >= wanted * 8 / 10, "{} of {wanted}", world.sent_to(peer));
    }
}

#[test]
fn peers_that_read_at_once_get_equal_shares_however_many_bodies_they_have() {
    let [one, many] = [(); 2].map(|()| PeerId::random());
    let mut world = World::with_rate(1 << 20);
    world.add(one, None, u64::MAX);
    (0..16).for_each(|_| world.add(many, None, u64::MAX));
    world.run(Duration::from_secs(60));
    let (one, many) = (world.sent_to(one), world.sent_to(many));
    assert!(one.abs_diff(many) < (one + many) / 20, "{one} and {many}");
    assert!(one + many <= 61 << 20, "the rate, and a second's burst: {}", one + many);
    assert!(one + many >= 59 << 20, "nothing is left unused: {}", one + many);
}

#[test]
fn bodies_of_a_peer_end_in_the_order_of_asking_and_all_move_meanwhile() {
    let peer = PeerId::random();
    let mut world = World::with_rate(256 << 10);
    (0..16).for_each(|_| world.add(peer, None, 300_000));
    world.run(Duration::from_secs(30));
    let ended: Vec<_> = world.bodies.iter().map(|body| body.ended.unwrap()).collect();
    assert!(ended.is_sorted(), "{ended:?}");
    let longest = world.bodies.iter().map(|body| body.longest_wait).max().unwrap();
    assert!(longest <= Duration::from_millis(2_500), "{longest:?}");
    // 4.8 MB at 256 KiB/s, less the burst.
    assert!(ended[15] <= Duration::from_secs(19), "{ended:?}");
}

#[test]
fn the_lowest_rate_moves_sixteen_bodies() {
    let peer = PeerId::random();
    let mut world = World::with_rate(BYTES_PER_S_MIN);
    (0..16).for_each(|_| world.add(peer, None, u64::MAX));
    world.run(Duration::from_secs(60));
    let longest = world.bodies.iter().map(|body| body.longest_wait).max().unwrap();
    assert!(longest <= Duration::from_millis(2_500), "{longest:?}");
}

#[test]
fn bodies_that_nobody_reads_hold_up_no_other_peer() {
    let [stuck, honest] = [(); 2].map(|()| PeerId::random());
    let mut world = World::with_rate(1 << 20);
    (0..16).for_each(|_| world.add(stuck, Some(0.0), u64::MAX));
    world.add(honest, None, u64::MAX);
    world.run(Duration::from_secs(30));
    assert!(world.sent_to(honest) >= 28 << 20, "{}", world.sent_to(honest));
}

#[test]
fn a_changed_rate_applies_at_once() {
    let peer = PeerId::random();
    let mut world = World::with_rate(16 << 10);
    world.add(peer, None, u64::MAX);
    world.run(Duration::from_secs(10));
    let slow = world.sent_to(peer);
    world.shares.set_rate(world.now, NonZeroU32::new(8 << 20));
    world.run(Duration::from_secs(2));
    assert!(world.sent_to(peer) - slow >= 15 << 20, "{}", world.sent_to(peer) - slow);
    world.shares.set_rate(world.now, NonZeroU32::new(16 << 10));
    let quick = world.sent_to(peer);
    world.run(Duration::from_secs(2));
    assert!(world.sent_to(peer) - quick <= 3 * (16 << 10), "{}", world.sent_to(peer) - quick);
}

#[test]
fn without_a_rate_every_body_is_granted_at_once() {
    let [one, other] = [(); 2].map(|()| PeerId::random());
    let mut world = World::default();
    world.add(one, None, 1 << 30);
    world.add(other, None, 1 << 30);
    world.exchange();
    assert!(world.bodies.iter().all(|body| body.left == 0));
}
