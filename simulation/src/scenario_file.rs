//! Scenarios as they are written: built in or in a file, as TOML, with bounds.

use serde::de::DeserializeOwned;
use std::borrow::Cow;

/// Why a scenario is refused.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Neither a built-in name nor a file.
    #[error("no scenario '{0}': neither one of `narmesh-sim list` nor a file that can be read")]
    Unknown(String, #[source] std::io::Error),
    /// Not TOML, or with a field that does not exist.
    #[error("scenario '{name}': {error}")]
    Syntax {
        /// The scenario's name or file.
        name: String,
        /// The parser's error, which names the line, the field and what would be accepted.
        error: Box<toml::de::Error>,
    },
    /// A value out of its bounds.
    #[error("scenario '{name}': {field} = {value} is not {accepted}")]
    Value {
        /// The scenario's name or file.
        name: String,
        /// The field that is out of bounds.
        field: &'static str,
        /// The value that the scenario has.
        value: String,
        /// What the value could be.
        accepted: &'static str,
    },
}

/// The text of the built-in scenario of this name, or of this file.
pub(crate) fn read(
    built_in: &[(&'static str, &'static str)],
    name_or_file: &str,
) -> Result<Cow<'static, str>, ScenarioError> {
    match built_in.iter().find(|(name, _)| *name == name_or_file) {
        Some((_, text)) => Ok(Cow::Borrowed(text)),
        None => std::fs::read_to_string(name_or_file)
            .map(Cow::Owned)
            .map_err(|error| ScenarioError::Unknown(name_or_file.to_owned(), error)),
    }
}

/// Decodes the text of a scenario.
pub(crate) fn decode<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, ScenarioError> {
    toml::from_str(text).map_err(|error| ScenarioError::Syntax { name: name.to_owned(), error: Box::new(error) })
}

/// Refuses a value that does not hold.
pub(crate) fn demand(
    name: &str,
    holds: bool,
    field: &'static str,
    value: impl ToString,
    accepted: &'static str,
) -> Result<(), ScenarioError> {
    let refusal = || ScenarioError::Value { name: name.to_owned(), field, value: value.to_string(), accepted };
    if holds { Ok(()) } else { Err(refusal()) }
}
