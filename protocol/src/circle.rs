//! Headers of HTTP by which daemons that are each other's upstream caches find out that they ask in a circle.

/// The header of a request that names by whom and for whom it is made, the first one first: ids of processes, 16 digits in
/// hexadecimal, with commas between them.
pub const VIA: &str = "narmesh-via";
/// The header of an answer that names the process that gave it. Only who sends [`VIA`] is told.
pub const ID: &str = "narmesh-id";
/// The header of an answer that says that nobody was asked, because the request comes round in a circle.
pub const CIRCLE: &str = "narmesh-circle";
