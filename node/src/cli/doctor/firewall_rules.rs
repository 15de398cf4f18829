//! The rules of nftables and of iptables, read just so far as to tell whether a port is shut.
//!
//! A port counts as shut if a rule with no other condition keeps it out, or if whatever is not let in is kept out (the policy
//! of an input chain, or a rule without a condition at the end of it), and no rule names the port. Rules that let in by
//! something else (an interface, an address) are not judged, so the finding says what it is founded on.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Chains that are followed from one to the next; firewalld has five.
const CHAIN_DEPTH_MAX: usize = 16;
/// Most text that is read; larger rule sets are said not to be seen.
const RULES_BYTES_MAX: usize = 16 << 20;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    fn of(word: &str) -> Option<Self> {
        match word {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            _ => None,
        }
    }
}

/// A port that peers come to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Port(pub(super) Protocol, pub(super) u16);

/// A range of ports; `None` stands for both protocols.
type Ports = (Option<Protocol>, u16, u16);

/// Why a port is shut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shut {
    /// A rule keeps it out by its number.
    Named,
    /// All is kept out that no rule lets in, and none names it.
    Unnamed,
}

/// What one rule says, as far as it matters.
#[derive(Clone, PartialEq, Debug, Default)]
struct Rule {
    /// Whether it concerns every packet that comes to it.
    is_unconditional: bool,
    /// Whether it concerns every packet to its ports that comes to it.
    is_by_port: bool,
    verdict: Verdict,
    /// The ports that it names.
    ports: Vec<Ports>,
}

#[derive(Clone, PartialEq, Debug, Default)]
enum Verdict {
    /// Dropped or refused.
    Out,
    /// Let in.
    In,
    /// Another chain decides.
    Jump(String),
    /// The chain that led here goes on.
    Return,
    /// Counted, logged, …
    #[default]
    Other,
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Chain {
    /// Whether packets that come in for this machine go through it, from the start.
    is_input: bool,
    drops_by_policy: bool,
    rules: Vec<Rule>,
}

/// All chains by name; the name of an nft chain is `FAMILY TABLE CHAIN`.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Rules(BTreeMap<String, Chain>);

impl Rules {
    /// Reads `nft --json list ruleset` (libnftables-json(5)).
    pub(super) fn of_nft(text: &str) -> Result<Self, String> {
        // A firewall with lists of addresses may have millions of elements.
        if text.len() > RULES_BYTES_MAX {
            return Err(format!("nft: more than {RULES_BYTES_MAX} bytes of rules"));
        }
        let read: Value = serde_json::from_str(text).map_err(|error| format!("nft: {error}"))?;
        let mut rules = Self::default();
        let objects = || at(&read, "/nftables").as_array().into_iter().flatten();
        let sets: BTreeMap<String, &Value> = objects()
            .filter_map(|object| object.get("set"))
            .map(|set| (table_and(set, &format!("@{}", word(at(set, "/name")))), at(set, "/elem")))
            .collect();
        for chain in objects().filter_map(|object| object.get("chain")) {
            let name = table_and(chain, word(at(chain, "/name")));
            // These are those of iptables, whose matches nft does not show; `iptables -S` does.
            let is_of_iptables = ["ip filter INPUT", "ip6 filter INPUT"].contains(&name.as_str());
            let entry = rules.0.entry(name).or_default();
            entry.is_input = at(chain, "/hook") == "input" && !is_of_iptables;
            entry.drops_by_policy = at(chain, "/policy") == "drop";
        }
        for rule in objects().filter_map(|object| object.get("rule")) {
            let table = table_and(rule, "");
            let chain = rules.0.entry(table_and(rule, word(at(rule, "/chain")))).or_default();
            chain.rules.push(nft_rule(rule, &table, &sets));
        }
        Ok(rules)
    }

