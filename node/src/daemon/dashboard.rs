//! What the pages of the dashboard show.

use super::Daemon;
use super::status::assemble_status;
use crate::attestations::{Part, Queries, Question, Scope};
use crate::dashboard::DashboardSource;
use crate::status::log::{LogQuery, LogReport};
use crate::status::{Status, WhyReport};
use narmesh_quorum::ReportPart;
use std::sync::Arc;

impl DashboardSource for Daemon {
    async fn read_status(&self) -> anyhow::Result<Status> {
        assemble_status(self).await
    }

    fn read_log(&self, query: &LogQuery) -> anyhow::Result<LogReport> {
        self.find_in_log(query)
    }

    async fn read_why(&self, path: String) -> anyhow::Result<WhyReport> {
        self.explain(path).await
    }

    async fn read_verdict(&self, path: String) -> anyhow::Result<Vec<String>> {
        let (store, ledger) = (Arc::clone(&self.store), Arc::clone(self.attestations.ledger()));
        let ask = move || {
            let mut sentences = Vec::new();
            let queries = Queries { store: &store, ledger: &ledger, own: None };
            let question = Question::Report(Scope::Path(path));
            queries.answer(&question, std::io::empty(), |part| {
                if let Part::Report(ReportPart::Path(path)) = part {
                    sentences.extend(path.sentences);
                }
                Ok(())
            })?;
            Ok(sentences)
        };
        tokio::task::spawn_blocking(ask).await?
    }
}
