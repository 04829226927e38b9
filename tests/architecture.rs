//! The design rules, as tests. They parse the sources, so comments, strings and formatting do not matter.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::ToTokens;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Visibility};

/// The folders of `src`, from the bottom to the top. A file imports from its own folder and from floors below it.
const FLOORS: &[&[&str]] = &[
    &["sale"],
    &["plan"],
    &["config", "http"],
    &["system"],
    &["log"],
    &["operate", "upgrade"],
    &["postgres", "server"],
    &["log_tool", "runtime", "sim"],
    &["process"],
];

/// Folders and files that never await, read no clock, draw no randomness and open nothing.
const PURE: &[&str] = &[
    "sale",
    "plan",
    "http",
    "config/database_url",
    "config/env_file",
    "config/settings",
    "log/block",
    "log/ownership",
    "log/replay",
    "log/retention",
    "log/stream",
    "log_tool/arguments",
    "operate/lag",
    "postgres/copy_rows",
    "process/manual",
    "server/art",
    "server/spare_buffers",
    "server/timeouts",
    "system/discipline",
];

/// What a pure file does not mention.
const IMPURE: &[&str] = &[
    "async",
    "await",
    "glommio",
    "tokio",
    "rustix",
    "tracing",
    "getrandom",
    "Instant",
    "SystemTime",
    "thread",
    "fs",
    "TcpListener",
    "TcpStream",
    "HashSet",
    "RandomState",
    "from_os_rng",
];

const LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// A source file without its unit tests.
struct Source {
    /// Relative to the package, without `.rs`: `src/log/block`.
    name: String,
    lines: usize,
    syntax: syn::File,
}

impl Source {
    /// The folder in `src`, if it is in one, and the file's name.
    fn place(&self) -> (Option<&str>, &str) {
        match self.name.strip_prefix("src/").and_then(|path| path.split_once('/')) {
            Some((folder, file)) => (Some(folder), file),
            None => (None, &self.name),
        }
    }

    fn tokens(&self) -> TokenStream {
        self.syntax.to_token_stream()
    }
}

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(home().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust files below these folders.
fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    folders.iter().for_each(|folder| collect(&home().join(folder), &mut paths));
    paths.sort();
    let sources = paths.iter().map(|path| {
        let text = fs::read_to_string(path).unwrap();
        let name = path.strip_prefix(home()).unwrap().with_extension("").to_str().unwrap().to_owned();
        let mut syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        syntax.items.retain(|item| !is_for_tests(attributes(item)));
        Source { name, lines: text.lines().count(), syntax }
    });
    sources.collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.to_token_stream().to_string().replace(' ', "") == "#[cfg(test)]")
}

/// The modules that these tokens import from this crate, as `(folder, file)`.
fn imports(tokens: TokenStream) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) => found.extend(imports(group.stream())),
            TokenTree::Ident(word) if word == "crate" => {
                // No path: `pub(crate)`.
                for mut path in paths(&tokens[at + 1..]).into_iter().filter(|path| !path.is_empty()) {
                    path.resize(2, String::new());
                    let file = path.pop().unwrap();
                    found.insert((path.pop().unwrap(), file));
                }
            }
            _ => {}
        }
    }
    found
}

/// The first two names of each path that these tokens begin with: `::log::block::X`, `::{log::{block, stream}, sale}`.
fn paths(tokens: &[TokenTree]) -> Vec<Vec<String>> {
    let is_colon = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':');
    let rest = match tokens {
        [first, second, rest @ ..] if is_colon(first) && is_colon(second) => rest,
        _ => return vec![Vec::new()],
    };
    match rest.first() {
        Some(TokenTree::Ident(name)) => {
            let after = paths(&rest[1..]).into_iter();
            let mut named: Vec<_> = after.map(|path| [vec![name.to_string()], path].concat()).collect();
            named.iter_mut().for_each(|path| path.truncate(2));
            named
        }
        Some(TokenTree::Group(group)) => {
            let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
            let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
            let parts = tokens.split(is_comma).filter(|part| !part.is_empty());
            // Each part is a path of its own: as if it stood behind `crate::`.
            let colons = "::".parse::<TokenStream>().unwrap().into_iter().collect::<Vec<_>>();
            parts.flat_map(|part| paths(&[&colons[..], part].concat())).collect()
        }
        _ => vec![Vec::new()],
    }
}