    /// Reads `iptables -S`.
    pub(super) fn of_iptables(text: &str) -> Self {
        let mut rules = Self::default();
        // As for nft: a firewall with lists of addresses is not read at all.
        for line in text.lines().take_while(|_| text.len() <= RULES_BYTES_MAX) {
            let words: Vec<_> = line.split_whitespace().collect();
            match &words[..] {
                ["-P", chain, policy] => {
                    let entry = rules.0.entry((*chain).to_owned()).or_default();
                    (entry.is_input, entry.drops_by_policy) = (*chain == "INPUT", *policy == "DROP");
                }
                ["-A", chain, words @ ..] => {
                    rules.0.entry((*chain).to_owned()).or_default().rules.push(iptables_rule(words));
                }
                _ => {}
            }
        }
        rules
    }

    /// Whether the port is shut, and by what.
    pub(super) fn shut(&self, port: Port) -> Option<Shut> {
        let inputs = self.0.iter().filter(|(_, chain)| chain.is_input).map(|(name, _)| name.as_str());
        // Every chain at the hook has to let a packet in.
        inputs.into_iter().find_map(|input| {
            if self.judge_by_name(input, port, CHAIN_DEPTH_MAX) == Some(Verdict::Out) {
                return Some(Shut::Named);
            }
            self.keeps_out_unnamed(input, port).then_some(Shut::Unnamed)
        })
    }

    /// What becomes of a packet to the port in this chain by the first rule that surely concerns it; `None` if none does, or
    /// if some packets to it are let in before that.
    fn judge_by_name(&self, chain: &str, port: Port, depth: usize) -> Option<Verdict> {
        let rules = self.0.get(chain).map_or(&[][..], |chain| &chain.rules);
        for rule in rules {
            let is_named = rule.names(port);
            let is_sure = rule.is_unconditional || (rule.is_by_port && is_named);
            match (&rule.verdict, is_sure) {
                (verdict @ (Verdict::Out | Verdict::In), true) => return Some(verdict.clone()),
                // Whoever wrote this lets some in.
                (Verdict::In, false) if is_named => return Some(Verdict::In),
                // Chains may jump to each other in a circle.
                (Verdict::Jump(next), true) if depth > 0 => {
                    let judged = self.judge_by_name(next, port, depth - 1);
                    if judged.is_some() {
                        return judged;
                    }
                }
                (Verdict::Return, true) => return None,
                (Verdict::Out | Verdict::In | Verdict::Jump(_) | Verdict::Return | Verdict::Other, _) => {}
            }
        }
        None
    }

    fn keeps_out_unnamed(&self, input: &str, port: Port) -> bool {
        let ends_out = |name: &&str| {
            let chain = self.0.get(*name);
            let is_end = |rule: &Rule| rule.is_unconditional && rule.verdict == Verdict::Out;
            chain.is_some_and(|chain| chain.drops_by_policy || chain.rules.iter().any(is_end))
        };
        let surely = self.reachable(input, true);
        let maybe = self.reachable(input, false);
        let names_it = |rule: &Rule| rule.verdict != Verdict::Out && rule.names(port);
        let is_named = maybe.iter().filter_map(|name| self.0.get(*name)).any(|chain| chain.rules.iter().any(names_it));
        surely.iter().any(ends_out) && !is_named && !self.lets_all_in(input)
    }

    /// Whether the chain itself ends with a rule that lets everything in.
    fn lets_all_in(&self, input: &str) -> bool {
        let rules = self.0.get(input).map_or(&[][..], |chain| &chain.rules);
        rules.iter().any(|rule| rule.is_unconditional && rule.verdict == Verdict::In)
    }

