//! Inside a crate, no file needs another that needs it in turn: whoever reads one from its start has to know the files that it names,
//! and in a circle there is no first one.
//!
//! A file needs another when it names something that is defined there, be it by `use` or by a path; what is handed on by `pub use`
//! counts where it is defined. A part may name what its own module defines: the two are read together. Tests, and what stands inside
//! macros, are not looked at.
//!
//! And every file belongs to a crate: one that no module declares would not be compiled, and nobody would notice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::slice;

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, UseTree, Visibility};

use crate::binary::repository_root;

/// Sets of files that need each other, and stay so for now: crate and files. Nobody should have to add one.
const KNOWN: &[(&str, &[&str])] = &[];

/// The parts of a path inside of a crate: of a module, or of something in it.
type Name = Vec<String>;

/// What one file says.
#[derive(Debug, Default)]
struct Module {
    /// What is defined here.
    defined: BTreeSet<String>,
    /// What is handed on under a name of this module, and where it comes from.
    handed_on: BTreeMap<String, Name>,
    /// Modules of which everything is handed on.
    all_of: Vec<Name>,
    /// Every path that is named, from the root of the crate.
    named: BTreeSet<Name>,
    children: BTreeSet<String>,
    tests: BTreeSet<String>,
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// Reads one file.
struct Reader {
    at: Name,
    module: Module,
}

impl Reader {
    /// The path from the root of the crate, if it leads into the crate.
    fn path_from_root(&self, path: &[String]) -> Option<Name> {
        let (first, rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Vec::new(),
            "self" => self.at.clone(),
            "super" => self.at.split_last()?.1.to_vec(),
            child if self.module.children.contains(child) => [&self.at[..], slice::from_ref(first)].concat(),
            _ => return None,
        };
        for part in rest {
            match part.as_str() {
                "super" => drop(at.pop()),
                part => at.push(part.to_owned()),
            }
        }
        Some(at)
    }

    fn read_use(&mut self, tree: &UseTree, before: &[String], is_public: bool) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.read_use(&path.tree, &with(&path.ident), is_public),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.read_use(tree, before, is_public)),
            UseTree::Name(name) if name.ident == "self" => self.take(before, before.last().cloned(), is_public),
            UseTree::Name(name) => self.take(&with(&name.ident), Some(name.ident.to_string()), is_public),
            UseTree::Rename(rename) => self.take(&with(&rename.ident), Some(rename.rename.to_string()), is_public),
            UseTree::Glob(_) => self.take(before, None, is_public),
        }
    }

    fn take(&mut self, path: &[String], name: Option<String>, is_public: bool) {
        let Some(path) = self.path_from_root(path) else { return };
        match (is_public, name) {
            (true, Some(name)) => drop(self.module.handed_on.insert(name, path)),
            (true, None) => self.module.all_of.push(path),
            (false, _) => drop(self.module.named.insert(path)),
        }
    }
}

