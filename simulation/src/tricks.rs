//! What liars and strangers do of their own accord.

use crate::draw::Draw;
use crate::number::Number;
use crate::schedule::{Happening, WALL_MS};
use crate::world::World;
use libp2p_identity::Keypair;
use narmesh_gossip::Input;
use narmesh_protocol::wire::GossipRequest;
use narmesh_protocol::{Announcement, AudienceDigest, Envelope, Generation};

impl World {
    pub(crate) fn schedule_trick(&mut self, number: Number) {
        let machine = self.fleet.machines.get(number).expect("numbers are the fleet's own");
        let Some(malice) = &machine.malice else { return };
        let wait_us = malice.draw_pause_us(&mut self.fleet.draw);
        self.fleet.schedule.after_us(wait_us, Happening::Trick(number));
    }

    pub(crate) fn publish_lies(&mut self, number: Number, honest: Vec<u8>) {
        let machine = self.fleet.machine(number);
        let others = machine.trusted.iter().map(|other| AudienceDigest::of(&self.fleet.machine(*other).peer));
        let mut audience: Vec<_> = others.chain([AudienceDigest::of(&machine.peer)]).collect();
        audience.sort_unstable();
        let (keypair, paths) = (machine.keypair.clone(), self.fleet.next_path);
        let machine = self.fleet.machines.get_mut(number).expect("numbers are the fleet's own");
        let Some(malice) = &mut machine.malice else { return };
        let lie = malice.lie(&keypair, &honest, &audience, paths, &mut self.fleet.draw);
        self.publish_message(number, lie.into());
    }

    /// Lets a liar play its trick. A stranger plays a random one, against a random honest machine.
    pub(crate) fn play_trick(&mut self, number: Number) {
        self.schedule_trick(number);
        let now_ms = self.fleet.now_ms();
        let machine = self.fleet.machines.get_mut(number).expect("numbers are the fleet's own");
        let (keypair, stranger, me) = (machine.keypair.clone(), machine.stranger, machine.peer);
        let Some(malice) = &mut machine.malice else { return };
        if stranger {
            malice.change_trick(&mut self.fleet.draw);
        }
        let publishes = malice.make_envelopes(&keypair, now_ms, &mut self.fleet.draw);
        let asks = malice.make_requests(&mut self.fleet.draw);
        if !stranger {
            for bytes in publishes {
                self.publish_message(number, bytes.into());
            }
        }
        let victims =
            if stranger { (0..self.fleet.scenario.nodes).collect() } else { self.network.connected_machines(number) };
        let honest: Vec<_> = victims.into_iter().filter(|victim| self.fleet.machine(*victim).is_honest()).collect();
        let Some(victim) = self.fleet.draw.pick(&honest) else { return };
        if stranger {
            // The daemon would refuse a stranger's handshake. Here its messages get through, because the core must
            // withstand them by itself.
            let announcement = seal_malice(&keypair, now_ms, &mut self.fleet.draw);
            let from = self.fleet.machine(victim).trusted.first().map_or(me, |other| self.fleet.machine(*other).peer);
            let id = self.fleet.schedule.next_number();
            self.feed(victim, Input::Announcement { id, author: me, from, bytes: announcement.clone() });
            self.feed(victim, Input::Response { from: me, id: 1, bytes: announcement });
            self.feed(victim, Input::Connected(me));
            let owner = AudienceDigest::of(&self.fleet.machine(victim).peer);
            if let Some(generation) = self.fleet.machine(victim).core.publication().generation {
                let pull = GossipRequest::Pull { owner, generation, have_seq: None };
                self.on_request(number, victim, 0, pull.encode().expect("a small request"));
            }
        }
        for bytes in asks {
            self.on_request(number, victim, 0, bytes);
        }
    }
}

fn seal_malice(keypair: &Keypair, now_ms: u64, draw: &mut Draw) -> Vec<u8> {
    let announcement = Announcement {
        generation: Generation { epoch: WALL_MS + now_ms, seq: 0 },
        path_count: 1,
        body_digest: draw.seed(),
        body_bytes: 1_100,
        lifetime_s: 3_600,
        issued_at_ms: WALL_MS + now_ms,
    };
    Envelope::seal(keypair, announcement).expect("an Ed25519 key").as_bytes().to_vec()
}
