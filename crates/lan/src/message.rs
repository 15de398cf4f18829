//! Multicast DNS as it is on the wire: the question for our service, and the answer that carries a presence.
//!
//! The answer names an instance by its salt and has no host, port or address in clear: whoever is not of the mesh learns
//! that a member of some mesh is at the address from which it came.

use crate::seal::{LanKey, Presence, Salt};
use simple_dns::rdata::{PTR, RData, TXT};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, ResourceRecord, SimpleDnsError, TYPE};

/// The service, by which programs for multicast DNS list it.
const SERVICE: &str = "_narmesh._tcp.local";
/// The attribute of the TXT record that holds the sealed presence.
const ATTRIBUTE: &str = "m";
/// For how long others may remember the answer, seconds: what RFC 6762 recommends for records about a host.
const TTL_S: u32 = 120;
/// The longest packet that is read, bytes: what fits into one frame of Ethernet.
pub(crate) const PACKET_BYTES_MAX: usize = 1_472;
/// The most questions and records of a packet that is read. Ours has two; each costs memory before it is looked at.
const ENTRIES_MAX: u16 = 16;

/// What a packet means to us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// Somebody asks who is there.
    Question,
    /// A member is there, or was when somebody recorded this.
    Presence(Presence),
    /// Anything else.
    Foreign,
}

/// Asks who is there.
///
/// # Errors
/// Never: the names are short enough.
pub fn question() -> Result<Vec<u8>, SimpleDnsError> {
    let mut packet = Packet::new_query(0);
    let question = Question::new(Name::new(SERVICE)?, QTYPE::TYPE(TYPE::PTR), QCLASS::CLASS(CLASS::IN), false);
    packet.questions.push(question);
    packet.build_bytes_vec()
}

/// Says that we are there. The salt has to be a new one each time.
///
/// # Errors
/// Never: a presence has at most eight addresses.
pub fn answer(key: &LanKey, presence: &Presence, salt: Salt) -> Result<Vec<u8>, SimpleDnsError> {
    let label: String = salt.iter().map(|byte| format!("{byte:02x}")).collect();
    let instance = format!("{label}.{SERVICE}");
    let text = TXT::new().with_attribute(ATTRIBUTE, Some(&key.seal(presence, salt)))?;
    let mut packet = Packet::new_reply(0);
    packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    let record = |name, data| ResourceRecord::new(name, CLASS::IN, TTL_S, data);
    packet.answers.push(record(Name::new(SERVICE)?, RData::PTR(PTR(Name::new(&instance)?))));
    packet.answers.push(record(Name::new(&instance)?, RData::TXT(text)).with_cache_flush(true));
    packet.build_bytes_vec()
}

/// Reads a packet that came by multicast. What is not ours costs no more than parsing it, or trying to open it once.
pub fn read(key: &LanKey, bytes: &[u8]) -> Heard {
    // Before it is parsed: a header may promise thousands of records.
    if bytes.len() > PACKET_BYTES_MAX || !has_few_entries(bytes) {
        return Heard::Foreign;
    }
    let Ok(packet) = Packet::parse(bytes) else { return Heard::Foreign };
    if !packet.has_flags(PacketFlag::RESPONSE) {
        let is_ours = |question: &Question<'_>| {
            matches!(question.qtype, QTYPE::TYPE(TYPE::PTR) | QTYPE::ANY) && is_service(&question.qname)
        };
        return if packet.questions.iter().any(is_ours) { Heard::Question } else { Heard::Foreign };
    }
    // One presence to a packet, so that a packet is opened at most once.
    let sealed = packet.answers.iter().find_map(|record| match &record.rdata {
        RData::TXT(text) if record.name.as_bytes().skip(1).eq(service_labels()) => {
            text.iter_raw().find(|(name, _)| *name == ATTRIBUTE.as_bytes()).and_then(|(_, value)| value)
        }
        _ => None,
    });
    sealed.and_then(|sealed| key.open(sealed)).map_or(Heard::Foreign, Heard::Presence)
}

/// Whether the header announces a number of entries that we would read.
fn has_few_entries(packet: &[u8]) -> bool {
    let counts = packet.get(4..12).map(|counts| counts.chunks_exact(2));
    let total = counts.map(|counts| {
        let count = |bytes: &[u8]| bytes.iter().fold(0_u16, |number, byte| number << 8 | u16::from(*byte));
        counts.map(count).fold(0_u16, u16::saturating_add)
    });
    total.is_some_and(|total| total <= ENTRIES_MAX)
}

fn service_labels() -> impl Iterator<Item = &'static [u8]> {
    SERVICE.split('.').map(str::as_bytes)
}

/// Names are compared without regard to case.
fn is_service(name: &Name<'_>) -> bool {
    let labels = name.as_bytes().map(<[u8]>::to_ascii_lowercase);
    labels.eq(service_labels().map(<[u8]>::to_vec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence() -> Presence {
        let addresses = (0..8_u16).map(|number| format!("[2001:db8::{number}]:7280").parse().unwrap()).collect();
        Presence { node_key: [7; 32], addresses }
    }

    #[test]
    fn the_largest_presence_is_read_back_by_members_alone() {
        let [key, other] = [1, 2].map(|byte| LanKey::of_mesh(&[byte; 32]));
        let bytes = answer(&key, &presence(), [9; 16]).unwrap();
        assert!(bytes.len() <= 512, "{} bytes fit into any packet", bytes.len());
        assert_eq!(read(&key, &bytes), Heard::Presence(presence()));
        assert_eq!(read(&other, &bytes), Heard::Foreign);
        assert_eq!(read(&key, &bytes[..bytes.len() - 1]), Heard::Foreign);
    }

    #[test]
    fn a_question_for_our_service_is_told_from_others() {
        let key = LanKey::of_mesh(&[1; 32]);
        assert_eq!(read(&key, &question().unwrap()), Heard::Question);
        let mut shouted = question().unwrap();
        shouted.make_ascii_uppercase();
        assert_eq!(read(&key, &shouted), Heard::Question);
        let mut other = question().unwrap();
        other[14] = b'x';
        assert_eq!(read(&key, &other), Heard::Foreign);
    }

    #[test]
    fn a_header_that_promises_thousands_of_records_is_not_believed() {
        let key = LanKey::of_mesh(&[1; 32]);
        for place in [4, 6, 8, 10] {
            let mut bytes = answer(&key, &presence(), [9; 16]).unwrap();
            bytes[place] = 0xff;
            assert!(!has_few_entries(&bytes));
            assert_eq!(read(&key, &bytes), Heard::Foreign);
        }
        assert_eq!(read(&key, &[0; 11]), Heard::Foreign);
        assert_eq!(read(&key, &[]), Heard::Foreign);
    }
}
