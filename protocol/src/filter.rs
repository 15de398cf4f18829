//! The Bloom filter of a summary: its shape, its constants, its index function.
//!
//! It uses enhanced double hashing as in the crate `bloomfilter` 3.0.2: SipHash-1-3 under two keys, then `h0 + i * h1`
//! modulo the largest 64-bit prime. So that crate can build our filters, and a property test compares [`BitPositions`]
//! with it.

use crate::HashPart;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// The number of the index function in this module: the value of `hash_id` in a summary.
pub const HASH_ID_V1: u32 = 1;
/// Hash functions per item, in every class: optimal at 15.9 bits per item, within 6 % of the optimum from 11 to 23 bits.
pub const HASHES_PER_ITEM: usize = 11;
/// The crate's modulus: the largest prime below 2^64.
const PRIME: u64 = 0xFFFF_FFFF_FFFF_FFC5;
/// The two SipHash keys of hash id 1. They must differ: equal halves ruin the false-positive rate.
const SEED_V1: [u8; 32] = *b"narmesh filter 1narmesh filter B";
/// A peer's filter is refused above 4 times the nominal false-positive rate of 2^-11, that is, above this share of
/// set bits: (4 * 2^-11)^(1/11).
const ONES_SHARE_MAX: f64 = 0.5672;

/// The seed with which the crate `bloomfilter` builds a filter of hash id 1.
pub fn filter_seed() -> &'static [u8; 32] {
    &SEED_V1
}

/// A filter's size: a power of two of bits, 2^13 (1 KiB) to 2^24 (2 MiB).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FilterClass(u8);

impl FilterClass {
    /// Smallest class, as log2 of its bits.
    pub const LOG2_BITS_MIN: u8 = 13;
    /// Largest class, as log2 of its bits.
    pub const LOG2_BITS_MAX: u8 = 24;

    /// The smallest class that holds `items` with a false-positive rate of at most `rate` and at most half of its bits set.
    /// `None` when even the largest class is too small.
    ///
    /// From Bloom's `rate = (1 - e^(-k n / m))^k` follows: bits per item = `-k / ln(1 - rate^(1/k))`. The crate `libm`
    /// computes it, since the last digit of the system's library differs between machines.
    pub fn for_items(items: u64, rate: f64) -> Option<Self> {
        let k = HASHES_PER_ITEM as f64;
        let ones_share = libm::pow(rate, 1.0 / k).min(0.5);
        let bits = items as f64 * -k / libm::log(1.0 - ones_share);
        (Self::LOG2_BITS_MIN..=Self::LOG2_BITS_MAX).find(|&log2| (1u64 << log2) as f64 >= bits).map(Self)
    }

    /// The class of a filter with this many bytes.
    pub fn of_bytes(filter_bytes: usize) -> Result<Self, FilterError> {
        (Self::LOG2_BITS_MIN..=Self::LOG2_BITS_MAX)
            .find(|&log2| 1usize << (log2 - 3) == filter_bytes)
            .map(Self)
            .ok_or(FilterError::Size { filter_bytes })
    }

    /// Size of a filter of this class in bits.
    pub fn bits(self) -> u32 {
        1 << self.0
    }

    /// Size of a filter of this class in bytes.
    pub fn bytes(self) -> usize {
        1 << (self.0 - 3)
    }

    /// The item count for which [`HASHES_PER_ITEM`] is optimal. The crate `bloomfilter` needs it to choose that many.
    pub fn nominal_items(self) -> usize {
        // bits * ln 2 / 11, in integers: ln 2 / 11 = 0.063013380...
        usize::try_from(u64::from(self.bits()) * 63_013 / 1_000_000).expect("below 2^24")
    }
}

/// Why a filter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The size is not that of any class.
    #[error("filter of {filter_bytes} bytes, expected a power of two from 1024 to 2097152")]
    Size {
        /// Size of the filter, bytes.
        filter_bytes: usize,
    },
    /// So many bits are set that the filter claims nearly every path.
    #[error("filter with {ones} of {bits} bits set, limit is a share of {ONES_SHARE_MAX}")]
    TooDense {
        /// Number of bits set.
        ones: u64,
        /// Size of the filter, bits.
        bits: u32,
    },
}

/// A filter whose class is known and whose density is acceptable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    class: FilterClass,
    bytes: Vec<u8>,
}

impl Filter {
    /// Checks a peer's bytes: refuses a wrong size, and a density that means more than 4 times the
    /// nominal false-positive rate.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, FilterError> {
        let class = FilterClass::of_bytes(bytes.len())?;
        let ones = bytes.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        if ones as f64 > f64::from(class.bits()) * ONES_SHARE_MAX {
            return Err(FilterError::TooDense { ones, bits: class.bits() });
        }
        Ok(Self { class, bytes })
    }

    /// The filter's size class.
    pub fn class(&self) -> FilterClass {
        self.class
    }

    /// The bits, the least significant bit of each byte first.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the filter says maybe: all bits of the hash part are set.
    pub fn may_contain(&self, positions: &BitPositions) -> bool {
        positions
            .in_class(self.class)
            .all(|bit| self.bytes.get(bit as usize / 8).is_some_and(|byte| byte & (1 << (bit % 8)) != 0))
    }
}

