//! Who is told of others instead of being sent a large NAR: while we send it to one peer that passes it on, the next one
//! is named that peer, the one after it both, and so on, so that they form a chain and our line carries the NAR about once.
//! No clock of its own, no task.
//!
//! A chain is as quick as its slowest machine. So an asker that reads from another one, but thinks that we could be quicker,
//! is sent the NAR to compare: one at a time, after pauses that double, and that begin anew when one stayed with us.
//!
//! Of a NAR that we do not have, we only remember who wants it and passes it on: those who fetch it from an upstream cache
//! at the same time ask one of them, the same for all, so that one of them fetches it for the site.
//!
//! Who was named is told only of those who asked before it: nobody waits for somebody who waits for it.

use libp2p::PeerId;
use narmesh_protocol::NarHash;
use narmesh_protocol::wire::{NarReply, NarRequest, Referral, SMALL_NAR_BYTES_MAX};
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// NARs of which it is known who has them on their way; the one that was asked for least recently is forgotten first.
const NARS_MAX: usize = 256;
/// Peers that are known to pass one NAR on; further ones are not named.
const PASSERS_MAX: usize = 64;
/// A peer that was sent a part of the NAR within this time reads it from us: it may ask for ranges, one after the other.
const LINGERS: Duration = Duration::from_secs(3);
/// Who wants a NAR that we do not have is remembered for this long after somebody asked for it.
const WANTED: Duration = Duration::from_secs(600);
/// The first pause after an asker was sent the NAR to compare; it doubles.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// An asker that compares and still reads after this has found us quicker: a race lasts 3 s at most.
const STAYED: Duration = Duration::from_secs(4);

/// Who has which NAR on its way, as far as it asked us for it.
#[derive(Debug, Default)]
pub(super) struct Referrals(Mutex<HashMap<NarHash, Entry>>);

#[derive(Debug)]
struct Entry {
    asked: Instant,
    /// Those who pass it on, in the order of asking.
    passers: Vec<Passer>,
    readers: HashMap<PeerId, Arc<Mutex<Reader>>>,
    may_compare_at: Instant,
    pause: Duration,
}

#[derive(Debug)]
struct Passer {
    peer: PeerId,
    /// How often it was named before all others.
    named: u32,
}

/// A peer that reads the NAR from us.
#[derive(Debug)]
struct Reader {
    since: Instant,
    compares: bool,
    bodies: usize,
    ended: Instant,
}

impl Reader {
    fn reads(&self, now: Instant) -> bool {
        self.bodies > 0 || now.saturating_duration_since(self.ended) < LINGERS
    }
}

/// A body of a NAR to a peer, until it is dropped.
#[derive(Debug)]
pub(super) struct Sending(Option<Arc<Mutex<Reader>>>);

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(reader) = &self.0 {
            let mut reader = reader.lock();
            (reader.bodies, reader.ended) = (reader.bodies - 1, Instant::now());
        }
    }
}

impl Entry {
    fn new(now: Instant) -> Self {
        let (passers, readers) = (Vec::new(), HashMap::new());
        Self { asked: now, passers, readers, may_compare_at: now, pause: PAUSE_MIN }
    }

    /// Notes that `peer` passes the NAR on; returns how many have asked before it.
    fn place(&mut self, peer: PeerId, passes_on: bool) -> usize {
        let known = self.passers.iter().position(|passer| passer.peer == peer);
        let place = known.unwrap_or(self.passers.len());
        if known.is_none() && passes_on && place < PASSERS_MAX {
            self.passers.push(Passer { peer, named: 0 });
        }
        place
    }

    fn begin(&mut self, peer: PeerId, request: &NarRequest, now: Instant) -> Sending {
        let fresh = || Arc::new(Mutex::new(Reader { since: now, compares: false, bodies: 0, ended: now }));
        let reader = Arc::clone(self.readers.entry(peer).or_insert_with(fresh));
        {
            let mut reader = reader.lock();
            reader.bodies += 1;
            reader.compares |= request.referral == Referral::Compared;
        }
        Sending(Some(reader))
    }