fn floor(folder: &str) -> usize {
    let floor = FLOORS.iter().position(|floor| floor.contains(&folder));
    floor.unwrap_or_else(|| panic!("src/{folder} has no floor in tests/architecture.rs"))
}

#[test]
fn grouped_imports_are_understood() {
    let tokens = |text: &str| imports(text.parse().unwrap());
    let pair = |folder: &str, file: &str| (folder.to_owned(), file.to_owned());
    let grouped =
        "use crate::{log::{block::{self, A}, stream}, sale::ids::X as Y}; fn f() { vec![crate::http::head::Z] }";
    let expected = [pair("http", "head"), pair("log", "block"), pair("log", "stream"), pair("sale", "ids")];
    assert_eq!(tokens(grouped), BTreeSet::from(expected));
    assert_eq!(tokens("use crate::sale;"), BTreeSet::from([pair("sale", "")]));
}

#[test]
fn imports_point_down() {
    for source in sources(&["src"]) {
        let (Some(folder), _) = source.place() else { continue };
        for (other, file) in imports(source.tokens()).into_iter().filter(|(other, _)| other != "atomic") {
            let is_below = other == folder || floor(&other) < floor(folder);
            assert!(is_below, "{} imports {other}/{file}, which is not below it", source.name);
            assert!(!file.is_empty(), "{} imports the whole folder {other}: name the file", source.name);
        }
    }
}

#[test]
fn paths_begin_at_the_crate() {
    for source in sources(&["src"]).iter().filter(|source| source.place().0 != Some("sim")) {
        assert!(!mentions(source.tokens(), &["super"]), "{} says super:: outside its tests", source.name);
    }
}

/// Within a folder, too, no two files import each other, not even by way of a third one.
#[test]
fn imports_have_no_cycle() {
    let sources = sources(&["src"]);
    let mut below: BTreeMap<(String, String), BTreeSet<(String, String)>> = BTreeMap::new();
    for source in &sources {
        if let (Some(folder), file) = source.place() {
            below.insert((folder.into(), file.into()), imports(source.tokens()));
        }
    }
    while !below.is_empty() {
        let is_free = |imports: &BTreeSet<_>| imports.iter().all(|file| !below.contains_key(file));
        let free: Vec<_> = below.iter().filter(|(_, imports)| is_free(imports)).map(|(file, _)| file.clone()).collect();
        assert!(!free.is_empty(), "these files import each other: {:?}", below.keys());
        free.iter().for_each(|file| _ = below.remove(file));
    }
}

#[test]
fn pure_files_are_pure() {
    let sources = sources(&["src"]);
    let is_pure = |name: &str, pure: &&str| {
        name.strip_prefix("src/")
            .and_then(|name| name.strip_prefix(*pure))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for pure in PURE {
        assert!(sources.iter().any(|source| is_pure(&source.name, pure)), "there is no {pure}");
    }
    for source in sources.iter().filter(|source| PURE.iter().any(|pure| is_pure(&source.name, pure))) {
        for word in IMPURE {
            assert!(!mentions(source.tokens(), &[word]), "{} mentions {word}", source.name);
        }
    }
}

/// Whether any of these names is in the tokens.
fn mentions(tokens: TokenStream, words: &[&str]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Group(group) => mentions(group.stream(), words),
        TokenTree::Ident(ident) => words.iter().any(|word| ident == word),
        _ => false,
    })
}

