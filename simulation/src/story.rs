//! `--trace`: what happened to one machine or to one path, line by line.

use crate::cores::gossip::{Event, Input, Output};
use crate::fault::Fault;
use crate::machine::Machine;
use crate::number::{Number, Path};
use crate::scenario::What;
use narmesh_protocol::Generation;
use narmesh_protocol::wire::{GossipReply, GossipRequest};
use std::collections::BTreeMap;

/// Lines of a story, at most.
const LINES_MAX: usize = 200_000;

/// What the story is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// Nothing: no story is told.
    None,
    /// A machine, by its number.
    Node(usize),
    /// A path, by its number: who builds and removes it, and who knows of it when.
    Path(u32),
}

impl std::str::FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("path:").and_then(|number| number.parse().ok()).map(Self::Path);
        path.or_else(|| text.parse().ok().map(Self::Node))
            .ok_or_else(|| format!("'{text}' is neither a machine's number nor 'path:' and a path's number"))
    }
}

#[derive(Debug)]
pub(crate) struct Story {
    subject: Subject,
    pub(crate) lines: Vec<String>,
    /// For a path's story: the owners of the path, and the first generation under which each published it.
    owners: BTreeMap<Number, Option<Generation>>,
}

impl Story {
    pub(crate) fn new(subject: Subject) -> Self {
        Self { subject, lines: Vec::new(), owners: BTreeMap::new() }
    }

    fn tell(&mut self, now_ms: u64, number: Number, text: &str) {
        if self.lines.len() < LINES_MAX {
            self.lines.push(format!("{:>10}.{:03} s  {number:>4}  {text}", now_ms / 1_000, now_ms % 1_000));
        }
    }

    fn is_about(&self, number: Number) -> bool {
        self.subject == Subject::Node(number)
    }

    pub(crate) fn tell_input(&mut self, machines: &[Machine], now_ms: u64, number: Number, input: &Input) {
        if !self.is_about(number) {
            return;
        }
        let name = |peer: &libp2p_identity::PeerId| machines.iter().position(|machine| machine.peer == *peer);
        let text = match input {
            Input::Allowlist(peers) => format!("trusts {} peers", peers.len()),
            Input::Connected(peer) => format!("connected with {:?}", name(peer)),
            Input::Disconnected(peer) => format!("lost {:?}", name(peer)),
            Input::Announcement { author, from, .. } => format!("hears of {:?} from {:?}", name(author), name(from)),
            Input::Request { from, bytes, .. } => format!("is asked by {:?}: {}", name(from), describe_question(bytes)),
            Input::Response { from, bytes, .. } => {
                format!("is answered by {:?}: {}", name(from), describe_answer(bytes))
            }
            Input::RequestFailed { to, .. } => format!("got no answer from {:?}", name(to)),
            Input::Paths(_) => "has other paths".to_owned(),
            Input::Probe { peer, outcome } => format!("asked {:?} for a path: {outcome:?}", name(peer)),
            Input::Misbehaved { peer, misdeed } => format!("caught {:?}: {misdeed}", name(peer)),
            Input::Goodbye => "leaves".to_owned(),
            Input::Addresses(_) | Input::Tick => return,
        };
        self.tell(now_ms, number, &text);
    }

    pub(crate) fn tell_output(&mut self, machines: &[Machine], now_ms: u64, number: Number, output: &Output) {
        let name = |peer: &libp2p_identity::PeerId| machines.iter().position(|machine| machine.peer == *peer);
        match (self.subject, output) {
            (Subject::Node(node), _) if node == number => {
                let text = match output {
                    Output::Persist(_) | Output::Judge { .. } => return,
                    Output::Publish(bytes) => format!("publishes {} bytes", bytes.len()),
                    Output::Request { to, bytes, .. } => format!("asks {:?}: {}", name(to), describe_question(bytes)),
                    Output::Respond { to, bytes, .. } => format!("answers {:?}: {}", name(to), describe_answer(bytes)),
                    Output::Penalize { peer, misdeed } => format!("blames {:?}: {misdeed}", name(peer)),
                    Output::Event(event) => format!("{event:?}"),
                };
                self.tell(now_ms, number, &text);
            }
            (Subject::Path(_), Output::Event(Event::Published { generation, .. })) => {
                if let Some(first @ None) = self.owners.get_mut(&number) {
                    *first = Some(*generation);
                    self.tell(now_ms, number, &format!("publishes it under {generation:?}"));
                }
            }
            (Subject::Path(_), Output::Event(Event::BodyPulled { owner, generation, from, .. })) => {
                let Some(owner) = name(owner) else { return };
                if self.owners.get(&owner).copied().flatten() == Some(*generation) {
                    self.tell(now_ms, number, &format!("knows of {owner}'s, by {:?}", name(from)));
                }
            }
            (Subject::None | Subject::Node(_) | Subject::Path(_), _) => {}
        }
    }

    pub(crate) fn tell_paths(&mut self, now_ms: u64, number: Number, added: &[Path], removed: &[Path]) {
        if self.is_about(number) {
            self.tell(now_ms, number, &format!("{} paths more, {} fewer", added.len(), removed.len()));
        }
        let Subject::Path(path) = self.subject else { return };
        if added.contains(&path) {
            self.owners.insert(number, None);
            self.tell(now_ms, number, "builds it");
        }
        if removed.contains(&path) {
            self.owners.insert(number, None);
            self.tell(now_ms, number, "removes it");
        }
    }

    pub(crate) fn tell_scripted(&mut self, now_ms: u64, number: Number, what: What) {
        if self.is_about(number) || what == What::Partition {
            self.tell_if(now_ms, number, &format!("{what:?}"));
        }
    }

    pub(crate) fn tell_fault(&mut self, now_ms: u64, number: Number, fault: &Fault) {
        if self.is_about(number) {
            self.tell(now_ms, number, &format!("{fault:?}"));
        }
    }

    fn tell_if(&mut self, now_ms: u64, number: Number, text: &str) {
        if self.subject != Subject::None {
            self.tell(now_ms, number, text);
        }
    }
}

fn describe_question(bytes: &[u8]) -> String {
    match GossipRequest::decode(bytes) {
        Ok(GossipRequest::Sync(sync)) => format!("sync, has {}", sync.have.len()),
        Ok(GossipRequest::Pull { generation, have_seq, .. }) => format!("pull {generation:?}, has {have_seq:?}"),
        Err(_) => format!("{} bytes that mean nothing", bytes.len()),
    }
}

fn describe_answer(bytes: &[u8]) -> String {
    match GossipReply::decode(bytes) {
        Ok(GossipReply::Sync { news, .. }) => format!("sync, {} news", news.len()),
        Ok(GossipReply::StoreDirDiffers { store_dir }) => format!("another store, {store_dir}"),
        Ok(GossipReply::Body(body)) => format!("body of {} bytes", body.len()),
        Ok(GossipReply::Delta(delta)) => format!("delta of {} bytes", delta.len()),
        Ok(GossipReply::Absent) => "absent".to_owned(),
        Ok(GossipReply::Busy) => "busy".to_owned(),
        Err(_) => format!("{} bytes that mean nothing", bytes.len()),
    }
}