    fn may_compare(&mut self, now: Instant) -> bool {
        let stayed = |reader: &Arc<Mutex<Reader>>| {
            let reader = reader.lock();
            reader.compares && reader.bodies > 0 && now.saturating_duration_since(reader.since) >= STAYED
        };
        // One that compared has stayed, so comparing is worth it for this NAR.
        if self.readers.values().any(stayed) {
            self.pause = PAUSE_MIN;
        }
        if now < self.may_compare_at {
            return false;
        }
        self.may_compare_at = now + self.pause;
        self.pause *= 2;
        true
    }

    /// Names those who asked before the one at `place`: first who was named least, of these who asked last.
    fn name(&mut self, place: usize) -> Vec<PeerId> {
        let mut before: Vec<_> = self.passers.iter_mut().take(place).enumerate().collect();
        before.sort_by_key(|(number, passer)| (passer.named, Reverse(*number)));
        if let Some((_, first)) = before.first_mut() {
            first.named += 1;
        }
        before.into_iter().take(NarReply::OTHERS_MAX).map(|(_, passer)| passer.peer).collect()
    }
}

impl Referrals {
    /// Notes that this asker wants a NAR that is not here. Says who wanted it before and passes it on, the first to be asked
    /// first; nobody if the asker is to fetch it.
    pub(super) fn meet(&self, peer: PeerId, request: &NarRequest) -> Vec<PeerId> {
        if request.referral == Referral::Declined {
            return Vec::new();
        }
        let now = Instant::now();
        let mut nars = self.0.lock();
        let entry = find(&mut nars, request, now);
        // Those who wanted it so long ago have it, or have given up.
        if now.saturating_duration_since(entry.asked) > WANTED {
            *entry = Entry::new(now);
        }
        entry.asked = now;
        let place = entry.place(peer, request.passes_on);
        if request.referral == Referral::Compared && entry.may_compare(now) {
            return Vec::new();
        }
        entry.name(place)
    }

    /// Decides whether this asker is sent the NAR. If not, it is to ask those who are named, the first one first.
    pub(super) fn admit(&self, peer: PeerId, request: &NarRequest) -> Result<Sending, Vec<PeerId>> {
        if request.nar_size <= SMALL_NAR_BYTES_MAX {
            return Ok(Sending(None));
        }
        let now = Instant::now();
        let mut nars = self.0.lock();
        let entry = find(&mut nars, request, now);
        entry.asked = now;
        entry.readers.retain(|_, reader| reader.lock().reads(now));
        // When nobody has read it for a while, those who passed it on are done.
        if entry.readers.is_empty() {
            *entry = Entry::new(now);
        }
        let place = entry.place(peer, request.passes_on);
        let is_sent = request.referral == Referral::Declined
            || place == 0
            || entry.readers.is_empty()
            || entry.readers.contains_key(&peer)
            || (request.referral == Referral::Compared && entry.may_compare(now));
        if is_sent { Ok(entry.begin(peer, request, now)) } else { Err(entry.name(place)) }
    }
}

