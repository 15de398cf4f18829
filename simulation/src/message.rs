//! What machines send each other.

use crate::number::Number;
use crate::traffic::Kind;

/// What travels over a connection.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Rpc(Rpc),
    Request { id: u64, bytes: Vec<u8> },
    Response { id: u64, bytes: Vec<u8> },
}

/// gossipsub's messages. An id stands for the message that it names.
#[derive(Clone, Debug)]
pub(crate) enum Rpc {
    Publish { id: u64 },
    IHave { ids: Vec<u64> },
    IWant { ids: Vec<u64> },
    Graft,
    Prune,
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Transmission {
    pub(crate) from: Number,
    pub(crate) to: Number,
    pub(crate) kind: Kind,
    /// Bytes of the message, and of what its stream needs besides.
    pub(crate) payload: usize,
    pub(crate) message: Message,
}