/// The bit positions of one hash part before they are reduced to a class: one computation serves filters of all classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitPositions([u64; HASHES_PER_ITEM]);

impl BitPositions {
    /// Hashes the 20 bytes of `hash_part` under the keys of hash id 1.
    pub fn of(hash_part: &HashPart) -> Self {
        let (first_key, second_key) = (key(&SEED_V1, 0), key(&SEED_V1, 16));
        let sip = |key: &[u8; 16]| {
            let mut hasher = SipHasher13::new_with_key(key);
            hasher.write(&hash_part.0);
            hasher.finish()
        };
        let (first, second) = (sip(&first_key), sip(&second_key));
        let mut all = [first; HASHES_PER_ITEM];
        for (i, slot) in (0u64..).zip(&mut all) {
            *slot = match i {
                0 => first,
                1 => second,
                // As the crate `bloomfilter` does, so that both set the same bits.
                _ => first.wrapping_add(i.wrapping_mul(second)) % PRIME,
            };
        }
        Self(all)
    }

    /// The bit indices in a filter of `class`; an index can occur twice.
    pub fn in_class(&self, class: FilterClass) -> impl Iterator<Item = u32> + '_ {
        let mask = u64::from(class.bits() - 1);
        self.0.iter().map(move |hash| u32::try_from(hash & mask).expect("masked below 2^24"))
    }
}

fn key(seed: &[u8; 32], at: usize) -> [u8; 16] {
    let mut key = [0; 16];
    for (to, from) in key.iter_mut().zip(seed.iter().skip(at)) {
        *to = *from;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use bloomfilter::Bloom;
    use proptest::prelude::*;

    fn crate_filter(class: FilterClass, items: &[HashPart]) -> Bloom<HashPart> {
        let mut bloom = Bloom::new_with_seed(class.bytes(), class.nominal_items(), filter_seed()).unwrap();
        items.iter().for_each(|item| bloom.set(item));
        bloom
    }

    proptest! {
        #[test]
        fn agrees_with_the_crate_in_every_class(
            log2 in FilterClass::LOG2_BITS_MIN..=FilterClass::LOG2_BITS_MAX,
            items in prop::collection::vec(any::<[u8; 20]>().prop_map(HashPart), 1..40),
            others in prop::collection::vec(any::<[u8; 20]>().prop_map(HashPart), 1..40),
        ) {
            let class = FilterClass(log2);
            let bloom = crate_filter(class, &items);
            prop_assert_eq!(bloom.number_of_hash_functions() as usize, HASHES_PER_ITEM);
            // The crate's format begins with version, length, number of hash functions and seed; the bits follow.
            let bits = &bloom.as_slice()[1 + 8 + 4 + 32..];
            let filter = Filter::from_bytes(bits.to_vec()).unwrap();
            for item in items.iter().chain(&others) {
                prop_assert_eq!(filter.may_contain(&BitPositions::of(item)), bloom.check(item));
            }
        }
    }

    #[test]
    fn sizes_follow_the_rate() {
        // 17.3 bits per item at 100 peers: 10,000 paths need 173,000 bits, so the class is 2^18.
        assert_eq!(FilterClass::for_items(10_000, 0.025 / 100.0).unwrap().bits(), 1 << 18);
        assert_eq!(FilterClass::for_items(0, 0.01).unwrap().bits(), 1 << 13);
        assert_eq!(FilterClass::for_items(10_000_000, 0.01), None);
    }

    #[test]
    fn the_size_is_the_same_on_every_machine() {
        // The exact bits of the doubles: a library that rounds differently would choose another class at a boundary.
        assert_eq!(libm::pow(0.025 / 100.0, 1.0 / 11.0).to_bits(), 0x3fde_1c52_d984_821c);
        assert_eq!(libm::log(1.0 - 0.25).to_bits(), 0xbfd2_6962_1134_db92);
        // The last item count of a class, and the first of the next.
        let class = |items| FilterClass::for_items(items, 0.025 / 100.0).unwrap().bits();
        let border = (10_000..20_000).find(|items| class(*items) > class(10_000)).unwrap();
        assert_eq!(border, 15_152);
    }

    #[test]
    fn filters_of_wrong_size_or_density_are_refused() {
        assert!(matches!(Filter::from_bytes(vec![0; 1000]), Err(FilterError::Size { .. })));
        assert!(matches!(Filter::from_bytes(Vec::new()), Err(FilterError::Size { .. })));
        assert!(matches!(Filter::from_bytes(vec![0xff; 1024]), Err(FilterError::TooDense { .. })));
        assert!(Filter::from_bytes(vec![0x55; 1024]).is_ok());
    }
}
