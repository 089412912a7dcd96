//! The layering of the modules: imports run down the list below and never up, and no file is part of a cycle.
//! The list is that of docs/internals/architecture.md; a new folder must be added to both. Also checks that the
//! documents name existing files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// From top to bottom. A folder may import those below it. Folders that share a line may not import each
/// other. Tests and the fuzzer's entry points may import everything.
const ORDER: [&[&str]; 21] = [
    &["tokio"],
    &["doctor"],
    &["api"],
    &["host"],
    &["channel"],
    &["handshake"],
    &["options"],
    &["address"],
    &["peer"],
    &["wake"],
    &["ring"],
    &["region"],
    &["signal"],
    &["harden"],
    &["wait"],
    &["fork"],
    &["evidence"],
    &["trace"],
    &["error"],
    &["sys"],
    &["identity"],
];

type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn core_imports_follow_the_layering() {
    let imports = imports(&source("ringfence"));
    assert!(imports.len() > 40, "the sources were found: {}", imports.len());
    let rank = |module: &str| {
        let folder = module.split("::").next().expect("a name");
        let found = ORDER.iter().position(|line| line.contains(&folder));
        found.unwrap_or_else(|| panic!("{folder} is missing in ORDER"))
    };
    let mut wrong = Vec::new();
    for (from, all) in &imports {
        for to in all {
            let same = from.split("::").next() == to.split("::").next();
            if !same && rank(to) <= rank(from) {
                wrong.push(format!("{from} imports {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "these imports run up:\n{}", wrong.join("\n"));
}

#[test]
fn no_module_imports_from_the_crate_root() {
    let source = source("ringfence");
    let mut files = Vec::new();
    collect(&source, &source, &mut files);
    let wrong: Vec<String> = files
        .iter()
        .flat_map(|(name, path)| {
            let text = fs::read_to_string(path).expect("a source file");
            let from_root = |path: &String| path.starts_with(char::is_uppercase);
            let found: Vec<String> = crate_paths(&text).into_iter().filter(from_root).collect();
            found
                .into_iter()
                .map(move |path| format!("{name} imports crate::{path}"))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "lib.rs is above every module:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn core_modules_have_no_cycles() {
    let cycles = cycles(&imports(&source("ringfence")));
    assert!(cycles.is_empty(), "cycles: {cycles:#?}");
}

#[test]
fn binding_modules_have_no_cycles() {
    let binding = source("ringfence-node");
    // The crate is packaged without its neighbours.
    if binding.exists() {
        let cycles = cycles(&imports(&binding));
        assert!(cycles.is_empty(), "cycles: {cycles:#?}");
    }
}

#[test]
fn cycles_and_imports_are_found() {
    let text = "use crate::{\n    a::{\n        self,\n        B,\n    },\n    c::{\n        d::E,\n    },\n};\nfn f() { crate::g::h() }\n// use crate::no;\n";
    let modules = ["a", "c", "c::d", "g", "no"].map(str::to_owned).into();
    let found = imports_in(text, &modules);
    assert_eq!(found, ["a", "c::d", "g"].map(str::to_owned).into());
    let edges = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")];
    let cycle = edges
        .map(|(from, to)| (from.to_owned(), [to.to_owned()].into()))
        .into();
    assert_eq!(cycles(&cycle), [["a", "b", "c"].map(str::to_owned).into()]);
}

/// The folders to which a document's file names may be relative.
const ROOTS: [&str; 4] = ["", "crates/ringfence/src", "docs", "docs/internals"];

/// Generated folders, which do not exist in a fresh clone.
const GENERATED: [&str; 3] = ["build/", "fuzz/corpus/", "fuzz/artifacts/"];

#[test]
fn documents_name_existing_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // The crate is packaged without its neighbours.
    if !root.join("docs/internals/architecture.md").exists() {
        return;
    }
    let mut documents: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "SECURITY.md"]
        .map(|name| root.join(name))
        .into();
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of documents") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                &mut folders
            } else {
                &mut documents
            }
            .push(path);
        }
    }
    let (mut count, mut missing) = (0, Vec::new());
    for document in documents
        .iter()
        .filter(|path| path.extension().is_some_and(|md| md == "md"))
    {
        let text = fs::read_to_string(document).expect("a document");
        for named in paths_in(&text, &root) {
            count += 1;
            // The first line of a page's program is a comment with its name.
            let is_snippet = text.contains(&format!("\n// {named}\n"));
            if !is_snippet && !ROOTS.iter().any(|folder| root.join(folder).join(named).exists()) {
                missing.push(format!("{}: {named}", document.display()));
            }
        }
    }
    assert!(count > 40, "the paths were found: {count}");
    assert!(missing.is_empty(), "no such file:\n{}", missing.join("\n"));
}

#[test]
fn paths_in_documents_are_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = "`src/gone.rs`, `ns/pid`, `a b.rs`, `lib.rs` and `mod.rs`\n```text\n`src/code.rs`\n```\n`src/`, `src/*.rs`";
    assert_eq!(paths_in(text, root), ["src/gone.rs", "lib.rs", "src/"]);
}

/// Returns the words in backquotes that are paths: a source file's name, or a path in an existing folder.
/// Ignores code blocks.
fn paths_in<'a>(text: &'a str, root: &Path) -> Vec<&'a str> {
    let outside = text.split("```").step_by(2);
    // Every second part is between two backquotes.
    let quoted = outside.flat_map(|part| part.split('`').skip(1).step_by(2));
    let is_path = |word: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        // Each folder has a `mod.rs`, so that name alone identifies no file.
        let is_generated = GENERATED.iter().any(|folder| word.starts_with(folder));
        if !word.chars().all(plain) || *word == "mod.rs" || is_generated {
            return false;
        }
        let named = [".rs", ".ts", ".cts", ".mjs", ".c"];
        let is_file = named.iter().any(|ending| word.ends_with(ending));
        let first = word.split_once('/').map(|(first, _)| first);
        let is_below = first.is_some_and(|first| {
            let there = |folder: &&str| root.join(folder).join(first).is_dir();
            !first.is_empty() && first != "." && ROOTS.iter().any(there)
        });
        is_file || is_below
    };
    quoted.filter(is_path).collect()
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(name)
        .join("src")
}

