//! The rules of the code base that no compiler checks: purity, fences between capabilities, unsafe code, sizes.
//!
//! Each test names the rule that it holds. An exception needs an entry with its reason in the list beside the rule.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro2::Span;
use serde_json::Value;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Crates that decide and do nothing else.
const PURE: [&str; 8] = [
    "mesonet-model",
    "mesonet-master",
    "mesonet-marathon",
    "mesonet-mesos",
    "mesonet-dns-zone",
    "mesonet-lb-plan",
    "mesonet-overlay-plan",
    "mesonet-ebpf-abi",
];

/// Crates that act.
const ACTING: [&str; 7] = [
    "mesonet-agent",
    "mesonet-bus",
    "mesonet-store",
    "mesonet-api",
    "mesonet-dns-server",
    "mesonet-lb-dataplane",
    "mesonet-overlay-wg",
];

/// What a pure crate must not reach, directly or through others.
const IMPURE_LIBRARIES: [&str; 12] = [
    "tokio",
    "quinn",
    "axum",
    "aya",
    "rtnetlink",
    "nix",
    "socket2",
    "mio",
    "hyper",
    "rustix",
    "getrandom",
    "redb",
];

/// What a pure crate must not write: the clock, randomness, the environment, files, sockets, and maps whose order
/// differs from run to run.
const IMPURE_WORDS: [&str; 11] = [
    "Instant::now",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "TcpStream",
    "UdpSocket",
    "HashMap",
    "HashSet",
    "fastrand::Rng::new",
];

/// Folders whose crates may hold unsafe code.
const UNSAFE_FOLDERS: [&str; 5] = ["lb/dataplane", "ebpf", "overlay/wg", "dns/server", "cluster-core/agent"];

/// Names that say nothing of what a module holds.
const EMPTY_NAMES: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "types", "misc", "shared"];

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

#[test]
fn pure_crates_reach_no_input_or_output() {
    let workspace = Workspace::load();
    let mut offences = Vec::new();
    for name in PURE {
        let reached = workspace.reached_from(name);
        offences.extend(IMPURE_LIBRARIES.iter().filter(|library| reached.contains(**library)).map(
            |library| format!("{name} reaches {library}: cargo tree -p {name} -i {library} --edges normal"),
        ));
    }
    assert_none(&offences);
}

#[test]
fn pure_crates_read_no_clock_chance_or_environment() {
    let workspace = Workspace::load();
    let mut offences = Vec::new();
    for name in PURE {
        for file in rust_files(&workspace.folder_of(name).join("src")) {
            let source = Source::read(&file);
            for (number, line) in source.code_lines() {
                offences.extend(
                    IMPURE_WORDS
                        .iter()
                        .filter(|word| line.contains(*word))
                        .map(|word| format!("{}:{number}: {word} in a pure crate", file.display())),
                );
            }
        }
    }
    assert_none(&offences);
}

#[test]
fn capabilities_do_not_know_each_other() {
    let workspace = Workspace::load();
    let mut offences = Vec::new();
    for (name, dependencies) in &workspace.direct {
        let capability = workspace.capability_of(name);
        if !matches!(capability.as_str(), "dns" | "lb" | "overlay") {
            continue;
        }
        for dependency in dependencies.iter().filter(|dependency| workspace.is_member(dependency)) {
            let other = workspace.capability_of(dependency);
            let is_fenced =
                ["mesonet-master", "mesonet-marathon", "mesonet-agent"].contains(&dependency.as_str());
            let is_vocabulary = ["mesonet-model", "mesonet-ebpf-abi"].contains(&dependency.as_str());
            if is_fenced || (other != capability && !is_vocabulary) {
                offences.push(format!("{name} depends on {dependency}"));
            }
        }
    }
    assert_none(&offences);
}

#[test]
fn only_the_root_package_joins_acting_crates() {
    let workspace = Workspace::load();
    let mut offences = Vec::new();
    for (name, dependencies) in workspace.direct.iter().filter(|(name, _)| *name != "mesonet") {
        let acting: Vec<_> =
            dependencies.iter().filter(|dependency| ACTING.contains(&dependency.as_str())).collect();
        if acting.len() > 1 || (ACTING.contains(&name.as_str()) && !acting.is_empty()) {
            offences.push(format!("{name} depends on {acting:?}"));
        }
    }
    assert_none(&offences);
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let offences: Vec<String> = Workspace::load()
        .folders
        .iter()
        .filter(|(_, folder)| {
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("manifest");
            !manifest.contains("[lints]\nworkspace = true")
        })
        .map(|(name, _)| format!("{name} has no [lints] workspace = true"))
        .collect();
    assert_none(&offences);
}

