//! Finds the full name of the key that a TOML error is about, and what would be accepted there.

use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// The accepted numbers by key, in words. [`crate::settings`] checks them.
const BOUNDS: &[(&str, &str)] = &[
    ("gateway.priority", "0 to 4294967295"),
    ("gateway.narinfo_deadline_ms", "50 to 60000 (milliseconds)"),
    ("gateway.narinfo_deadline_max_ms", "50 to 60000 (milliseconds)"),
    ("gateway.listener.connections_max", "1 to 16384"),
    ("gateway.listener.connections_per_client_max", "1 to 16384"),
    ("gateway.listener.idle_timeout_ms", "1000 to 3600000 (milliseconds)"),
    ("gateway.listener.stall_timeout_ms", "1000 to 3600000 (milliseconds)"),
    ("transfer.stall_timeout_ms", "100 to 600000 (milliseconds)"),
    ("limits.connections_gossip", "1 to 1024"),
    ("limits.nar_buffer_bytes", "16777216 to 68719476736 (16 MiB to 64 GiB)"),
    ("limits.uploads_per_peer", "1 to 1024"),
    ("limits.uploads_total", "1 to 65536"),
    ("limits.upload_bytes_per_s", "0 for no limit, or 16384 to 4294967295"),
    ("limits.relay_bytes_per_s", "0 for no limit, or 131072 to 4294967295"),
    ("limits.partial_copies_bytes", "0 for none, to 1099511627776 (1 TiB)"),
    ("limits.advertised_paths_max", "1 to 400000 (what the largest filter can tell apart)"),
    ("peer.upload_bytes_per_s", "0 for no limit, or 16384 to 4294967295"),
    ("upstream.tier", "0 to 255"),
    ("upstream.connect_timeout_ms", "100 to 60000 (milliseconds)"),
    ("upstream.stall_timeout_ms", "100 to 600000 (milliseconds)"),
    ("quorum.k", "1 to the number of groups of builders"),
    ("quorum.override.k", "1 to the number of groups of builders"),
];

/// The bounds of the number with this full name, in words. Indices of lists in the name are ignored.
pub(crate) fn bounds_of(key: &str) -> Option<&'static str> {
    let of_lists: String = key.split('[').map(|part| part.rsplit(']').next().unwrap_or(part)).collect();
    BOUNDS.iter().find(|(known, _)| *known == of_lists).map(|(_, bounds)| *bounds)
}

/// One more line for a TOML error: the error shows the line of the file, but not the section. Empty if the key is not
/// found.
pub(super) fn remark(text: &str, error: &toml::de::Error) -> String {
    let key = error.span().and_then(|at| key_at(text, &at));
    let Some(key) = key else { return String::new() };
    let (_, expected) = error.message().rsplit_once("expected ").unwrap_or_default();
    let is_of_type = error.message().starts_with("invalid type") || error.message().starts_with("invalid value");
    let form = match (bounds_of(&key), expected) {
        (Some(bounds), _) => format!("a whole number, {bounds}"),
        (None, "a string" | "string" | "path string") => "text in quotes".to_owned(),
        (None, "a boolean") => "true or false".to_owned(),
        (None, "a sequence") if error.message().starts_with("invalid type: map") => {
            format!("a list of tables, each under [[{key}]] with two brackets")
        }
        (None, "a sequence") => "a list in brackets, such as [\"one\", \"two\"]".to_owned(),
        (None, _) => return format!("\nin {key}"),
    };
    if is_of_type { format!("\n{key} is refused; accepted: {form}") } else { format!("\nin {key}") }
}

/// The full name of what is at `at`: the innermost value, a key, or a table that lacks a key.
fn key_at(text: &str, at: &Range<usize>) -> Option<String> {
    let file = DeTable::parse(text).ok()?;
    in_table(file.get_ref(), "", at)
}

