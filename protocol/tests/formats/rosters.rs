//! The bytes of rosters, as `docs/protocol.md` has them.

use narmesh_protocol::wire::RosterRequest;
use narmesh_protocol::{
    EditCount, Lineage, Member, MemberRole, NixSecretKey, Removal, Removed, Roster, SignedRoster, Succession, codec,
};

/// The mesh key of [`rosters_have_the_bytes_in_the_documentation`], its signature, and the digest of the roster.
const MESH_KEY: &str = "fd1724385aa0c75b64fb78cd602fa1d991fdebf76b13c58ed702eac835e9f618";
const SIGNATURE: &str = "880d9c1ff0f24ca3affd490d7d3579ae3332990dddef223f01531a0d67967f61b1f56d99e7c4ebbcff3590edb1b2981d305a10416896f53a96190e6a307b2001";
const DIGEST: &str = "9438cd244c419f77cec284da3569e7564ffb2b1a49dfe5d7745957f95f92fe46";

#[test]
fn rosters_have_the_bytes_in_the_documentation() {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let key = NixSecretKey::from_seed("home", &[9; 32]).unwrap();
    let member = Member {
        node_key: std::array::from_fn(|at| at as u8),
        name: "box".to_owned(),
        role: MemberRole::Builder,
        builder_key: None,
        group: None,
        relay: false,
        ephemeral_s: 0,
        addresses: vec!["/ip4/192.0.2.1/tcp/7280".to_owned()],
    };
    let edits = vec![EditCount { signer: member.node_key, count: 3 }];
    let roster =
        Roster { version: 1, issued_at_ms: 1_800_000_000_000, members: vec![member], edits, removals: Vec::new() };
    let signed = SignedRoster::sign(&key, roster).unwrap();
    let bytes = signed.as_bytes();
    let payload = "010000000000000000505c18a30100000100000000000000\
        000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
        0300000000000000626f780100000000000000000001000000000000001700000000000000\
        2f6970342f3139322e302e322e312f7463702f37323830\
        0100000000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f0300000000000000";
    assert_eq!(hex(&bytes[97..]), payload);
    assert_eq!(hex(&bytes[1..97]), format!("{}{}", MESH_KEY, SIGNATURE));
    let request = RosterRequest { mesh: key.public().bytes(), have: signed.version() };
    assert_eq!(hex(&request.encode().unwrap()), format!("{MESH_KEY}0100000000000000{DIGEST}"));
}

/// What a relay of a group is in a roster; without either, a member is as in [`rosters_have_the_bytes_in_the_documentation`].
#[test]
fn members_with_a_group_have_the_bytes_in_the_documentation() {
    let member = Member {
        node_key: std::array::from_fn(|at| at as u8),
        name: "box".to_owned(),
        role: MemberRole::Builder,
        builder_key: None,
        group: Some("rack".to_owned()),
        relay: true,
        ephemeral_s: 0,
        addresses: Vec::new(),
    };
    let bytes = codec::encode::<1_000>(&member).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
        0300000000000000626f78010000000003\
        04000000000000007261636b000000000000000000000000";
    assert_eq!(hex, expected);
}

/// The key that takes the place of [`MESH_KEY`], what that one signs for it, and its signature of a roster.
const NEW_MESH_KEY: &str = "43a72e714401762df66b68c26dfbdf2682aaec9f2474eca4613e424a0fbafd3c";
const SUCCESSION_SIGNATURE: &str = "8cb8a124009019c193b36c8bae122e7cc9ea7c0333ebd5d48a9cff70d5b28d2f04edfe28e70f4ae3e75ab1de4b00d435ee4ecec6f2050b2c48e5d2e1ab0c5c05";
const SIGNATURE_WITH_LINEAGE: &str = "3e3915a7824d878a29596708c3c03a39b574e709305fcade1e43289ced6fb14e99284e679bcf7de89634d459fee4bc682ea1d220f7338ab85eaa64616e85b101";

/// The same of the first roster of a new mesh key.
#[test]
fn rosters_of_a_new_mesh_key_have_the_bytes_in_the_documentation() {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let [old, new] = [9, 10].map(|seed| NixSecretKey::from_seed("home", &[seed; 32]).unwrap());
    let succession = Succession::sign(&old, &new.public().bytes(), 1);
    let lineage = Lineage::default().continued(succession).unwrap();
    let roster = Roster {
        version: 2,
        issued_at_ms: 1_800_000_000_000,
        members: Vec::new(),
        edits: Vec::new(),
        removals: Vec::new(),
    };
    let signed = SignedRoster::sign_with_lineage(&new, &lineage, roster).unwrap();
    let bytes = signed.as_bytes();
    assert_eq!(hex(&bytes[..97]), format!("02{NEW_MESH_KEY}{SIGNATURE_WITH_LINEAGE}"));
    assert_eq!(hex(&bytes[97..234]), format!("01{MESH_KEY}{NEW_MESH_KEY}0100000000000000{SUCCESSION_SIGNATURE}"));
    assert_eq!(hex(&bytes[234..]), "020000000000000000505c18a301000000000000000000000000000000000000");
}

/// What the key of [`MESH_KEY`] signs of a machine that it removed, and of the roster that carries it.
const REMOVAL_SIGNATURE: &str = "96ad35f3a36b30efc97dd66583ed586e501a204057e46d1847e84cc2bde35a0a386ffab3ebd74c57f2cea876c55d1cd6ca073b698b2936f5d80114a14184df07";
const SIGNATURE_WITH_REMOVAL: &str = "61de7312ceb44f75367630a71357010de2a39a6fa2caa0293975bf037a7930e08ea70d70edf4355f1df8b3f96e8a2a4a3eaf9764c598aa2d3fcbcac172f7eb02";

#[test]
fn rosters_with_removals_have_the_bytes_in_the_documentation() {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let key = NixSecretKey::from_seed("home", &[9; 32]).unwrap();
    let node_key = std::array::from_fn(|at| at as u8);
    let removal = Removal::sign(&key, &node_key, 2);
    assert_eq!(hex(&removal.encode()), format!("0200000000000000{REMOVAL_SIGNATURE}"));
    let removals = vec![Removed { node_key, removal }];
    let roster =
        Roster { version: 2, issued_at_ms: 1_800_000_000_000, members: Vec::new(), edits: Vec::new(), removals };
    let signed = SignedRoster::sign(&key, roster).unwrap();
    let bytes = signed.as_bytes();
    assert_eq!(hex(&bytes[..97]), format!("01{MESH_KEY}{SIGNATURE_WITH_REMOVAL}"));
    let payload = format!(
        "020000000000000000505c18a301000000000000000000000000000000000000\
        0100000000000000000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f0200000000000000{REMOVAL_SIGNATURE}"
    );
    assert_eq!(hex(&bytes[97..]), payload);
    // A list of none has no second form.
    assert!(codec::decode::<Roster, 1_000>(&bytes[97..129]).is_ok());
    assert!(codec::decode::<Roster, 1_000>(&[&bytes[97..129], &[0; 8]].concat()).is_err());
}
