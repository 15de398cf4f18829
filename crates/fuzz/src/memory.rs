//! How much memory a piece of work takes at its peak.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What a decoder may take: `constant + per_byte * input bytes`. Both hold while a `Vec` grows, when old and new space exist.
#[derive(Clone, Copy, Debug)]
pub struct MemoryBound {
    /// For each byte of the input.
    pub per_byte: usize,
    /// Whatever the input, bytes.
    pub constant: usize,
}

impl MemoryBound {
    /// Runs `work` on an input of `input_bytes`; panics when its peak was above the bound.
    ///
    /// Counts the whole process, so nothing else may run meanwhile.
    pub fn hold<T>(self, input_bytes: usize, work: impl FnOnce() -> T) -> T {
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let result = work();
        let taken = ALLOCATOR.peak_usage().saturating_sub(before);
        let allowed = self.per_byte * input_bytes + self.constant;
        assert!(taken <= allowed, "{taken} bytes of memory for an input of {input_bytes}, allowed {allowed}");
        result
    }
}
