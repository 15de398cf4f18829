//! Two and three cores in virtual time: what the protocol promises, and the attacks that it refuses.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "a test may fail loudly, and looks at one event of many"
)]

mod hostile;
mod hostile_news;
mod kept;
mod lifetimes;
mod lone;
mod net;
mod oracle;
mod stories;
mod undelivered;
