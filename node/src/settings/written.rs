//! Values in refusals, as the file writes them: text in quotes, numbers and truth without.

use std::path::{Path, PathBuf};
use toml::value::Datetime;

/// How a value is shown.
pub(super) trait Written {
    fn written(&self) -> String;
}

/// How many there are of something, where all of them would be too long to read.
pub(super) struct Count(pub(super) usize, pub(super) &'static str);

macro_rules! bare {
    ($($kind:ty),*) => { $(impl Written for $kind {
        fn written(&self) -> String {
            self.to_string()
        }
    })* };
}

bare!(bool, u32, u64, Datetime);

macro_rules! quoted {
    ($($kind:ty),*) => { $(impl Written for $kind {
        fn written(&self) -> String {
            format!("{self:?}")
        }
    })* };
}

quoted!(str, String, Path, PathBuf, Vec<String>);

impl Written for Count {
    fn written(&self) -> String {
        format!("({} {})", self.0, self.1)
    }
}

impl<T: Written + ?Sized> Written for &T {
    fn written(&self) -> String {
        (**self).written()
    }
}
