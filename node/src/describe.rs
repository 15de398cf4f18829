//! Errors, as people read them.

/// The error and its causes, each said once: many messages hold their cause already.
pub(crate) fn describe(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(cause.trim()) {
            text = format!("{}: {cause}", text.trim_end());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::Error::from(Config::parse("[nodes]", Path::new("x.toml")).unwrap_err());
        assert_eq!(describe(&error).matches("unknown field").count(), 1);
        assert_eq!(describe(&error.context("not reloaded")).matches("unknown field").count(), 1);
    }
}
