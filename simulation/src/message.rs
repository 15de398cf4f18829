//! What machines send each other.

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