#[test]
fn unsafe_code_is_where_it_belongs_and_says_why() {
    let root = root();
    let mut offences = Vec::new();
    for file in rust_files(&root) {
        let relative = file.strip_prefix(&root).expect("below the root");
        let allowed = UNSAFE_FOLDERS.iter().any(|folder| relative.starts_with(folder));
        let source = Source::read(&file);
        let is_crate_root = ["src/lib.rs", "src/main.rs"].iter().any(|end| relative.ends_with(end));
        if !allowed && is_crate_root && !source.text.contains("#![forbid(unsafe_code)]") {
            offences.push(format!("{}: lacks #![forbid(unsafe_code)]", relative.display()));
        }
        for block in source.unsafe_lines() {
            if !allowed {
                offences.push(format!("{}:{block}: unsafe code", relative.display()));
            }
            if !source.has_safety_note(block) {
                offences.push(format!("{}:{block}: unsafe block without a SAFETY: line", relative.display()));
            }
        }
    }
    assert_none(&offences);
}

#[test]
fn files_and_functions_fit() {
    let mut offences = Vec::new();
    for file in rust_files(&root()) {
        let source = Source::read(&file);
        let lines = source.code_lines().count();
        if lines > FILE_LINES_MAX {
            offences.push(format!("{}: {lines} net lines, at most {FILE_LINES_MAX}", file.display()));
        }
        for (name, first, last) in source.functions() {
            let lines = source.code_lines().filter(|(number, _)| (first..=last).contains(number)).count();
            if lines > FUNCTION_LINES_MAX {
                offences.push(format!(
                    "{}:{first}: {name} has {lines} lines, at most {FUNCTION_LINES_MAX}",
                    file.display()
                ));
            }
        }
    }
    assert_none(&offences);
}

#[test]
fn modules_are_named_for_what_they_hold() {
    let offences: Vec<String> = rust_files(&root())
        .into_iter()
        .filter(|file| {
            let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let folder =
                file.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
            EMPTY_NAMES.contains(&stem) || (stem == "mod" && EMPTY_NAMES.contains(&folder))
        })
        .map(|file| file.display().to_string())
        .collect();
    assert_none(&offences);
}

