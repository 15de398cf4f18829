//! What goes wrong, and how often.

use crate::draw::Draw;

/// The network and the faults of one run. Times in milliseconds, shares in thousandths.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// One-way delay of a message, the least and the most.
    pub delay_ms: (u64, u64),
    /// Messages lost: a lost request or answer is noticed by its timeout alone.
    pub loss_permille: u64,
    /// Messages delivered twice.
    pub duplicate_permille: u64,
    /// Mean time between two faults anywhere.
    pub every_ms: u64,
}

impl Faults {
    /// A bad wide-area network: guesses, not measured.
    pub const WAN: Self = Self { delay_ms: (5, 120), loss_permille: 30, duplicate_permille: 20, every_ms: 1_500 };
    /// The same delays, nothing lost.
    pub const HEALED: Self = Self { loss_permille: 0, duplicate_permille: 0, ..Self::WAN };
}

/// One fault, or one change of the machines' own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// A build: so many paths appear on a machine.
    Build { paths: u64 },
    /// Garbage collection of so many thousandths.
    Collect { permille: u64 },
    /// A machine stops between two outputs, or at once; it comes back later, with its disk or without.
    Crash { keep_disk: bool, for_ms: u64 },
    /// A machine is suspended.
    Sleep { for_ms: u64 },
    /// One link is cut.
    Cut { for_ms: u64 },
    /// All links between two halves are cut.
    Partition { for_ms: u64 },
    /// One machine stops trusting another for a while.
    Distrust { for_ms: u64 },
    /// A machine's wall clock is set wrong by up to 3 h.
    Skew,
}

impl Fault {
    pub(crate) fn draw(draw: &mut Draw) -> Self {
        let for_ms = draw.between(200, 60_000);
        match draw.below(20) {
            0..=6 => {
                let most = if draw.chance(50) { 1_500 } else { 12 };
                Self::Build { paths: 1 + draw.below(most) }
            }
            7..=9 => {
                let most = if draw.chance(100) { 500 } else { 40 };
                Self::Collect { permille: 1 + draw.below(most) }
            }
            10..=12 => Self::Crash { keep_disk: draw.chance(700), for_ms },
            13 => Self::Sleep { for_ms: 4 * for_ms },
            14..=16 => Self::Cut { for_ms },
            17 => Self::Partition { for_ms },
            18 => Self::Distrust { for_ms },
            _ => Self::Skew,
        }
    }
}
