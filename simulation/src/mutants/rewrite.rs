//! From the text of a core to that of all its mutants at once, with a switch at each place where one of them differs.

use super::table::Mutant;

/// A file of a core in which every mutant of `mutants` is behind its switch. Mutants are numbered from `first` on.
///
/// # Errors
/// When a text to replace is not in the file exactly once: the core was changed, and the table was not.
pub fn insert_switches(file: &str, source: &str, mutants: &[Mutant], first: usize) -> Result<String, String> {
    let mut text = source.to_owned();
    for (number, mutant) in (first..).zip(mutants) {
        for change in mutant.changes.iter().filter(|change| change.file == file) {
            let found = source.matches(change.text).count();
            if found != 1 {
                return Err(format!(
                    "the mutant {} ({}) replaces `{}`, which is in {file} {found} times instead of once",
                    mutant.name, mutant.does, change.text
                ));
            }
            text = text.replacen(change.text, &switch(number, change.text, change.instead), 1);
        }
    }
    Ok(text)
}

fn switch(number: usize, text: &str, instead: &str) -> String {
    let either = format!("if crate::mutants::is_present({number}) {{ {instead} }} else {{ {text} }}");
    // In parentheses, an expression can stand anywhere. A statement has no value to stand for.
    if text.ends_with(';') { either } else { format!("({either})") }
}