#[test]
fn nothing_is_left_to_do_without_an_issue() {
    let marks = ["TO", "FIX", "XX"].map(|start| {
        let end = match start {
            "TO" => "DO",
            "FIX" => "ME",
            _ => "X",
        };
        format!("{start}{end}")
    });
    let mut offences = Vec::new();
    for file in rust_files(&root()) {
        let text = fs::read_to_string(&file).expect("source");
        for (number, line) in text.lines().enumerate() {
            let is_mark =
                marks.iter().any(|mark| line.split(|c: char| !c.is_ascii_alphabetic()).any(|w| w == mark));
            if is_mark && !line.contains("issue") {
                offences.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    assert_none(&offences);
}

// === impl Workspace ===

/// The packages of this workspace and what they reach by normal dependencies.
struct Workspace {
    folders: BTreeMap<String, PathBuf>,
    direct: BTreeMap<String, BTreeSet<String>>,
    reached: BTreeMap<String, BTreeSet<String>>,
}

impl Workspace {
    fn load() -> Self {
        let output = Command::new(env!("CARGO"))
            .args([
                "metadata",
                "--format-version",
                "1",
                "--offline",
                "--filter-platform",
                "x86_64-unknown-linux-gnu",
            ])
            .current_dir(root())
            .output()
            .expect("cargo metadata runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
        let names: BTreeMap<&str, &str> = array(&metadata["packages"])
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let edges: BTreeMap<&str, Vec<&str>> = array(&metadata["resolve"]["nodes"])
            .map(|node| {
                let normal = array(&node["deps"])
                    .filter(|edge| array(&edge["dep_kinds"]).any(|kind| kind["kind"].is_null()))
                    .map(|edge| text(&edge["pkg"]));
                (text(&node["id"]), normal.collect())
            })
            .collect();
        let mut workspace =
            Self { folders: BTreeMap::new(), direct: BTreeMap::new(), reached: BTreeMap::new() };
        for id in array(&metadata["workspace_members"]).map(text) {
            let name = names[id].to_owned();
            let package = array(&metadata["packages"]).find(|package| package["id"] == id).expect("member");
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            workspace.folders.insert(name.clone(), manifest.parent().expect("folder").to_owned());
            workspace.direct.insert(name.clone(), edges[id].iter().map(|id| names[id].to_owned()).collect());
            let mut reached = BTreeSet::new();
            let mut waiting = edges[id].clone();
            while let Some(id) = waiting.pop() {
                if reached.insert(names[id].to_owned()) {
                    waiting.extend(&edges[id]);
                }
            }
            workspace.reached.insert(name, reached);
        }
        workspace
    }

    fn reached_from(&self, name: &str) -> &BTreeSet<String> {
        &self.reached[name]
    }

    fn folder_of(&self, name: &str) -> &Path {
        &self.folders[name]
    }

    fn is_member(&self, name: &str) -> bool {
        self.folders.contains_key(name)
    }

    /// The top folder of a package: `dns`, `lb`, `cluster-core`, …
    fn capability_of(&self, name: &str) -> String {
        let relative = self.folders[name].strip_prefix(root()).expect("below the root");
        relative.iter().next().map(|folder| folder.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

// === impl Source ===

/// A source file and which of its lines count: not blank, no comment, no inline test module.
struct Source {
    text: String,
    syntax: syn::File,
    test_modules: Vec<(usize, usize)>,
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("source file");
        let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut finder = TestModules(Vec::new());
        finder.visit_file(&syntax);
        Self { text, syntax, test_modules: finder.0 }
    }

    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let in_tests =
            |number: usize| self.test_modules.iter().any(|(first, last)| (*first..=*last).contains(&number));
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with("//"))
            .filter(move |(number, _)| !in_tests(*number))
    }

    /// Name, first and last line of every function outside of test modules.
    fn functions(&self) -> Vec<(String, usize, usize)> {
        let mut finder = Functions(Vec::new());
        finder.visit_file(&self.syntax);
        finder.0
    }

    fn unsafe_lines(&self) -> Vec<usize> {
        let mut finder = UnsafeCode(Vec::new());
        finder.visit_file(&self.syntax);
        finder.0
    }

    /// Whether a SAFETY note stands on the line, or in the comment or statement above it.
    fn has_safety_note(&self, line: usize) -> bool {
        const NOTE_DISTANCE_MAX: usize = 8;
        let first = line.saturating_sub(NOTE_DISTANCE_MAX);
        self.text
            .lines()
            .skip(first)
            .take(line - first)
            .any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
    }
}

struct TestModules(Vec<(usize, usize)>);

impl<'ast> Visit<'ast> for TestModules {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if is_test_only(&module.attrs) {
            let span = module.span();
            self.0.push((span.start().line, span.end().line));
        } else {
            visit::visit_item_mod(self, module);
        }
    }
}

struct Functions(Vec<(String, usize, usize)>);

impl Functions {
    fn push(&mut self, name: &syn::Ident, from: Span, to: Span) {
        self.0.push((name.to_string(), from.start().line, to.end().line));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_test_only(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.push(&function.sig.ident, function.sig.span(), function.block.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.push(&function.sig.ident, function.sig.span(), function.block.span());
        visit::visit_impl_item_fn(self, function);
    }
}

struct UnsafeCode(Vec<usize>);

impl<'ast> Visit<'ast> for UnsafeCode {
    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.0.push(block.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.0.extend(item.unsafety.as_ref().map(|token| token.span.start().line));
        visit::visit_item_impl(self, item);
    }
}

fn is_test_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string().contains("test"))
    })
}

// === the tree ===

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file that git tracks or would track, so that build output does not count.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn assert_none(offences: &[String]) {
    assert!(offences.is_empty(), "{} offences:\n{}", offences.len(), offences.join("\n"));
}
