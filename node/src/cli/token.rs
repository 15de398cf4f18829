//! `narmesh token`.

use super::{emit, eprint_line};
use crate::settings::Settings;
use crate::tokens::{Tokens, is_token_name};
use jiff::Timestamp;
use narmesh_http_gateway::Reads;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(clap::Subcommand, Debug)]
pub(super) enum Command {
    /// Make a token and print it: it is shown only now
    Add {
        /// What it is called in the list; 1 to 64 letters, digits, '.', '_' and '-'
        name: String,
        /// When it ends to count, such as 2027-01-31 (at midnight UTC) or 2027-01-31T12:00:00Z; never if not given
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Give it only what comes from the own store, as a listener of the role `serve` does, also where the listener gives more
        #[arg(long)]
        own_store: bool,
        #[command(flatten)]
        file: File,
    },
    /// Show the names of the tokens, what may be read with them, and until when they count
    List {
        #[command(flatten)]
        file: File,
    },
    /// Make a token count no longer: the running daemon notices within two seconds
    Revoke {
        /// The name of the token
        name: String,
        #[command(flatten)]
        file: File,
    },
}

#[derive(clap::Args, Debug)]
pub(super) struct File {
    /// The file of tokens, if the configuration names several, or none yet
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl File {
    fn find(&self, config: &Path) -> anyhow::Result<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let settings = Settings::load(config)?;
        let files: BTreeSet<_> = settings.gateway.listeners.iter().filter_map(|it| it.tokens_file.clone()).collect();
        let mut files = files.into_iter();
        match (files.next(), files.next()) {
            (Some(file), None) => Ok(file),
            (None, _) => anyhow::bail!(
                "no [[gateway.listener]] of {} has a tokens_file; name one with --file",
                settings.file.display()
            ),
            (Some(_), Some(_)) => anyhow::bail!("the configuration names several tokens_file; name one with --file"),
        }
    }
}

pub(super) fn token(config: &Path, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Add { name, until, own_store, file } => {
            let reads = if *own_store { Reads::OwnStore } else { Reads::Everything };
            add(&file.find(config)?, name, reads, until.as_deref())
        }
        Command::List { file } => list(&file.find(config)?),
        Command::Revoke { name, file } => {
            let file = file.find(config)?;
            Tokens::change(&file, |tokens| {
                anyhow::ensure!(tokens.revoke(name), "there is no token {name:?} in {}", file.display());
                Ok(())
            })
        }
    }
}

fn add(file: &Path, name: &str, reads: Reads, until: Option<&str>) -> anyhow::Result<()> {
    anyhow::ensure!(
        is_token_name(name),
        "{name:?} is no name of a token; accepted: 1 to 64 letters, digits, '.', '_' and '-'"
    );
    let until = until.map(|text| parse_until(text, Timestamp::now())).transpose()?;
    let secret = Tokens::change(file, |tokens| {
        anyhow::ensure!(
            tokens.iter().all(|token| token.name != name),
            "there is a token {name:?} already; revoke it first, or choose another name"
        );
        Ok(tokens.add(name, reads, until)?)
    })?;
    emit(&format!("{secret}\n"))?;
    eprint_line(&format!(
        "clients of Nix need a line in their netrc-file: machine HOST login {name} password {secret}"
    ));
    Ok(())
}

/// When a token ends to count, which has to be after `now`.
fn parse_until(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    let until = parse_time(text)?;
    anyhow::ensure!(
        until > now,
        "--until {text:?} is past, so the token would never count; accepted: a time after now ({now:.0})"
    );
    Ok(until)
}

/// A date is its beginning in UTC.
fn parse_time(text: &str) -> anyhow::Result<Timestamp> {
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    // Why it is none is said in the words of a parser, which help nobody.
    whole.parse().map_err(|_| {
        anyhow::anyhow!(
            "--until {text:?} is no time; accepted: 2027-01-31, or a time with a zone such as 2027-01-31T12:00:00Z"
        )
    })
}

fn list(file: &Path) -> anyhow::Result<()> {
    let now = Timestamp::now();
    let mut text = String::new();
    for token in Tokens::read(file)?.iter() {
        let until = match token.until {
            None => String::new(),
            Some(until) if until <= now => format!("  counted until {until}"),
            Some(until) => format!("  until {until}"),
        };
        let reads = match token.reads {
            Reads::Everything => "",
            Reads::OwnStore => "  own store alone",
        };
        text.push_str(&format!("{}{reads}{until}\n", token.name));
    }
    Ok(emit(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_may_be_a_date() {
        assert_eq!(parse_time("2027-01-31").unwrap(), parse_time("2027-01-31T01:00:00+01:00").unwrap());
        for wrong in ["", "soon", "2027-02-30", "2027-01-31T12:00:00", "31.01.2027"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn time_that_is_past_is_refused() {
        let now = parse_time("2027-01-31T12:00:00Z").unwrap();
        for past in ["2027-01-31", "2027-01-31T12:00:00Z", "2020-01-01"] {
            let message = parse_until(past, now).unwrap_err().to_string();
            assert!(
                message.contains(past) && message.contains("accepted: a time after now (2027-01-31T12:00:00Z)"),
                "{message}"
            );
        }
        assert_eq!(parse_until("2027-02-01", now).unwrap(), parse_time("2027-02-01").unwrap());
    }
}
