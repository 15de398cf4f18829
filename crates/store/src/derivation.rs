//! Reads from a `.drv` file whether its outputs may be substituted, and what they are called.
//!
//! A derivation is an ATerm: `Derive(outputs,inputDrvs,inputSrcs,system,builder,args,env)`; with dynamic derivations
//! `DrvWithVersion(version,outputs,…,env)`. Only the outputs and the environment, the last argument, are
//! read.

/// Most arguments of either form.
const ARGUMENTS_MAX: usize = 16;
/// Deepest nesting of lists and tuples that is accepted; Nix writes 4 levels.
const NESTING_MAX: usize = 16;

/// The file is not a derivation that we can read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NotADerivation;

/// Whether the derivation says `allowSubstitutes = false`, in its environment or in its structured attributes.
pub(crate) fn forbids_substitutes(aterm: &[u8]) -> Result<bool, NotADerivation> {
    let mut environment = Environment::default();
    let mut rest = Rest(aterm);
    let is_plain = rest.eat(b"Derive(");
    if !is_plain && !rest.eat(b"DrvWithVersion(") {
        return Err(NotADerivation);
    }
    // The environment comes after six arguments. The other form has the version as one more argument before them.
    for _ in 0..if is_plain { 6 } else { 7 }.min(ARGUMENTS_MAX) {
        rest.skip_value(0)?;
        rest.expect(b",")?;
    }
    rest.read_environment(&mut environment)?;
    rest.expect(b")")?;
    // What we do not understand to its end may say more than we have read.
    if !rest.0.is_empty() {
        return Err(NotADerivation);
    }
    environment.forbids_substitutes()
}

/// The names of the derivation's outputs, such as `out` and `dev`.
pub(crate) fn output_names(aterm: &[u8]) -> Result<Vec<String>, NotADerivation> {
    let mut rest = Rest(aterm);
    if rest.eat(b"DrvWithVersion(") {
        rest.skip_string()?;
        rest.expect(b",[")?;
    } else {
        rest.expect(b"Derive([")?;
    }
    let mut names = Vec::new();
    while !rest.eat(b"]") {
        if !names.is_empty() {
            rest.expect(b",")?;
        }
        rest.expect(b"(")?;
        names.push(String::from_utf8(rest.read_string()?).map_err(|_| NotADerivation)?);
        // Its path, and how it is hashed.
        while rest.eat(b",") {
            rest.skip_value(0)?;
        }
        rest.expect(b")")?;
    }
    Ok(names)
}

#[derive(Default)]
struct Environment {
    allow_substitutes: Option<Vec<u8>>,
    structured: Option<Vec<u8>>,
}

impl Environment {
    fn forbids_substitutes(&self) -> Result<bool, NotADerivation> {
        // Nix writes `true` as "1" and `false` as "", and reads anything except "1" as false.
        if self.allow_substitutes.as_ref().is_some_and(|value| value != b"1") {
            return Ok(true);
        }
        let Some(json) = &self.structured else { return Ok(false) };
        let attributes: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(json).map_err(|_| NotADerivation)?;
        Ok(attributes.get("allowSubstitutes").is_some_and(|value| value.as_bool() != Some(true)))
    }
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn eat(&mut self, token: &[u8]) -> bool {
        let after = self.0.strip_prefix(token);
        self.0 = after.unwrap_or(self.0);
        after.is_some()
    }

    fn expect(&mut self, token: &[u8]) -> Result<(), NotADerivation> {
        if self.eat(token) { Ok(()) } else { Err(NotADerivation) }
    }