fn in_table(table: &DeTable<'_>, name: &str, at: &Range<usize>) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let dot = if name.is_empty() { "" } else { "." };
        let full = format!("{name}{dot}{}", key.get_ref());
        let is_here = key.span() == *at;
        in_value(value.get_ref(), &value.span(), &full, at).or_else(|| is_here.then_some(full))
    })
}

fn in_value(value: &DeValue<'_>, span: &Range<usize>, name: &str, at: &Range<usize>) -> Option<String> {
    let inner = match value {
        DeValue::Table(table) => in_table(table, name, at),
        DeValue::Array(array) => array
            .iter()
            .enumerate()
            .find_map(|(index, value)| in_value(value.get_ref(), &value.span(), &format!("{name}[{index}]"), at)),
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
            None
        }
    };
    inner.or_else(|| (span == at).then(|| name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    #[test]
    fn value_of_a_wrong_type_is_reported_with_its_full_key_and_what_is_accepted() {
        for (text, line) in [
            ("[gateway]\npriority = 'high'", "gateway.priority is refused; accepted: a whole number, 0 to 4294967295"),
            (
                "[gateway]\n\n# x\npriority = -1",
                "gateway.priority is refused; accepted: a whole number, 0 to 4294967295",
            ),
            (
                "gateway = { narinfo_deadline_ms = 1.5 }",
                "gateway.narinfo_deadline_ms is refused; accepted: a whole number, 50 to",
            ),
            (
                "[limits]\nuploads_total = 99999999999",
                "limits.uploads_total is refused; accepted: a whole number, 1 to 65536",
            ),
            ("[node]\nlisten = '/ip4/127.0.0.1/tcp/1'", "node.listen is refused; accepted: a list in brackets"),
            ("[peer]\nname = 'a'", "peer is refused; accepted: a list of tables, each under [[peer]]"),
            ("[gateway.listener]\nrole = 'serve'", "gateway.listener is refused; accepted: a list of tables"),
            ("[node]\nlisten = ['a',\n[], 'b']", "node.listen[1] is refused; accepted: text in quotes"),
            ("[node]\nkey_file = 1", "node.key_file is refused; accepted: text in quotes"),
            ("[node]\nadvertise_loopback = 'yes'", "node.advertise_loopback is refused; accepted: true or false"),
            ("[quorum]\nk = 'two'", "quorum.k is refused; accepted: a whole number, 1 to the number"),
            (
                "[[quorum.override]]\nname = 'a'\nk = 'two'",
                "quorum.override[0].k is refused; accepted: a whole number, 1 to",
            ),
            (
                "[[peer]]\nname = 'a'\npeer_id = 'b'\n[[peer]]\nname = 7",
                "peer[1].name is refused; accepted: text in quotes",
            ),
            ("[gateway]\nprioritee = 1", "in gateway.prioritee"),
            ("[[peer]]\nname = 'a'", "in peer[0]"),
        ] {
            let message = Config::parse(text, Path::new("x.toml")).unwrap_err().to_string();
            let told = message.lines().last().unwrap_or_default();
            assert!(told.starts_with(line), "{text}\n{message}");
        }
        let torn = Config::parse("[gateway\n", Path::new("x.toml")).unwrap_err().to_string();
        assert!(torn.contains("line 1") && !torn.contains("\nin "), "{torn}");
    }

    #[test]
    fn every_number_of_the_configuration_has_bounds() {
        let text = "quorum = { k = 1, override = [{ name = 'x', k = 1 }] }";
        let Ok(toml::Value::Table(sections)) = toml::Value::try_from(Config::parse(text, Path::new("x")).unwrap())
        else {
            panic!()
        };
        let mut numbers = 0;
        for (section, value) in sections {
            for (key, value) in value.as_table().into_iter().flatten().filter(|(_, value)| value.is_integer()) {
                assert!(bounds_of(&format!("{section}.{key}")).is_some(), "{section}.{key} = {value}");
                numbers += 1;
            }
        }
        assert!(numbers >= 11, "only {numbers}");
        assert!(BOUNDS.iter().all(|(key, _)| bounds_of(key).is_some()));
    }
}
