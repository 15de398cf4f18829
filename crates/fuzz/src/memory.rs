//! Measures how much memory a piece of work takes at its peak.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What a decoder may take: `constant + per_byte * input bytes`. Bounds must allow for a growing `Vec`, whose old and new
/// space exist at the same time.
#[derive(Clone, Copy, Debug)]
pub struct MemoryBound {
    /// Bytes allowed for each byte of the input.
    pub per_byte: usize,
    /// Bytes allowed for any input.
    pub constant: usize,
}

impl MemoryBound {
    /// Runs `work` on an input of `input_bytes` bytes. Panics when the peak of its memory was above the bound.
    ///
    /// The memory of the whole process is counted, so nothing else may run meanwhile.
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
