//! Gossipsub messages written by hand, because libp2p's implementation takes a millisecond for each when it sends many.
//!
//! <https://github.com/libp2p/specs/blob/master/pubsub/README.md>: a frame is its length in LEB128 and an `RPC` in protobuf.

use libp2p::identity::Keypair;

/// A version of the protocol that every implementation of gossipsub speaks.
pub const MESHSUB: &str = "/meshsub/1.1.0";
/// Size of the messages in one frame, bytes: the daemon takes frames of up to 4,096.
pub const FRAME_BYTES: usize = 3_600;

/// A signed message, encoded as field 2 of an `RPC`.
pub fn message(keys: &Keypair, topic: &str, number: u64, data: &[u8]) -> Vec<u8> {
    let from = keys.public().to_peer_id().to_bytes();
    let mut message = Vec::with_capacity(data.len() + 200);
    for (field, value) in [(1, &from[..]), (2, data), (3, &number.to_be_bytes()), (4, topic.as_bytes())] {
        put(&mut message, field, value);
    }
    let signature = keys.sign(&[b"libp2p-pubsub:", &message[..]].concat()).unwrap();
    put(&mut message, 5, &signature);
    let mut rpc = Vec::with_capacity(message.len() + 3);
    put(&mut rpc, 2, &message);
    rpc
}

/// A frame with these messages.
pub fn frame(messages: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(messages.len() + 2);
    put_length(&mut frame, messages.len());
    frame.extend_from_slice(messages);
    frame
}

/// Appends a field of bytes.
fn put(to: &mut Vec<u8>, field: u8, value: &[u8]) {
    to.push(field << 3 | 2);
    put_length(to, value.len());
    to.extend_from_slice(value);
}

fn put_length(to: &mut Vec<u8>, length: usize) {
    let (low, rest) = (u8::try_from(length % 0x80).expect("seven bits"), length / 0x80);
    if rest == 0 {
        to.push(low);
    } else {
        to.push(low | 0x80);
        put_length(to, rest);
    }
}