/// The entry of this NAR; makes room for it if need be.
fn find<'e>(nars: &'e mut HashMap<NarHash, Entry>, request: &NarRequest, now: Instant) -> &'e mut Entry {
    if nars.len() >= NARS_MAX
        && !nars.contains_key(&request.nar_hash)
        && let Some(oldest) = nars.iter().min_by_key(|(_, entry)| entry.asked).map(|(hash, _)| *hash)
    {
        nars.remove(&oldest);
    }
    nars.entry(request.nar_hash).or_insert_with(|| Entry::new(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::HashPart;

    const LARGE: u64 = 300 << 20;

    fn request(referral: Referral) -> NarRequest {
        let (hash_part, nar_hash) = (HashPart([1; 20]), NarHash([2; 32]));
        let (nar_size, offset, end) = (LARGE, 0, LARGE);
        NarRequest { hash_part, nar_hash, nar_size, offset, end, accept_zstd: false, passes_on: true, referral }
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_askers_form_a_chain_and_one_is_sent_the_nar() {
        let referrals = Referrals::default();
        let peers: Vec<_> = (0..20).map(|_| PeerId::random()).collect();
        let welcome = request(Referral::Welcome);
        let _sending = referrals.admit(peers[0], &welcome).expect("the first one");
        for (number, peer) in peers.iter().enumerate().skip(1) {
            let named = referrals.admit(*peer, &welcome).unwrap_err();
            assert_eq!(named[0], peers[number - 1], "{number}");
            assert!(named.len() <= NarReply::OTHERS_MAX);
        }
        let named = referrals.admit(peers[5], &welcome).unwrap_err();
        assert!(!named.is_empty() && named.iter().all(|peer| peers[..5].contains(peer)), "only those before it");
        referrals.admit(peers[0], &welcome).expect("who reads it goes on");
        referrals.admit(peers[9], &request(Referral::Declined)).expect("who insists is sent it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_compares_is_sent_the_nar_one_at_a_time() {
        let referrals = Referrals::default();
        let peers: Vec<_> = (0..4).map(|_| PeerId::random()).collect();
        let (welcome, compared) = (request(Referral::Welcome), request(Referral::Compared));
        let _sending = referrals.admit(peers[0], &welcome).unwrap();
        peers[1..].iter().for_each(|peer| assert!(referrals.admit(*peer, &welcome).is_err()));
        drop(referrals.admit(peers[1], &compared).unwrap());
        assert!(referrals.admit(peers[2], &compared).is_err(), "another one has just compared");
        tokio::time::advance(PAUSE_MIN).await;
        let _stays = referrals.admit(peers[2], &compared).unwrap();
        assert!(referrals.admit(peers[3], &compared).is_err());
        tokio::time::advance(STAYED).await;
        assert!(referrals.admit(peers[3], &compared).is_ok());
        tokio::time::advance(PAUSE_MIN).await;
        assert!(referrals.admit(peers[1], &compared).is_ok(), "one has stayed with us, so the pauses begin anew");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_named_who_passes_nothing_on_or_when_nobody_reads() {
        let referrals = Referrals::default();
        let [first, second] = [(); 2].map(|()| PeerId::random());
        let selfish = NarRequest { passes_on: false, ..request(Referral::Welcome) };
        let sending = referrals.admit(first, &selfish).unwrap();
        drop(referrals.admit(second, &selfish).expect("nobody passes it on"));
        drop(sending);
        tokio::time::advance(LINGERS).await;
        let sending = referrals.admit(first, &request(Referral::Welcome)).unwrap();
        assert_eq!(referrals.admit(second, &selfish).unwrap_err(), [first]);
        drop(sending);
        tokio::time::advance(LINGERS).await;
        assert!(referrals.admit(second, &selfish).is_ok(), "the line is free");
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_who_want_what_is_not_here_the_first_fetches_it() {
        let referrals = Referrals::default();
        let peers: Vec<_> = (0..4).map(|_| PeerId::random()).collect();
        let (welcome, compared) = (request(Referral::Welcome), request(Referral::Compared));
        assert!(referrals.meet(peers[0], &welcome).is_empty());
        assert_eq!(referrals.meet(peers[1], &welcome)[0], peers[0]);
        assert_eq!(referrals.meet(peers[2], &welcome)[0], peers[1]);
        assert!(referrals.meet(peers[0], &welcome).is_empty(), "once more");
        assert!(referrals.meet(peers[1], &compared).is_empty(), "one may compare");
        assert!(!referrals.meet(peers[2], &compared).is_empty(), "not two at once");
        tokio::time::advance(WANTED + PAUSE_MIN).await;
        assert!(referrals.meet(peers[3], &welcome).is_empty(), "that was long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_nars_and_askers_takes_bounded_memory() {
        let referrals = Referrals::default();
        let mut sendings = Vec::new();
        for number in 0..1_000_u32 {
            let mut nar_hash = [0; 32];
            nar_hash[..4].copy_from_slice(&number.to_le_bytes());
            let request = NarRequest { nar_hash: NarHash(nar_hash), ..request(Referral::Welcome) };
            sendings.push(referrals.admit(PeerId::random(), &request));
        }
        assert_eq!(referrals.0.lock().len(), NARS_MAX);
        sendings.push(referrals.admit(PeerId::random(), &request(Referral::Welcome)));
        for _ in 0..1_000 {
            assert!(referrals.admit(PeerId::random(), &request(Referral::Welcome)).is_err());
        }
        assert!(referrals.0.lock().values().all(|entry| entry.passers.len() <= PASSERS_MAX));
    }
}
