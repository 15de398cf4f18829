//! The examples of `docs/protocol.md`.

use narmesh_protocol::HashPart;
use narmesh_quorum::reconcile::{Answer, BuilderDigest, Node, Query};
use narmesh_quorum::wire::{QuorumReply, QuorumRequest};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn documented(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn requests_and_replies_have_the_documented_bytes() {
    let builders = || vec![BuilderDigest([1, 2, 3, 4, 5, 6, 7, 8])];
    let path = HashPart::parse("7h7qgvs4kgzsn8a6rb273saxyqh4jxlz").unwrap();
    let query = Query { builders: builders(), nodes: vec![(Node::ROOT, [0; 16])] };
    let compare = QuorumRequest::Compare { query, news: true };
    let ask = QuorumRequest::Ask { builders: builders(), paths: vec![path] };
    let root = "00 0000000000000000000000000000000000000000 00000000000000000000000000000000";
    for (request, bytes) in [
        (compare, format!("00000000 0100000000000000 0102030405060708 0100000000000000 {root} 01")),
        (
            ask,
            "02000000 0100000000000000 0102030405060708 0100000000000000 9f764920f65de971c4ca4621abff9b44ef870f3c"
                .into(),
        ),
    ] {
        let encoded = request.encode().unwrap();
        assert_eq!(hex(&encoded), documented(&bytes));
        assert_eq!(QuorumRequest::decode(&encoded).unwrap(), request);
    }
    let equal = QuorumReply::Compared(Answer::Nodes { answered: 1, differing: Vec::new() });
    for (reply, bytes) in [
        (equal, "00000000 01000000 01000000 0000000000000000"),
        (QuorumReply::Attestations { answered: 1, attestations: Vec::new() }, "01000000 01000000 0000000000000000"),
        (QuorumReply::Busy, "02000000"),
    ] {
        assert_eq!(hex(&reply.encode().unwrap()), documented(bytes));
    }
    let book = include_str!("../../../../docs/protocol.md");
    let book: String = book.split_whitespace().collect();
    for line in [
        format!("0100000000000000{}01", documented(root)),
        documented("01000000 01000000 0000000000000000 Busy 02000000"),
    ] {
        assert!(book.contains(&line), "{line}");
    }
}