    /// Reads a string and resolves its escapes.
    fn read_string(&mut self) -> Result<Vec<u8>, NotADerivation> {
        self.expect(b"\"")?;
        let mut text = Vec::new();
        loop {
            let (byte, after) = self.0.split_first().ok_or(NotADerivation)?;
            self.0 = after;
            match byte {
                b'"' => return Ok(text),
                b'\\' => {
                    let (escaped, after) = self.0.split_first().ok_or(NotADerivation)?;
                    self.0 = after;
                    text.push(match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        other => *other,
                    });
                }
                other => text.push(*other),
            }
        }
    }

    fn skip_string(&mut self) -> Result<(), NotADerivation> {
        self.expect(b"\"")?;
        loop {
            let stop = self.0.iter().position(|byte| matches!(byte, b'"' | b'\\')).ok_or(NotADerivation)?;
            let is_end = self.0.get(stop) == Some(&b'"');
            self.0 = self.0.get(stop + if is_end { 1 } else { 2 }..).ok_or(NotADerivation)?;
            if is_end {
                return Ok(());
            }
        }
    }

    /// Skips a string, list or tuple.
    fn skip_value(&mut self, nesting: usize) -> Result<(), NotADerivation> {
        // A derivation is a file that somebody wrote: without a bound it could use up the stack.
        if nesting > NESTING_MAX {
            return Err(NotADerivation);
        }
        let end: &[u8] = if self.eat(b"[") {
            b"]"
        } else if self.eat(b"(") {
            b")"
        } else {
            return self.skip_string();
        };
        if self.eat(end) {
            return Ok(());
        }
        loop {
            self.skip_value(nesting + 1)?;
            if self.eat(end) {
                return Ok(());
            }
            self.expect(b",")?;
        }
    }

    /// Reads `[("name","value"),…]` and keeps the two variables that we need.
    fn read_environment(&mut self, environment: &mut Environment) -> Result<(), NotADerivation> {
        self.expect(b"[")?;
        if self.eat(b"]") {
            return Ok(());
        }
        loop {
            self.expect(b"(")?;
            let name = self.read_string()?;
            self.expect(b",")?;
            match name.as_slice() {
                b"allowSubstitutes" => environment.allow_substitutes = Some(self.read_string()?),
                b"__json" => environment.structured = Some(self.read_string()?),
                _ => self.skip_string()?,
            }
            self.expect(b")")?;
            if self.eat(b"]") {
                return Ok(());
            }
            self.expect(b",")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quoted(text: &str) -> String {
        let mut quoted = String::from("\"");
        for character in text.chars() {
            match character {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                other => quoted.push(other),
            }
        }
        quoted + "\""
    }

    fn derivation(environment: &[(String, String)]) -> String {
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| format!("({},{})", quoted(name), quoted(value))).collect();
        format!(
            "Derive([(\"out\",\"/nix/store/x\",\"\",\"\")],[(\"/nix/store/a.drv\",[\"out\",\"doc\"])],[\"/s\"],\
             \"x86_64-linux\",\"/bin/sh\",[\"-c\",\"echo \\\"hi\\\"\"],[{}])",
            environment.join(",")
        )
    }

    fn forbids(environment: &[(&str, &str)]) -> Result<bool, NotADerivation> {
        let owned: Vec<_> = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        forbids_substitutes(derivation(&owned).as_bytes())
    }

    #[test]
    fn empty_string_forbids_substitutes() {
        assert_eq!(forbids(&[]), Ok(false));
        assert_eq!(forbids(&[("allowSubstitutes", "1")]), Ok(false));
        assert_eq!(forbids(&[("a", "b"), ("allowSubstitutes", ""), ("z", "")]), Ok(true));
    }

    #[test]
    fn structured_attributes_can_forbid_substitutes() {
        assert_eq!(forbids(&[("__json", r#"{"name":"x"}"#)]), Ok(false));
        assert_eq!(forbids(&[("__json", r#"{"allowSubstitutes":true}"#)]), Ok(false));
        assert_eq!(forbids(&[("__json", r#"{"allowSubstitutes":false}"#)]), Ok(true));
        assert_eq!(forbids(&[("__json", r#"{"env":{"allowSubstitutes":false}}"#)]), Ok(false));
        assert_eq!(forbids(&[("__json", "{")]), Err(NotADerivation));
    }

    #[test]
    fn dynamic_derivation_with_version_is_read() {
        let plain = derivation(&[("allowSubstitutes".to_owned(), String::new())]);
        let dynamic = plain.replacen("Derive(", "DrvWithVersion(\"xp-dyn-drv\",", 1);
        assert_eq!(forbids_substitutes(dynamic.as_bytes()), Ok(true));
    }

    #[test]
    fn names_of_outputs_are_read() {
        let of = |outputs: &str| output_names(format!("Derive([{outputs}],[],[],\"s\",\"b\",[],[])").as_bytes());
        assert_eq!(output_names(derivation(&[]).as_bytes()), Ok(vec!["out".to_owned()]));
        let dynamic = derivation(&[]).replacen("Derive(", "DrvWithVersion(\"xp-dyn-drv\",", 1);
        assert_eq!(output_names(dynamic.as_bytes()), Ok(vec!["out".to_owned()]));
        let two = of(r#"("dev","","r:sha256",""),("out","/nix/store/x","","")"#);
        assert_eq!(two, Ok(vec!["dev".to_owned(), "out".to_owned()]));
        assert_eq!(of(""), Ok(Vec::new()));
        for bad in ["x", "(", "(\"out\"", "(\"out\",\"\")(\"dev\",\"\")", "(\"\u{0}"] {
            assert_eq!(of(bad), Err(NotADerivation), "{bad}");
        }
        assert_eq!(output_names(b"a text"), Err(NotADerivation));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = format!("Derive({}", "[".repeat(1 << 20));
        assert_eq!(forbids_substitutes(deep.as_bytes()), Err(NotADerivation));
    }

    proptest! {
        #[test]
        fn attribute_is_found_among_others_and_truncation_is_refused(
            others in prop::collection::vec(("[a-z]{1,6}", any::<String>()), 0..6),
            value in any::<Option<bool>>(),
            at in any::<prop::sample::Index>(),
        ) {
            let mut environment = others;
            if let Some(value) = value {
                let at = at.index(environment.len() + 1);
                environment.insert(at, ("allowSubstitutes".to_owned(), if value { "1" } else { "" }.to_owned()));
            }
            let text = derivation(&environment);
            prop_assert_eq!(forbids_substitutes(text.as_bytes()), Ok(value == Some(false)));
            for cut in 0..text.len() {
                prop_assert_eq!(forbids_substitutes(&text.as_bytes()[..cut]), Err(NotADerivation));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(prop::sample::select(b"Derive([\"\\,)]x".to_vec()), 0..64)) {
            let mut text = b"Derive(".to_vec();
            text.extend(bytes);
            prop_assert!(matches!(forbids_substitutes(&text), Ok(_) | Err(NotADerivation)));
            prop_assert!(matches!(output_names(&text), Ok(_) | Err(NotADerivation)));
        }
    }
}
