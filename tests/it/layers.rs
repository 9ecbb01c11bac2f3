//! The layers of `ARCHITECTURE.md`, checked on the parsed code: who may know whom, that nothing goes in
//! a circle, and what the core may not do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, File, Item, ItemUse, UseTree};

/// The rooms of the house, and those that each may use.
const ROOMS: [(&str, &[&str]); 8] = [
    ("core", &[]),
    ("host", &["core"]),
    ("source", &["core"]),
    ("serve", &["core"]),
    ("dataplane", &["core", "host"]),
    ("config", &["core", "host", "dataplane"]),
    (
        "agent",
        &["core", "host", "source", "serve", "dataplane", "config"],
    ),
    (
        "command",
        &[
            "core",
            "host",
            "source",
            "serve",
            "dataplane",
            "config",
            "agent",
        ],
    ),
];

/// What the core must not mention, as the beginning of a path. How long something is, is a number; what time it is,
/// is told to it.
const IMPURE: [&str; 16] = [
    "std::fs",
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "std::env",
    "tokio",
    "nix",
    "mnl",
    "nftnl",
    "tracing",
];

/// A module by its path, `["core", "model", "node"]`.
type Module = Vec<String>;

/// One file without its tests.
struct Source {
    file: PathBuf,
    module: Module,
    lines: usize,
    code: File,
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|path| path.is_ident("test"))
    })
}

fn attributes_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Mod(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Const(item) => &item.attrs,
        _ => &[],
    }
}

/// Our files, by their paths under `src`, and their text.
fn texts() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let texts = files(&root).into_iter().map(|path| {
        let text = std::fs::read_to_string(&path).expect("a source");
        (path.strip_prefix(&root).expect("a source").to_owned(), text)
    });
    texts.collect()
}

fn sources(texts: Vec<(PathBuf, String)>) -> Vec<Source> {
    let mut sources = Vec::new();
    for (file, text) in texts {
        let name = file
            .file_stem()
            .and_then(|name| name.to_str())
            .expect("a name");
        if name == "tests" || name.ends_with("_tests") || name == "main" {
            continue;
        }
        let mut module: Module = file
            .with_extension("")
            .components()
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect();
        if ["mod", "lib"].contains(&name) {
            module.pop();
        }
        let mut code = syn::parse_file(&text).expect("code");
        code.items.retain(|item| !is_test(attributes_of(item)));
        let lines = text
            .split("#[cfg(test)]")
            .next()
            .map_or(0, |code| code.lines().count());
        sources.push(Source {
            file,
            module,
            lines,
            code,
        });
    }
    sources
}

/// What a file imports, and the paths that it mentions.
#[derive(Default)]
struct Mentions {
    /// Paths as written.
    paths: Vec<Vec<String>>,
    /// Imports: the name here, and what it is.
    imports: BTreeMap<String, Vec<String>>,
    /// Imports that are passed on, among them.
    passed_on: BTreeMap<String, Vec<String>>,
    has_unsafe: bool,
}

impl Mentions {
    fn import(&mut self, before: &[String], tree: &UseTree, passed_on: bool) {
        let with = |name: &dyn ToString| [before, &[name.to_string()]].concat();
        let (name, path) = match tree {
            UseTree::Path(path) => return self.import(&with(&path.ident), &path.tree, passed_on),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(before, tree, passed_on);
                }
                return;
            }
            UseTree::Glob(_) => ("*".to_owned(), before.to_vec()),
            UseTree::Name(name) if name.ident == "self" => {
                let name = before.last().cloned().unwrap_or_default();
                (name, before.to_vec())
            }
            UseTree::Name(name) => (name.ident.to_string(), with(&name.ident)),
            UseTree::Rename(name) => (name.rename.to_string(), with(&name.ident)),
        };
        if passed_on {
            self.passed_on.insert(name.clone(), path.clone());
        } else {
            self.paths.push(path.clone());
        }
        self.imports.insert(name, path);
    }

    /// Paths in the arguments of a macro.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.paths.extend((path.len() > 1).then(|| path.clone()));
                        path.clear();
                    }
                    path.push(ident.to_string());
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Group(group) => self.tokens(group.stream()),
                _ => {}
            }
            self.paths.extend((path.len() > 1).then(|| path.clone()));
            path.clear();
            colons = 0;
        }
        self.paths.extend((path.len() > 1).then_some(path));
    }
}