    /// The chains that a packet comes to from this one, `surely` or under whatever condition.
    fn reachable<'a>(&'a self, from: &'a str, surely: bool) -> BTreeSet<&'a str> {
        let (mut found, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(name) = open.pop() {
            // Chains may jump to each other in a circle.
            if !found.insert(name) {
                continue;
            }
            let rules = self.0.get(name).map_or(&[][..], |chain| &chain.rules);
            for rule in rules.iter().filter(|rule| rule.is_unconditional || !surely) {
                if let Verdict::Jump(next) = &rule.verdict {
                    open.push(next);
                }
            }
        }
        found
    }

    pub(super) fn has_chain(&self, name: &str) -> bool {
        self.0.keys().any(|known| known.rsplit(' ').next() == Some(name))
    }

    pub(super) fn is_of_firewalld(&self) -> bool {
        self.0.keys().any(|known| known.contains(" firewalld ") || known.starts_with("IN_public"))
    }

    /// The chain of nftables into which a rule has to go, as its commands name it.
    pub(super) fn input_of_nft(&self) -> Option<&str> {
        let mut inputs = self.0.iter().filter(|(name, chain)| chain.is_input && name.contains(' '));
        inputs.next().map(|(name, _)| name.as_str())
    }
}

impl Rule {
    fn names(&self, Port(protocol, number): Port) -> bool {
        let is_it = |(of, from, to): &Ports| of.is_none_or(|of| of == protocol) && (*from..=*to).contains(&number);
        self.ports.iter().any(is_it)
    }
}

/// The value at a JSON pointer; null if there is none.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn table_and(object: &Value, name: &str) -> String {
    format!("{} {} {name}", word(at(object, "/family")), word(at(object, "/table")))
}

fn nft_rule(rule: &Value, table: &str, sets: &BTreeMap<String, &Value>) -> Rule {
    // Until an expression says otherwise: a rule without any matches everything.
    let mut read = Rule { is_unconditional: true, is_by_port: true, ..Rule::default() };
    for expression in at(rule, "/expr").as_array().into_iter().flatten().filter_map(Value::as_object) {
        for (kind, value) in expression {
            match kind.as_str() {
                "drop" | "reject" => read.verdict = Verdict::Out,
                "accept" => read.verdict = Verdict::In,
                "return" => read.verdict = Verdict::Return,
                "jump" | "goto" => read.verdict = Verdict::Jump(format!("{table}{}", word(at(value, "/target")))),
                "counter" | "log" | "comment" => {}
                "match" => {
                    read.is_unconditional = false;
                    let ports = nft_ports(value, table, sets);
                    // That it is TCP at all is said by its port as well.
                    read.is_by_port &= !ports.is_empty() || is_of_protocol(value);
                    read.ports.extend(ports);
                }
                // What iptables wrote in words of its own, a limit, a map of verdicts, …
                _ => {
                    (read.is_unconditional, read.is_by_port) = (false, false);
                    if kind == "vmap" && at(value, "/key/payload/field") == "dport" {
                        read.ports.extend(ranges(
                            Protocol::of(word(at(value, "/key/payload/protocol"))),
                            at(value, "/data/set"),
                        ));
                    }
                }
            }
        }
    }
    read
}

/// Whether the condition is only that of the protocol that its ports have anyway.
fn is_of_protocol(condition: &Value) -> bool {
    let is_l4 = at(condition, "/left/meta/key") == "l4proto" || at(condition, "/left/payload/field") == "protocol";
    is_l4 && at(condition, "/op") != "!=" && at(condition, "/right").is_string()
}

fn nft_ports(condition: &Value, table: &str, sets: &BTreeMap<String, &Value>) -> Vec<Ports> {
    let payload = at(condition, "/left/payload");
    if at(payload, "/field") != "dport" || at(condition, "/op") == "!=" {
        return Vec::new();
    }
    // `th dport` is of any protocol.
    let protocol = Protocol::of(word(at(payload, "/protocol")));
    let right = at(condition, "/right");
    match right.as_str().and_then(|name| sets.get(&format!("{table}{name}"))) {
        Some(elements) => ranges(protocol, elements),
        None => ranges(protocol, right),
    }
}

/// A number, a range, or a set of both.
fn ranges(protocol: Option<Protocol>, value: &Value) -> Vec<Ports> {
    let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
    if let Some(port) = number(value) {
        return vec![(protocol, port, port)];
    }
    if let (Some(from), Some(to)) = (number(at(value, "/range/0")), number(at(value, "/range/1"))) {
        return vec![(protocol, from, to)];
    }
    let elements = value.as_array().or_else(|| at(value, "/set").as_array());
    // In a map of verdicts the first of a pair is the port.
    let key = |element: &Value| element.get(0).cloned().unwrap_or_else(|| element.clone());
    elements.into_iter().flatten().flat_map(|element| ranges(protocol, &key(element))).collect()
}

fn iptables_rule(words: &[&str]) -> Rule {
    let mut rule = Rule { is_unconditional: true, is_by_port: true, ..Rule::default() };
    let mut protocol = None;
    let mut rest = words.iter().peekable();
    while let Some(option) = rest.next() {
        match *option {
            "-j" | "-g" => {
                rule.verdict = match rest.next().copied().unwrap_or_default() {
                    "DROP" | "REJECT" => Verdict::Out,
                    "ACCEPT" => Verdict::In,
                    "RETURN" => Verdict::Return,
                    chain => Verdict::Jump(chain.to_owned()),
                };
                // What follows is of the target.
                break;
            }
            "-p" => {
                rule.is_unconditional = false;
                protocol = rest.next().and_then(|word| Protocol::of(word));
            }
            "--dport" | "--dports" => {
                // Of all ports but these nothing can be said about ours.
                let is_inverted = words.windows(2).any(|pair| pair == ["!", *option]);
                let list = rest.next().copied().unwrap_or_default();
                let parts = list.split(',').filter(|_| !is_inverted);
                rule.ports.extend(parts.filter_map(|part| {
                    let (from, to) = part.split_once(':').unwrap_or((part, part));
                    Some((protocol, from.parse().ok()?, to.parse().ok()?))
                }));
            }
            "-m" => {
                rule.is_unconditional = false;
                rule.is_by_port &= rest.next().is_some_and(|module| ["tcp", "udp", "multiport"].contains(module));
            }
            _ => (rule.is_unconditional, rule.is_by_port) = (false, false),
        }
    }
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Port = Port(Protocol::Tcp, 7_280);

    fn nft(chains: &str, rules: &[&str]) -> Rules {
        let rules: Vec<_> = rules
            .iter()
            .map(|rule| {
                let (chain, expressions) = rule.split_once(' ').unwrap();
                format!(r#",{{"rule":{{"family":"inet","table":"filter","chain":"{chain}","expr":[{expressions}]}}}}"#)
            })
            .collect();
        Rules::of_nft(&format!(r#"{{"nftables":[{{"metainfo":{{}}}},{chains}{}]}}"#, rules.concat())).unwrap()
    }

    fn input(policy: &str) -> String {
        format!(
            r#"{{"chain":{{"family":"inet","table":"filter","name":"input","hook":"input","policy":"{policy}"}}}},
               {{"chain":{{"family":"inet","table":"filter","name":"more"}}}},
               {{"set":{{"family":"inet","table":"filter","name":"ports","elem":[22,{{"range":[7000,7300]}}]}}}}"#
        )
    }

    fn dport(right: &str) -> String {
        format!(
            r#"{{"match":{{"op":"==","left":{{"payload":{{"protocol":"tcp","field":"dport"}}}},"right":{right}}}}},{{"accept":null}}"#
        )
    }

    #[test]
    fn port_that_no_rule_of_nft_names_is_shut_only_if_the_rest_is_kept_out() {
        assert!(nft(&input("drop"), &[]).shut(PORT).is_some());
        assert!(nft(&input("accept"), &[]).shut(PORT).is_none());
        assert!(nft(&input("accept"), &[r#"input {"counter":{}},{"drop":null}"#]).shut(PORT).is_some());
        assert!(nft(&input("accept"), &[r#"more {"drop":null}"#]).shut(PORT).is_none(), "nothing leads there");
        assert!(
            nft(&input("accept"), &[r#"input {"jump":{"target":"more"}}"#, r#"more {"reject":{}}"#])
                .shut(PORT)
                .is_some()
        );
        for open in ["7280", r#"{"set":[22,7280]}"#, r#"{"range":[7000,8000]}"#, r#""@ports""#] {
            assert!(nft(&input("drop"), &[&format!("input {}", dport(open))]).shut(PORT).is_none(), "{open}");
        }
        for other in ["22", r#"{"set":[22,80]}"#, r#""@missing""#] {
            assert!(nft(&input("drop"), &[&format!("input {}", dport(other))]).shut(PORT).is_some(), "{other}");
        }
        assert!(nft(&input("drop"), &[&format!("input {}", dport("7280"))]).shut(Port(Protocol::Udp, 7_280)).is_some());
        assert_eq!(nft(&input("drop"), &[]).input_of_nft(), Some("inet filter input"));
        assert!(Rules::of_nft("{").is_err());
    }

    #[test]
    fn iptables_is_read_as_it_prints_itself() {
        let shut = |text: &str| Rules::of_iptables(text).shut(PORT).is_some();
        assert!(!shut("-P INPUT ACCEPT\n"));
        assert!(shut("-P INPUT DROP\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"));
        assert!(!shut("-P INPUT DROP\n-A INPUT -p tcp -m tcp --dport 7280 -j ACCEPT"));
        assert!(!shut("-P INPUT DROP\n-A INPUT -p tcp -m multiport --dports 22,7000:7300 -j ACCEPT"));
        assert!(shut("-P INPUT DROP\n-A INPUT -p udp -m udp --dport 7280 -j ACCEPT"));
        // As NixOS writes it: the policy accepts, and the end of another chain refuses.
        let nixos = "-P INPUT ACCEPT\n-N nixos-fw\n-A INPUT -j nixos-fw\n-A nixos-fw -i lo -j nixos-fw-accept\n\
            -A nixos-fw -p tcp -m tcp --dport 22 -j nixos-fw-accept\n-A nixos-fw -j nixos-fw-log-refuse\n\
            -A nixos-fw-accept -j ACCEPT\n-A nixos-fw-log-refuse -j nixos-fw-refuse\n-A nixos-fw-refuse -j DROP";
        assert!(shut(nixos));
        assert!(!shut(&nixos.replace("--dport 22", "--dport 7280")));
        let banned = "-P INPUT ACCEPT\n-A INPUT -p tcp -m multiport --dports 22 -j f2b\n-A f2b -s 192.0.2.1/32 -j REJECT\n-A f2b -j RETURN";
        assert!(!shut(banned));
    }

    #[test]
    fn rule_that_keeps_the_port_out_shuts_it_where_all_else_is_let_in() {
        let drop = |right: &str| format!("input {}", dport(right).replace("accept", "drop"));
        let shut = |rules: &[&str]| nft(&input("accept"), rules).shut(PORT);
        for named in ["7280", r#"{"set":[22,7280]}"#, r#"{"range":[7000,8000]}"#, r#""@ports""#] {
            assert_eq!(shut(&[&drop(named)]), Some(Shut::Named), "{named}");
        }
        assert_eq!(shut(&[&drop("22")]), None);
        let accept = format!("input {}", dport("7280"));
        assert_eq!(shut(&[&accept, &drop("7280")]), None, "the first counts");
        let some = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"192.0.2.1"}},"#;
        let of_some = |rule: &str| rule.replacen("input ", &format!("input {some}"), 1);
        assert_eq!(shut(&[&of_some(&drop("7280"))]), None, "only some are kept out");
        assert_eq!(shut(&[&of_some(&accept), &drop("7280")]), None, "some are let in");
        let circle = [r#"input {"jump":{"target":"more"}}"#, r#"more {"jump":{"target":"more"}}"#];
        assert_eq!(shut(&circle), None);
        let there = drop("7280").replacen("input", "more", 1);
        assert_eq!(shut(&[r#"input {"jump":{"target":"more"}}"#, &there]), Some(Shut::Named));
        assert_eq!(shut(&[r#"input {"jump":{"target":"more"}}"#, r#"more {"return":null}"#, &there]), None);

        let shut = |text: &str| Rules::of_iptables(text).shut(PORT);
        for rule in ["--dport 7280", "--dport 7000:7300"] {
            let text = format!("-P INPUT ACCEPT\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp {rule} -j DROP");
            assert_eq!(shut(&text), Some(Shut::Named), "{rule}");
        }
        assert_eq!(shut("-P INPUT ACCEPT\n-A INPUT -p udp -m udp --dport 7280 -j DROP"), None);
        assert_eq!(shut("-P INPUT ACCEPT\n-A INPUT -s 192.0.2.1/32 -p tcp -m tcp --dport 7280 -j DROP"), None);
        assert_eq!(shut("-P INPUT ACCEPT\n-A INPUT ! -i wg0 -p tcp -m tcp --dport 7280 -j DROP"), None);
    }
}