/// An operation that makes a core wait for another core stands only where it happens once in a while, never once for each
/// request: waking a shard that sleeps, a batch of messages, a flush, a new segment, a new sale, and the main thread's own
/// business.
#[test]
fn no_request_waits_for_another_core() {
    let allowed: &[(&str, &[&str])] = &[
        ("src/system/doorbell", &["swap"]),
        // A log line reports an event, not a request.
        ("src/config/logging", &["fetch_add", "swap"]),
        ("src/postgres/feed", &["fetch_add", "fetch_sub"]),
        ("src/operate/status", &["fetch_max", "Mutex"]),
        ("src/log/budget", &["fetch_add", "fetch_sub", "fetch_update"]),
        ("src/log/data_dir", &["Mutex"]),
        ("src/system/clock", &["Mutex"]),
    ];
    let waiting =
        ["fetch_add", "fetch_sub", "fetch_max", "fetch_min", "fetch_and", "fetch_or", "fetch_xor", "fetch_update"];
    let waiting =
        waiting.into_iter().chain(["compare_exchange", "compare_exchange_weak", "swap", "Mutex", "RwLock", "Condvar"]);
    for source in sources(&["src"]) {
        let here = allowed.iter().find(|(name, _)| *name == source.name).map_or(&[][..], |(_, words)| words);
        for word in waiting.clone().filter(|word| !here.contains(word)) {
            assert!(!calls(&source, word), "{} has {word}", source.name);
        }
    }
}

/// One file passes memory to the kernel, and says why that is sound.
#[test]
fn one_file_has_unsafe_code() {
    let unsafe_files: Vec<_> = sources(&["src"])
        .into_iter()
        .filter(|source| mentions(source.syntax.to_token_stream(), &["unsafe"]))
        .map(|source| source.name)
        .collect();
    assert_eq!(unsafe_files, ["src/system/disk_ring"]);
}

/// Whether a source names a type, or calls a method on something other than a slice or memory (`mem::swap`, `.swap(a, b)`).
fn calls(source: &Source, word: &str) -> bool {
    struct Calls<'a>(&'a str, bool);
    impl<'ast> Visit<'ast> for Calls<'_> {
        fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
            let takes_ordering = call.args.iter().any(|arg| mentions(arg.to_token_stream(), &["Ordering"]));
            self.1 |= call.method == self.0 && takes_ordering;
            visit::visit_expr_method_call(self, call);
        }
        fn visit_path_segment(&mut self, segment: &'ast syn::PathSegment) {
            self.1 |= segment.ident == self.0 && self.0.starts_with(char::is_uppercase);
            visit::visit_path_segment(self, segment);
        }
    }
    let mut calls = Calls(word, false);
    calls.visit_file(&source.syntax);
    calls.1
}

/// A folder's `mod.rs` names its files; `lib.rs` and `docs/architecture.md` name the folders.
#[test]
fn every_file_is_on_its_folders_map() {
    let sources = sources(&["src"]);
    let folders: BTreeSet<&str> = sources.iter().filter_map(|source| source.place().0).collect();
    let on_floors: BTreeSet<&str> = FLOORS.iter().flat_map(|floor| floor.iter().copied()).collect();
    assert_eq!(folders, on_floors);
    for map in ["src/lib.rs", "docs/architecture.md"] {
        let text = read(map);
        for folder in &folders {
            assert!(text.contains(&format!("`{folder}`")) || text.contains(&format!("`{folder}/`")), "{map}: {folder}");
        }
    }
    for source in &sources {
        if let (Some(folder), file) = source.place()
            && file != "mod"
        {
            let map = format!("src/{folder}/mod.rs");
            assert!(read(&map).contains(&format!("[`{file}`]")), "{map} does not name {file}");
        }
    }
}

#[test]
fn files_and_functions_stay_readable() {
    struct Functions(Vec<(String, usize)>);
    impl Functions {
        fn note(&mut self, signature: &syn::Signature, end: Span) {
            let lines = end.end().line - signature.span().start().line + 1;
            self.0.push((signature.ident.to_string(), lines));
        }
    }
    impl<'ast> Visit<'ast> for Functions {
        fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
            self.note(&item.sig, item.block.span());
            visit::visit_item_fn(self, item);
        }
        fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
            self.note(&item.sig, item.block.span());
            visit::visit_impl_item_fn(self, item);
        }
    }
    let mut long = Vec::new();
    for source in sources(&["src", "bench", "tests"]) {
        if source.lines > LINES_MAX {
            long.push(format!("{} has {} lines", source.name, source.lines));
        }
        let mut functions = Functions(Vec::new());
        if !source.name.starts_with("tests/") {
            functions.visit_file(&source.syntax);
        }
        let too_long = functions.0.into_iter().filter(|(_, lines)| *lines > FUNCTION_LINES_MAX);
        long.extend(too_long.map(|(name, lines)| format!("{}: {name}() has {lines} lines", source.name)));
    }
    assert!(long.is_empty(), "do these do two jobs?\n{}", long.join("\n"));
}

