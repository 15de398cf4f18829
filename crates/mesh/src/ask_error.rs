//! Why a question got no answer.

/// Why a peer gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It cannot be reached now.
    #[error("not connected: {0}")]
    NotConnected(String),
    /// It broke the connection or the protocol.
    #[error("request failed: {0}")]
    Failed(String),
    /// It has too much to do.
    #[error("busy")]
    Busy,
    /// The daemon is stopping.
    #[error("the mesh is stopping")]
    Stopping,
}