impl<'ast> Visit<'ast> for Mentions {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let passed_on = !matches!(item.vis, syn::Visibility::Inherited);
        self.import(&[], &item.tree, passed_on);
    }

    // `pub(crate)` and `pub(super)` are no mentions.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter();
        self.paths
            .push(segments.map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.has_unsafe = true;
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.has_unsafe |= matches!(signature.safety, syn::Safety::Unsafe(_));
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.has_unsafe |= item.unsafety.is_some();
        visit::visit_item_impl(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }
}

/// The house: its files, and the arrows between them.
struct House {
    sources: Vec<Source>,
    mentions: Vec<Mentions>,
    at: BTreeMap<Module, usize>,
}

impl House {
    fn new() -> Self {
        Self::of(texts())
    }

    fn of(texts: Vec<(PathBuf, String)>) -> Self {
        let sources = sources(texts);
        let mentions = sources
            .iter()
            .map(|source| {
                let mut mentions = Mentions::default();
                mentions.visit_file(&source.code);
                mentions
            })
            .collect();
        let at = sources.iter().enumerate();
        let at = at.map(|(index, source)| (source.module.clone(), index));
        Self {
            mentions,
            at: at.collect(),
            sources,
        }
    }

    /// Makes a path of ours absolute, as it is written in a module. `None` if it is not ours.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let mut start = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.to_vec(),
            "super" => module.split_last()?.1.to_vec(),
            name => {
                let child = [module, &[name.to_owned()]].concat();
                if !self.at.contains_key(&child) {
                    return None;
                }
                return Some([child, rest.to_vec()].concat());
            }
        };
        let mut rest = rest;
        while let Some((_, further)) = rest.split_first().filter(|(name, _)| *name == "super") {
            start.pop()?;
            rest = further;
        }
        Some([start, rest.to_vec()].concat())
    }

    /// The file that has what an absolute path names, through all that is passed on.
    fn home(&self, path: &[String], depth: usize) -> Option<usize> {
        let module = (0..=path.len()).rev().find_map(|length| {
            let index = self.at.get(&path[..length])?;
            Some((*index, length))
        });
        let (index, length) = module?;
        let passed_on = path.get(length).and_then(|name| {
            let mentions = &self.mentions[index];
            let target = mentions.passed_on.get(name)?;
            let target = self.absolute(&self.sources[index].module, target)?;
            let further = [target, path[length + 1..].to_vec()].concat();
            (depth > 0)
                .then(|| self.home(&further, depth - 1))
                .flatten()
        });
        passed_on.or(Some(index))
    }

    /// The files that a file uses.
    fn used(&self, index: usize) -> BTreeSet<usize> {
        let source = &self.sources[index];
        let mentions = &self.mentions[index];
        let paths = mentions.paths.iter();
        paths
            .filter_map(|path| {
                // A name that was imported stands for what it is.
                let imported = path.first().and_then(|first| mentions.imports.get(first));
                let whole = match imported {
                    Some(import) => [import.as_slice(), &path[1..]].concat(),
                    None => path.clone(),
                };
                self.home(&self.absolute(&source.module, &whole)?, 4)
            })
            .filter(|used| *used != index)
            .collect()
    }

    fn name(&self, index: usize) -> String {
        self.sources[index].file.display().to_string()
    }

    fn room(&self, index: usize) -> Option<&str> {
        self.sources[index].module.first().map(String::as_str)
    }
}

