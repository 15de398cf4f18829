//! Values in refusals, as the file writes them: text in quotes, numbers and booleans without.

use std::path::{Path, PathBuf};
use toml::value::Datetime;

/// The text of a value in a refusal.
pub(super) trait Written {
    fn written(&self) -> String;
}

/// A number of items, with what they are, where listing all of them would be too long.
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
