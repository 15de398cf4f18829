//! What bytes of a circuit are read from and written to.

use futures::{AsyncRead, AsyncWrite};

/// A connection with a relay, or with a member that was met.
pub(crate) type Socket = Box<dyn Duplex>;

/// Bytes in both directions.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