/// A circle among nodes, if there is one.
fn circle<N: Ord + Clone>(arrows: &BTreeMap<N, BTreeSet<N>>) -> Option<Vec<N>> {
    fn search<N: Ord + Clone>(
        node: &N,
        arrows: &BTreeMap<N, BTreeSet<N>>,
        way: &mut Vec<N>,
        done: &mut BTreeSet<N>,
    ) -> Option<Vec<N>> {
        if let Some(at) = way.iter().position(|other| other == node) {
            return Some(way[at..].to_vec());
        }
        if done.contains(node) {
            return None;
        }
        way.push(node.clone());
        for next in arrows.get(node).into_iter().flatten() {
            let found = search(next, arrows, way, done);
            if found.is_some() {
                return found;
            }
        }
        way.pop();
        done.insert(node.clone());
        None
    }
    let mut done = BTreeSet::new();
    arrows
        .keys()
        .find_map(|node| search(node, arrows, &mut Vec::new(), &mut done))
}

#[test]
fn rooms_use_only_those_below_them() {
    let house = House::new();
    for index in 0..house.sources.len() {
        let Some(room) = house.room(index) else {
            continue;
        };
        let (_, allowed) = ROOMS
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("{} is in no room", house.name(index)));
        for used in house.used(index) {
            let other = house.room(used).unwrap_or("the root");
            assert!(
                other == room || allowed.contains(&other),
                "{} uses {}, which {room} may not",
                house.name(index),
                house.name(used)
            );
        }
    }
}

#[test]
fn no_file_is_in_a_circle() {
    let house = House::new();
    let arrows = (0..house.sources.len()).map(|index| {
        let used = house.used(index).into_iter().map(|used| house.name(used));
        (house.name(index), used.collect())
    });
    let circle = circle(&arrows.collect());
    assert!(
        circle.is_none(),
        "{}",
        circle.unwrap_or_default().join(" → ")
    );
}

#[test]
fn no_folder_is_in_a_circle() {
    let house = House::new();
    // For each folder, the arrows between what is in it.
    let mut folders: BTreeMap<Module, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for index in 0..house.sources.len() {
        let from = &house.sources[index].module;
        for used in house.used(index) {
            let to = &house.sources[used].module;
            let shared = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            if let (Some(a), Some(b)) = (from.get(shared), to.get(shared)) {
                let folder = folders.entry(from[..shared].to_vec()).or_default();
                folder.entry(a.clone()).or_default().insert(b.clone());
            }
        }
    }
    let rooms = folders.get(&Vec::new()).expect("rooms");
    let arrows: usize = rooms.values().map(BTreeSet::len).sum();
    println!("{} rooms, {arrows} arrows between them", ROOMS.len());
    for (folder, arrows) in &folders {
        let circle = circle(arrows);
        assert!(
            circle.is_none(),
            "in {}: {}",
            folder.join("/"),
            circle.unwrap_or_default().join(" → ")
        );
    }
}

#[test]
fn the_core_does_no_io_and_reads_no_clock() {
    let house = House::new();
    for (source, mentions) in house.sources.iter().zip(&house.mentions) {
        if source.module.first().is_none_or(|room| room != "core") {
            continue;
        }
        for path in &mentions.paths {
            let path = path.join("::");
            let impure = IMPURE.iter().find(|impure| {
                path.strip_prefix(*impure)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            });
            assert!(
                impure.is_none() && !["println", "eprintln"].contains(&path.as_str()),
                "{} mentions {path}",
                source.file.display()
            );
        }
    }
}

/// Where unsafe code may be: what every netlink socket needs, and libnftnl's objects.
const UNSAFE: [&str; 2] = ["host/netlink/ffi.rs", "nftables/wire/libnftnl.rs"];

#[test]
fn unsafe_code_is_in_files_of_its_own() {
    let house = House::new();
    for (source, mentions) in house.sources.iter().zip(&house.mentions) {
        assert!(
            UNSAFE.iter().any(|file| source.file.ends_with(file)) || !mentions.has_unsafe,
            "{} has unsafe code",
            source.file.display()
        );
    }
}

