//! The documents, held against the code: what they list is complete, what they link to exists.

use stampede::config::fatal::EXIT_CODES;
use stampede::config::flags::SETTINGS;
use stampede::http::problem::Problem;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use strum::VariantArray;

/// Bytes of README.md at most: a newcomer reads it to the end.
const README_BYTES_MAX: usize = 9 * 1024;

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(home().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The Markdown files that people read: at the top level, in `docs` and in `tuning`.
fn documents() -> Vec<PathBuf> {
    let files = ["", "docs", "tuning"].into_iter().flat_map(|folder| fs::read_dir(home().join(folder)).unwrap());
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    files
}

/// A line of a table, cell by cell.
fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split(" | ").map(str::trim).collect()
}

/// The words between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_setting_is_documented_with_its_variables_and_default() {
    let text = read("docs/configuration.md");
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| `--")).map(cells).collect();
    let flags: BTreeSet<_> = rows.iter().map(|row| quoted(row[0])[0].trim_start_matches("--")).collect();
    assert_eq!(flags, SETTINGS.iter().map(|setting| setting.flag).collect());
    assert_eq!(rows.len(), SETTINGS.len(), "a setting is documented twice");
    for setting in SETTINGS {
        let row = rows.iter().find(|row| quoted(row[0])[0].trim_start_matches("--") == setting.flag).unwrap();
        // Variables that give a part of the value are in the text around the table.
        let listed = quoted(row[1]);
        for variable in setting.variables {
            assert!(text.contains(&format!("`{variable}`")), "--{}: {variable} is not documented", setting.flag);
        }
        let unknown: Vec<_> = listed.iter().filter(|variable| !setting.variables.contains(variable)).collect();
        assert!(unknown.is_empty(), "--{} does not read {unknown:?}", setting.flag);
        // A default in parentheses is computed: the document describes it in words.
        let default = if setting.default.starts_with('(') { vec![] } else { vec![setting.default] };
        assert_eq!(quoted(row[2]), default, "the default of --{}", setting.flag);
    }
}

#[test]
fn every_exit_code_is_documented() {
    let text = read("docs/operations.md").replace('`', "");
    for (code, meaning) in EXIT_CODES {
        let row = format!("| {code} | {meaning} |");
        assert!(text.contains(&row), "docs/operations.md and src/config/fatal.rs do not say the same: {row}");
    }
}

#[test]
fn every_problem_type_is_documented() {
    let text = read("docs/api.md");
    for problem in Problem::VARIANTS {
        let slug = problem.about().slug;
        assert!(text.contains(&format!("`{slug}`")), "docs/api.md does not explain {slug}");
    }
}

/// Each alert has a severity and a summary, and `runbook_url` leads to a section with its name, which says what the alert
/// means for buyers, where to look, what to do, and when it is over.
#[test]
fn every_alert_has_a_severity_and_a_runbook() {
    let (rules, text) = (read("tuning/observe/alerts.yml"), read("docs/operations.md"));
    for alert in rules.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        let value = |key: &str| alert.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_default();
        let severity = value("severity: ");
        assert!(["page", "ticket"].contains(&severity), "{name}: severity {severity}");
        assert!(value("summary: ").ends_with('.'), "{name} has no summary");
        assert_eq!(value("runbook_url: "), format!("docs/operations.md#{}", name.to_lowercase()));
        let section = text.split_once(&format!("\n### {name}\n")).map(|(_, rest)| rest.split("\n#").next().unwrap());
        let section = section.unwrap_or_else(|| panic!("docs/operations.md has no section {name}"));
        for part in ["- **Buyers:** ", "- **Look:** ", "- **Do:**\n", "- **Over:** "] {
            assert!(section.contains(part), "the runbook of {name} has no part {part}");
        }
        assert!(
            section.to_lowercase().trim_start().starts_with(severity),
            "the runbook of {name} has another severity"
        );
    }
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let headings = text.lines().filter(|line| {
        is_code ^= line.starts_with("```");
        !is_code && line.starts_with('#')
    });
    let anchors = headings.map(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
    });
    anchors.collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut links = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            links += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            assert!(target.exists(), "{} links to {link}, which does not exist", document.display());
            if !anchor.is_empty() && target.extension().is_some_and(|extension| extension == "md") {
                let known = anchors(&fs::read_to_string(&target).unwrap());
                assert!(known.contains(anchor), "{} links to {link}, which has no such heading", document.display());
            }
        }
    }
    assert!(links > 50, "the links were not found");
}

/// A path in backticks that begins with a folder of the repository.
#[test]
fn every_path_exists() {
    let folders = ["src/", "tests/", "bench/", "docs/", "tuning/", "sql/", ".ci/"];
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for word in text.split('`').filter(|word| folders.iter().any(|folder| word.starts_with(folder))) {
            let path = word.split(['#', ':']).next().unwrap();
            if path.contains([' ', '<', '*', '{', '\n', '…', '$']) {
                continue;
            }
            assert!(home().join(path).exists(), "{} names {path}, which does not exist", document.display());
        }
    }
}

/// Folders whose constants that limit something are bounds of the running server.
const BOUNDED: &[&str] = &["src/server/", "src/runtime/", "src/plan/", "src/sale/", "src/log/", "src/postgres/"];
/// Constants of these folders that limit a format or a search, not what others can make large.
const OF_FORMATS: &[&str] = &["COUNT_MAX", "ITEMS_MAX", "SALES_BACK_MAX", "BACKOFF_MAX", "POLLS_MAX"];

/// Each row of the table of bounds states the number in the code and a test that exists, and no bound is missing.
#[test]
fn every_bound_has_its_number_and_its_test() {
    let text = read("docs/testing.md");
    let section = text.split("## Bounds").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && line.contains("`")).map(cells);
    let mut listed = BTreeSet::new();
    for row in rows {
        let quoted_number = quoted(row[1]);
        if let [file, number] = quoted_number[..] {
            assert!(read(file).contains(&format!("const {number};")), "{file} has no {number}");
            listed.insert((file.to_owned(), number.split(':').next().unwrap().to_owned()));
        }
        let [file, test] = quoted(row[3])[..] else { panic!("no test in {row:?}") };
        assert!(read(file).contains(&format!("fn {test}()")), "{file} has no test {test}");
    }
    for (file, name) in constants().into_iter().filter(|(_, name)| !OF_FORMATS.contains(&name.as_str())) {
        assert!(listed.contains(&(file.clone(), name.clone())), "the bound {name} of {file} is not in docs/testing.md");
    }
}

/// The constants of [`BOUNDED`] folders whose names say that they are limits, with their files.
fn constants() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in BOUNDED {
        for entry in fs::read_dir(home().join(folder)).unwrap() {
            let file = format!("{folder}{}", entry.unwrap().file_name().to_str().unwrap());
            for line in read(&file).lines() {
                let Some((visibility, rest)) = line.split_once("const ") else { continue };
                let name = rest.split(':').next().unwrap();
                let is_limit = ["_MAX", "_PER_TURN", "_PER_EVENT"].iter().any(|end| name.ends_with(end));
                if is_limit && !visibility.starts_with(' ') {
                    found.push((file.clone(), name.to_owned()));
                }
            }
        }
    }
    assert!(found.len() > 20, "the constants were not found");
    found
}

#[test]
fn the_readme_stays_short() {
    let bytes = read("README.md").len();
    assert!(bytes <= README_BYTES_MAX, "README.md has {bytes} bytes");
}