impl Visit<'_> for Reader {
    fn visit_item(&mut self, item: &Item) {
        let (attributes, name) = match item {
            Item::Const(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            Item::Static(item) => (&item.attrs, Some(&item.ident)),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            Item::Impl(item) => (&item.attrs, None),
            Item::Use(item) => (&item.attrs, None),
            Item::Mod(item) => (&item.attrs, None),
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            self.module.defined.extend(name.map(ToString::to_string));
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        // What is written in this file belongs to it.
        if item.content.is_some() {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        self.read_use(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let parts: Name = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1
            && let Some(path) = self.path_from_root(&parts)
        {
            self.module.named.insert(path);
        }
        visit::visit_path(self, path);
    }
}

fn read(at: Name, file: &Path) -> Module {
    let text = fs::read_to_string(file).expect("a source file");
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut module = Module::default();
    for item in &parsed.items {
        if let Item::Mod(child) = item
            && child.content.is_none()
        {
            let to = if is_for_tests(&child.attrs) { &mut module.tests } else { &mut module.children };
            to.insert(child.ident.to_string());
        }
    }
    let mut reader = Reader { at, module };
    reader.visit_file(&parsed);
    reader.module
}

/// The file of the module at this path, unless it is written in the file of its parent.
fn file_of(source: &Path, at: &[String]) -> Option<PathBuf> {
    let stem = at.iter().fold(source.to_owned(), |path, part| path.join(part));
    [stem.with_extension("rs"), stem.join("mod.rs")].into_iter().find(|file| file.exists())
}

/// The roots of a crate's library and binary.
fn roots(source: &Path) -> impl Iterator<Item = PathBuf> {
    ["lib.rs", "main.rs"].map(|file| source.join(file)).into_iter().filter(|file| file.exists())
}

/// All files of a crate below its `src`, by the module's path.
fn modules(source: &Path) -> BTreeMap<Name, Module> {
    let mut found = BTreeMap::new();
    let mut open = vec![(Vec::new(), roots(source).next().expect("a root of the crate"))];
    while let Some((at, file)) = open.pop() {
        let module = read(at.clone(), &file);
        for child in &module.children {
            let at = [&at[..], slice::from_ref(child)].concat();
            open.extend(file_of(source, &at).map(|file| (at, file)));
        }
        found.insert(at, module);
    }
    found
}

/// The file where what `path` names is defined.
fn home(modules: &BTreeMap<Name, Module>, path: &[String], depth: usize) -> Option<Name> {
    let at = (0..=path.len()).rev().find_map(|end| path.get(..end).filter(|at| modules.contains_key(*at)))?;
    let (module, rest) = (modules.get(at)?, path.get(at.len()..)?);
    let Some((name, rest)) = rest.split_first().filter(|_| depth < 8) else { return Some(at.to_vec()) };
    if module.defined.contains(name) {
        return Some(at.to_vec());
    }
    if let Some(source) = module.handed_on.get(name) {
        return home(modules, &[&source[..], rest].concat(), depth + 1);
    }
    let from_all = module.all_of.iter().find_map(|source| {
        let path = [&source[..], slice::from_ref(name)].concat();
        home(modules, &path, depth + 1).filter(|home| modules.get(home).is_some_and(|home| home.defined.contains(name)))
    });
    Some(from_all.unwrap_or_else(|| at.to_vec()))
}

/// Which files each file needs.
fn needs(modules: &BTreeMap<Name, Module>) -> BTreeMap<Name, BTreeSet<Name>> {
    let of = |(at, module): (&Name, &Module)| {
        let homes = module.named.iter().filter_map(|path| home(modules, path, 0)).filter(|home| !at.starts_with(home));
        (at.clone(), homes.collect())
    };
    modules.iter().map(of).collect()
}

/// All that can be reached from `from`.
fn reached(needs: &BTreeMap<Name, BTreeSet<Name>>, from: &Name) -> BTreeSet<Name> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&Name> = needs[from].iter().collect();
    while let Some(next) = open.pop() {
        if found.insert(next.clone()) {
            open.extend(&needs[next]);
        }
    }
    found
}

/// Sets of files that need each other, and inside of each set who needs whom.
fn circles(source: &Path) -> BTreeMap<Vec<String>, Vec<String>> {
    let needs = needs(&modules(source));
    let reached: BTreeMap<_, _> = needs.keys().map(|at| (at, reached(&needs, at))).collect();
    let mut found = BTreeMap::new();
    for (at, all) in &reached {
        let circle: Vec<&Name> = all.iter().filter(|other| reached[other].contains(*at)).collect();
        let named = |name: &Name| if name.is_empty() { "crate".to_owned() } else { name.join("::") };
        if circle.len() > 1 {
            let arrows = circle.iter().flat_map(|from| {
                needs[*from]
                    .iter()
                    .filter(|to| circle.contains(to))
                    .map(|to| format!("{} -> {}", named(from), named(to)))
            });
            found.insert(circle.iter().map(|name| named(name)).collect(), arrows.collect());
        }
    }
    found
}

/// All crates but the tests.
fn rooms() -> Vec<String> {
    let crates = repository_root().join("crates");
    let mut rooms: Vec<_> = ["protocol", "node", "simulation"].map(str::to_owned).into();
    for entry in fs::read_dir(crates).expect("the folder of the crates") {
        rooms.push(format!("crates/{}", entry.expect("an entry").file_name().to_string_lossy()));
    }
    rooms
}

#[test]
fn no_file_needs_one_that_needs_it() {
    let mut wrong = Vec::new();
    for room in rooms() {
        for (circle, arrows) in circles(&repository_root().join(&room).join("src")) {
            if !KNOWN.iter().any(|(known, files)| *known == room && circle == *files) {
                wrong.push(format!("{room}: {circle:?}\n  {}", arrows.join("\n  ")));
            }
        }
    }
    assert!(wrong.is_empty(), "files that need each other:\n{}", wrong.join("\n"));
}

/// The files that are compiled, tests among them.
fn declared(source: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open: Vec<_> = roots(source).map(|root| (Vec::new(), root)).collect();
    while let Some((at, file)) = open.pop() {
        let Module { children, tests, .. } = read(at.clone(), &file);
        for child in children.into_iter().chain(tests) {
            let at = [&at[..], &[child]].concat();
            open.extend(file_of(source, &at).map(|file| (at, file)));
        }
        found.insert(file);
    }
    found
}

/// All files of Rust in a folder and below it.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("an entry").path());
    let files = |path: PathBuf| match path.is_dir() {
        true => files_below(&path),
        false => Vec::from_iter(path.extension().is_some_and(|extension| extension == "rs").then_some(path)),
    };
    entries.flat_map(files).collect()
}

#[test]
fn every_file_is_declared_by_a_module() {
    let mut forgotten = Vec::new();
    for room in rooms().into_iter().chain(["tests", "crates/fuzz/libfuzzer"].map(str::to_owned)) {
        let source = repository_root().join(room).join("src");
        let declared = declared(&source);
        forgotten.extend(files_below(&source).into_iter().filter(|file| !declared.contains(file)));
    }
    assert!(forgotten.is_empty(), "files that no `mod` declares: {forgotten:#?}");
}
