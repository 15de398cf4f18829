//! The bytes of a NAR or another file, as a substituter gives them.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;

/// A stream of a NAR or another file. It yields exactly the bytes from the first one requested to the end, or
/// [`BodyAborted`] as its last item.
pub type NarBody = Pin<Box<dyn Stream<Item = Result<Bytes, BodyAborted>> + Send>>;

/// Why there is no body of a NAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoNar {
    /// The path is gone.
    #[error("the NAR is gone")]
    Gone,
    /// It cannot be had now, and whoever asks again may get it.
    #[error("the NAR cannot be had now")]
    NotNow,
}

/// The body cannot be finished. The gateway then closes the connection before Content-Length is reached, which makes Nix
/// resume with a `Range` request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body cannot be finished")]
pub struct BodyAborted;