/// A name means one thing in the workspace: a reader who meets a type in a message or in a search need not ask which.
#[test]
fn type_and_file_names_are_unique() {
    struct Types(Vec<String>);
    impl<'ast> Visit<'ast> for Types {
        fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
            self.0.push(item.ident.to_string());
        }
        fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
            self.0.push(item.ident.to_string());
        }
        fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
            self.0.push(item.ident.to_string());
        }
        fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
            self.0.push(item.ident.to_string());
        }
    }
    let (mut types, mut files) = (BTreeMap::<String, Vec<String>>::new(), BTreeMap::<String, Vec<String>>::new());
    for source in sources(&["src", "bench"]) {
        let mut found = Types(Vec::new());
        found.visit_file(&source.syntax);
        found.0.into_iter().for_each(|name| types.entry(name).or_default().push(source.name.clone()));
        let file = Path::new(&source.name).file_name().unwrap().to_str().unwrap().to_owned();
        if !["mod", "main", "lib"].contains(&&*file)
            && !source.name.starts_with("bench/tests")
            && !source.name.starts_with("bench/benches")
        {
            files.entry(file).or_default().push(source.name.clone());
        }
    }
    for floor in FLOORS {
        floor.iter().for_each(|folder| files.entry(folder.to_string()).or_default().push(format!("src/{folder}")));
    }
    let twice = |names: BTreeMap<String, Vec<String>>| names.into_iter().filter(|(_, places)| places.len() > 1);
    let twice: Vec<_> =
        twice(types).chain(twice(files)).map(|(name, places)| format!("{name}: {}", places.join(", "))).collect();
    assert!(twice.is_empty(), "these names mean two things:\n{}", twice.join("\n"));
}

/// A public function's doc begins with a verb in the third person, every public item's with a whole sentence.
#[test]
fn public_items_are_documented_in_sentences() {
    struct Docs(Vec<String>);
    impl Docs {
        fn check(&mut self, visibility: &Visibility, attributes: &[Attribute], name: &syn::Ident, is_function: bool) {
            if !matches!(visibility, Visibility::Public(_)) {
                return;
            }
            let lines = attributes.iter().filter(|attribute| attribute.path().is_ident("doc"));
            let lines = lines.map(|attribute| {
                let text = attribute.meta.require_name_value().unwrap().value.to_token_stream().to_string();
                text.trim_matches('"').trim().to_owned()
            });
            let first: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let first = first.join(" ");
            let begins_well = first.starts_with(|letter: char| letter.is_ascii_uppercase() || letter == '`');
            let verb = first.split(' ').next().unwrap_or_default().trim_end_matches([',', '.']);
            let ends_well = first.ends_with(['.', ':']);
            if !begins_well || !ends_well || is_function && !verb.ends_with('s') {
                self.0.push(format!("{name}: {first}"));
            }
        }
    }
    impl<'ast> Visit<'ast> for Docs {
        fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
            self.check(&item.vis, &item.attrs, &item.sig.ident, true);
        }
        fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
            self.check(&item.vis, &item.attrs, &item.sig.ident, true);
        }
        fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
            self.check(&item.vis, &item.attrs, &item.ident, false);
        }
        fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
            self.check(&item.vis, &item.attrs, &item.ident, false);
        }
        fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
            self.check(&item.vis, &item.attrs, &item.ident, false);
        }
        fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
            self.check(&item.vis, &item.attrs, &item.ident, false);
        }
    }
    let mut bad = Vec::new();
    for source in sources(&["src"]) {
        let mut docs = Docs(Vec::new());
        docs.visit_file(&source.syntax);
        bad.extend(docs.0.into_iter().map(|text| format!("{}: {text}", source.name)));
    }
    assert!(bad.is_empty(), "{} docs are not whole sentences:\n{}", bad.len(), bad.join("\n"));
}