/// Returns which module imports which, from the paths after `crate::`.
fn imports(source: &Path) -> Imports {
    let mut files = Vec::new();
    collect(source, source, &mut files);
    let modules: BTreeSet<String> = files.iter().map(|(name, _)| name.clone()).collect();
    files
        .iter()
        .map(|(name, path)| {
            let text = fs::read_to_string(path).expect("a source file");
            let mut found = imports_in(&text, &modules);
            found.remove(name);
            (name.clone(), found)
        })
        .collect()
}

/// Collects every file except lib.rs, tests and test-only code: its module path, and its location.
fn collect(source: &Path, folder: &Path, into: &mut Vec<(String, PathBuf)>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "tests" && name != "testing" {
                collect(source, &path, into);
            }
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") || name == "lib" || name == "tests" {
            continue;
        }
        let relative = path
            .strip_prefix(source)
            .expect("below the sources")
            .with_extension("");
        let mut parts: Vec<_> = relative
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        if parts.last().is_some_and(|last| last == "mod") {
            parts.pop();
        }
        into.push((parts.join("::"), path));
    }
}

/// Returns which of these modules a file imports.
fn imports_in(text: &str, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let paths = crate_paths(text);
    paths.iter().filter_map(|path| module_of(path, modules)).collect()
}

/// The paths behind `crate::` in a file, without its own tests and its comments.
fn crate_paths(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod ").next().expect("a part");
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        expand("", &code[at + "crate::".len()..], &mut paths);
    }
    paths
}

/// Returns the paths in a tree of imports: `a::{b, c::d}` becomes `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str, into: &mut Vec<String>) {
    // After the last comma of a list.
    if tree.is_empty() {
        return;
    }
    let end = tree
        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
        .unwrap_or(tree.len());
    let path = format!("{prefix}{}", &tree[..end]);
    if !tree[end..].starts_with('{') {
        into.push(path);
        return;
    }
    let mut depth = 0;
    let mut start = end + 1;
    for (at, c) in tree.char_indices().skip_while(|(at, _)| *at < end) {
        match c {
            '{' => depth += 1,
            ',' if depth == 1 => {
                expand(&path, tree[start..at].trim_start(), into);
                start = at + 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 {
                    expand(&path, tree[start..at].trim_start(), into);
                    return;
                }
            }
            _ => {}
        }
    }
}

/// Returns the longest prefix of a path that is a module.
fn module_of(path: &str, modules: &BTreeSet<String>) -> Option<String> {
    let parts: Vec<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
    (1..=parts.len())
        .rev()
        .map(|length| parts[..length].join("::"))
        .find(|name| modules.contains(name))
}

/// Returns the sets of modules that all reach each other.
fn cycles(imports: &Imports) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        imports.keys().map(|from| (from, reach(from, imports))).collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (from, all) in &reached {
        let cycle: BTreeSet<String> = all
            .iter()
            .filter(|to| reached.get(*to).is_some_and(|back| back.contains(from)))
            .map(|to| (*to).clone())
            .collect();
        if !cycle.is_empty() && !found.contains(&cycle) {
            found.push(cycle);
        }
    }
    found
}

/// Returns everything that is imported from here on, directly or indirectly.
fn reach<'a>(from: &String, imports: &'a Imports) -> BTreeSet<&'a String> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&String> = imports.get(from).into_iter().flatten().collect();
    while let Some(module) = next.pop() {
        if seen.insert(module) {
            next.extend(imports.get(module).into_iter().flatten());
        }
    }
    seen
}
