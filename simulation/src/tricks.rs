//! What liars and strangers do of their own accord.

use crate::cores::gossip::Input;
use crate::draw::Draw;
use crate::number::Number;
use crate::schedule::{Happening, WALL_MS};
use crate::world::World;
use libp2p_identity::Keypair;
use narmesh_protocol::wire::GossipRequest;
use narmesh_protocol::{Announcement, AudienceDigest, Envelope, Generation};

/// Plans when a liar plays its trick next.
pub(crate) fn schedule_trick(world: &mut World, number: Number) {
    let machine = world.fleet.machines.get(number).expect("numbers are the fleet's own");
    let Some(malice) = &machine.malice else { return };
    let wait_us = malice.draw_pause_us(&mut world.fleet.draw);
    world.fleet.schedule.after_us(wait_us, Happening::Trick(number));
}

/// Lets a liar play its trick. A stranger plays a random one, against a random honest machine.
pub(crate) fn play_trick(world: &mut World, number: Number) {
    schedule_trick(world, number);
    let now_ms = world.fleet.now_ms();
    let machine = world.fleet.machines.get_mut(number).expect("numbers are the fleet's own");
    let (keypair, stranger, me) = (machine.keypair.clone(), machine.stranger, machine.peer);
    let Some(malice) = &mut machine.malice else { return };
    if stranger {
        malice.change_trick(&mut world.fleet.draw);
    }
    let publishes = malice.make_envelopes(&keypair, now_ms, &mut world.fleet.draw);
    let asks = malice.make_requests(&mut world.fleet.draw);
    if !stranger {
        for bytes in publishes {
            world.publish_message(number, bytes.into());
        }
    }
    let victims =
        if stranger { (0..world.fleet.scenario.nodes).collect() } else { world.network.connected_machines(number) };
    let honest: Vec<_> = victims.into_iter().filter(|victim| world.fleet.machine(*victim).is_honest()).collect();
    let Some(victim) = world.fleet.draw.pick(&honest) else { return };
    if stranger {
        // The daemon would refuse a stranger's handshake. Here its messages get through, because the core must
        // withstand them by itworld.
        let announcement = seal_malice(&keypair, now_ms, &mut world.fleet.draw);
        let from = world.fleet.machine(victim).trusted.first().map_or(me, |other| world.fleet.machine(*other).peer);
        let id = world.fleet.schedule.next_number();
        world.feed(victim, Input::Announcement { id, author: me, from, bytes: announcement.clone() });
        world.feed(victim, Input::Response { from: me, id: 1, bytes: announcement });
        world.feed(victim, Input::Connected(me));
        let owner = AudienceDigest::of(&world.fleet.machine(victim).peer);
        if let Some(generation) = world.fleet.machine(victim).core.publication().generation {
            let pull = GossipRequest::Pull { owner, generation, have_seq: None };
            world.on_request(number, victim, 0, pull.encode().expect("a small request"));
        }
    }
    for bytes in asks {
        world.on_request(number, victim, 0, bytes);
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
