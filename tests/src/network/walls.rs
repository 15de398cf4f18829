//! Machines whose connections go on, and that get no further ones: a firewall that lets one connection through, or a
//! table of a router that is full; or a machine that takes them and says nothing.

use std::net::{SocketAddr, TcpListener};

use super::namespace::{INTERFACE, Namespace};
use super::nat::load_rules;

/// The table of a wall.
const WALL: &str = "further";

/// What becomes of further connections with a machine, until it is dropped.
#[derive(Debug)]
pub struct Wall {
    machine: Namespace,
    /// Takes connections, and says nothing.
    _silent: Option<TcpListener>,
}

impl Namespace {
    /// Has the packets dropped that begin a connection with this machine, from either side.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn drop_further_connections(&self) -> Wall {
        let begins = "tcp flags & (fin | syn | rst | ack) == syn drop";
        let rules = format!(
            "table inet {WALL} {{\n chain in {{\n type filter hook input priority 0\n iifname \"{INTERFACE}\" {begins}\n }}\n \
             chain out {{\n type filter hook output priority 0\n oifname \"{INTERFACE}\" {begins}\n }}\n}}\n"
        );
        load_rules(self.name(), &rules);
        Wall { machine: self.clone(), _silent: None }
    }

    /// Has the kernel know which connections stand, for [`Self::silence_further_connections`]. To be called before there are
    /// any.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn watch_connections(&self) {
        let rules = "table inet watch {\n chain in {\n type filter hook input priority 0\n ct state established accept\n }\n}\n";
        load_rules(self.name(), rules);
    }

    /// Has further connections to this port taken by nobody who ever says a word. Connections from this machine are
    /// dropped.
    ///
    /// # Panics
    /// When the system refuses.
    #[must_use]
    pub fn silence_further_connections(&self, port: u16) -> Wall {
        let silent = self.enter(|| TcpListener::bind(SocketAddr::new(self.address(), 0)).expect("a free port"));
        let to = silent.local_addr().expect("bound above").port();
        let rules = format!(
            "table inet {WALL} {{\n chain in {{\n type nat hook prerouting priority -100\n iifname \"{INTERFACE}\" tcp dport {port} \
             redirect to :{to}\n }}\n chain out {{\n type filter hook output priority 0\n oifname \"{INTERFACE}\" \
             tcp flags & (fin | syn | rst | ack) == syn drop\n }}\n}}\n"
        );
        load_rules(self.name(), &rules);
        Wall { machine: self.clone(), _silent: Some(silent) }
    }
}

impl Drop for Wall {
    fn drop(&mut self) {
        load_rules(self.machine.name(), &format!("delete table inet {WALL}\n"));
    }
}