/// What was once two things under one name; two rooms may not share one again.
#[test]
fn a_file_s_name_is_its_own() {
    let house = House::new();
    let mut known: BTreeMap<String, &Path> = BTreeMap::new();
    for source in &house.sources {
        let name = source.file.file_name().expect("a name").to_string_lossy();
        // A folder's own file, its tests, and the ways that lead to one thing in several rooms.
        if name.ends_with("mod.rs") || name.contains("tests") || name == "cluster.rs" {
            continue;
        }
        if let Some(other) = known.insert(name.to_string(), &source.file) {
            panic!("{} and {}", other.display(), source.file.display());
        }
    }
}

#[test]
fn kubernetes_objects_stop_at_the_source() {
    let house = House::new();
    for (source, mentions) in house.sources.iter().zip(&house.mentions) {
        // Events are objects that we write.
        let may = source.module.first().is_some_and(|room| room == "source")
            || source.file.ends_with("events.rs");
        let mention = mentions
            .paths
            .iter()
            .find(|path| path.iter().any(|part| part == "k8s_openapi"));
        assert!(
            may || mention.is_none(),
            "{} mentions {mention:?}",
            source.file.display()
        );
    }
}

#[test]
fn files_are_rooms_and_not_halls() {
    for source in sources(texts()) {
        assert!(
            source.lines < 500,
            "{} has {} lines without tests",
            source.file.display(),
            source.lines
        );
    }
}

#[test]
fn every_way_to_mention_a_file_is_seen() {
    let text = |file: &str, text: &str| (PathBuf::from(file), text.to_owned());
    let house = House::of(vec![
        text(
            "a/mod.rs",
            "mod inner; mod other; pub use inner::{Thing, self as renamed};",
        ),
        text("a/inner.rs", "pub struct Thing; pub(super) fn f() {}"),
        text("a/other.rs", "use super::inner; fn f() { inner::f() }"),
        text("b.rs", "use crate::{a::{Thing as T}, c}; fn f() { c::g() }"),
        text("c.rs", "fn f() { log!(\"{}\", crate::a::Thing) }"),
        text(
            "d.rs",
            "#[cfg(test)] mod tests { use crate::a::Thing; } pub(crate) fn f() {}",
        ),
        text(
            "e.rs",
            "struct S { thing: crate::b::T, list: Vec<super::c::C> }",
        ),
    ]);
    let seen: Vec<(String, Vec<String>)> = (0..house.sources.len())
        .map(|index| {
            let used = house.used(index).into_iter();
            (
                house.name(index),
                used.map(|used| house.name(used)).collect(),
            )
        })
        .collect();
    let expected = [
        ("a/mod.rs", vec![]),
        ("a/inner.rs", vec![]),
        ("a/other.rs", vec!["a/inner.rs"]),
        ("b.rs", vec!["a/inner.rs", "c.rs"]),
        ("c.rs", vec!["a/inner.rs"]),
        ("d.rs", vec![]),
        ("e.rs", vec!["b.rs", "c.rs"]),
    ]
    .map(|(file, used)| {
        (
            file.to_owned(),
            used.into_iter().map(str::to_owned).collect(),
        )
    });
    assert_eq!(seen, expected);
    let arrows = |pairs: &[(char, char)]| {
        let mut arrows: BTreeMap<char, BTreeSet<char>> = BTreeMap::new();
        for (from, to) in pairs {
            arrows.entry(*from).or_default().insert(*to);
        }
        arrows
    };
    assert_eq!(circle(&arrows(&[('a', 'b'), ('b', 'c'), ('a', 'c')])), None);
    let found = circle(&arrows(&[('a', 'b'), ('b', 'c'), ('c', 'b')]));
    assert_eq!(found, Some(vec!['b', 'c']));
}
