//! What may go wrong at random.

use crate::scenario::Faults;

/// One random fault, or one change of a machine's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Crash { keep_disk: bool },
    Restart,
    Sleep,
    Cut,
    Partition,
    Move,
    Withhold,
    Distrust,
    Skew,
    Build,
    Collect,
}

impl Fault {
    /// All kinds, each with its weight against the others.
    pub(crate) fn choices(faults: &Faults) -> [(u64, Self); 12] {
        [
            (faults.crash, Self::Crash { keep_disk: true }),
            (faults.crash_without_state, Self::Crash { keep_disk: false }),
            (faults.restart, Self::Restart),
            (faults.sleep, Self::Sleep),
            (faults.cut, Self::Cut),
            (faults.partition, Self::Partition),
            (faults.moves, Self::Move),
            (faults.withhold, Self::Withhold),
            (faults.distrust, Self::Distrust),
            (faults.skew, Self::Skew),
            (faults.build, Self::Build),
            (faults.collect, Self::Collect),
        ]
    }
}
