//! What can be seen of a machine: its status, its gateway, its log.

use std::fs::{self, File};
use std::time::Duration;

use super::TestNode;
use super::daemon::START;
use crate::http::{HttpAnswer, get};
use crate::nix::{NarInfoText, hash_part};
use crate::prober::Prober;
use crate::status::Status;
use crate::wait::{poll, promised, wait_for, wait_until};

/// A change of a store is promised to be noticed within 1 s and to be substitutable elsewhere within 2 s.
const SPREAD: Duration = Duration::from_secs(2);

impl TestNode {
    /// The full status.
    ///
    /// # Panics
    /// When the daemon does not answer.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|| panic!("{} gives no status; its log:\n{}", self.name, self.log()))
    }

    pub(super) fn try_status(&self) -> Option<Status> {
        let answer = self.narmesh(&["status", "--json"]);
        answer.status.success().then(|| serde_json::from_str(&answer.stdout).ok()).flatten().map(Status)
    }

    /// Waits until the condition holds of this node's status.
    ///
    /// # Panics
    /// When it does not within ten times `bound`; the message holds the last status.
    #[track_caller]
    pub fn wait_status(&self, what: &str, bound: Duration, holds: impl Fn(&Status) -> bool) -> Status {
        let mut last = None;
        let found = poll(promised(bound), || {
            let status = self.status();
            let done = holds(&status);
            last = Some(status.0.clone());
            done.then_some(status)
        });
        found.unwrap_or_else(|| panic!("{}: waited in vain for: {what}; its status: {last:?}", self.name))
    }

    /// Waits until this node advertises `paths` paths and `listeners` have heard of them.
    ///
    /// # Panics
    /// When that takes ten times as long as promised.
    #[track_caller]
    pub fn wait_advertised(&self, paths: u64, listeners: &[&Self]) {
        self.wait_status(&format!("advertises {paths} paths"), SPREAD, |status| status.number("/own/paths") == paths);
        for listener in listeners {
            listener.wait_status(&format!("has heard of {paths} paths of {}", self.name), SPREAD, |status| {
                status.summary_paths(&self.name) == Some(paths)
            });
        }
    }

    /// Waits until this node advertises all outputs of its store, and `listeners` have heard of them.
    ///
    /// # Panics
    /// As [`TestNode::wait_advertised`].
    #[track_caller]
    pub fn wait_all_advertised(&self, listeners: &[&Self]) {
        self.wait_advertised(self.store.outputs().len() as u64, listeners);
    }

    /// Waits until the connection with `name` is up, or down.
    ///
    /// # Panics
    /// When that takes ten times `bound`.
    #[track_caller]
    pub fn wait_connected(&self, name: &str, connected: bool, bound: Duration) {
        let what = format!("connection with {name} is {}", if connected { "up" } else { "down" });
        self.wait_status(&what, bound, |status| status.connected(name) == connected);
    }

    /// Asks the gateway for the narinfo of `path`.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    #[must_use]
    pub fn get_narinfo(&self, path: &str) -> HttpAnswer {
        let ask = || get(self.gateway(), &narinfo_url(path)).expect("the gateway answers");
        match &self.network {
            Some(network) => network.enter(ask),
            None => ask(),
        }
    }

    /// Asks the gateway for the narinfo of `path` until it has one.
    ///
    /// # Panics
    /// When it has not within ten times the promise.
    #[track_caller]
    #[must_use]
    pub fn wait_narinfo(&self, path: &str) -> NarInfoText {
        let answer = wait_for(&format!("{} finds {path}", self.name), promised(SPREAD), || {
            Some(self.get_narinfo(path)).filter(|answer| answer.status == 200)
        });
        NarInfoText::parse(&answer.text())
    }

    /// Starts a prober that asks this node's gateway for the narinfos of `paths`, for a narinfo that nobody has, and for
    /// `nix-cache-info`.
    #[must_use]
    pub fn probe(&self, paths: &[&str]) -> Prober {
        let mut urls: Vec<_> = paths.iter().map(|path| narinfo_url(path)).collect();
        urls.push("/nix-cache-info".to_owned());
        urls.push("/00000000000000000000000000000000.narinfo".to_owned());
        Prober::start(self.gateway(), urls, self.network.clone())
    }

    /// The longest that a narinfo may take in a story: the configured deadline times [`crate::PROMISE_FACTOR`].
    #[must_use]
    pub fn narinfo_slowest_max(&self) -> Duration {
        promised(Duration::from_millis(self.config.narinfo_deadline_ms.into()))
    }

    /// Everything that the daemon has logged, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_file()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Empties the log, so that a later look finds only what came after.
    ///
    /// # Panics
    /// When the file cannot be opened.
    pub fn clear_log(&self) {
        File::create(self.log_file()).expect("our own directory");
    }

    /// Waits until the log has a line that holds all of `words`, in any case.
    ///
    /// # Panics
    /// When it has none in time.
    #[track_caller]
    pub fn wait_logged(&self, words: &[&str]) {
        wait_until(&format!("{} logs {words:?}", self.name), promised(START), || {
            self.log().lines().map(str::to_lowercase).any(|line| words.iter().all(|word| line.contains(word)))
        });
    }
}

fn narinfo_url(path: &str) -> String {
    format!("/{}.narinfo", hash_part(path))
}
