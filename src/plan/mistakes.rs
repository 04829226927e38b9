//! The mistakes of a plan, each with its place: the file, the line, the column, and the line itself.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use thiserror::Error;

/// Maximum number of mistakes that are reported at once.
pub const MISTAKES_MAX: usize = 100;
/// Maximum number of characters of a line that are shown.
const EXCERPT_CHARS_MAX: usize = 100;

/// A mistake in a plan or in a list of units beside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The mistake and its remedy.
    pub text: String,
    /// The line, and a second one that marks the place in it. Empty if the file has no such line.
    excerpt: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}{}", self.file, self.line, self.column, self.text, self.excerpt)
    }
}

/// The text of a file, with its name.
pub struct PlanText {
    /// Name of the file, as the operator wrote it.
    pub name: String,
    /// The text.
    pub text: String,
    /// Where each line begins, in bytes.
    lines: Vec<usize>,
}

impl PlanText {
    /// Takes the text of a file.
    pub fn new(name: &str, text: String) -> PlanText {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(end, _)| end + 1)).collect();
        PlanText { name: name.to_owned(), text, lines }
    }

    /// Takes the content of a file.
    ///
    /// # Errors
    /// It is not UTF-8: the first place that is not.
    pub fn from_bytes(name: &str, content: Vec<u8>) -> Result<PlanText, Mistake> {
        String::from_utf8(content).map(|text| PlanText::new(name, text)).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            // The characters before the place are whole, so its offset is the same in the lossy text.
            let text = PlanText::new(name, String::from_utf8_lossy(error.as_bytes()).into_owned());
            text.mistake(valid..valid + 1, "this is not UTF-8; save the file in this encoding".into())
        })
    }

    /// Returns the line of this place, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at)
    }

    /// Returns a mistake at this place, in bytes from the beginning of the text.
    fn mistake(&self, at: Range<usize>, text: String) -> Mistake {
        let boundary = |at: usize| self.text.floor_char_boundary(at.min(self.text.len()));
        let (start, number) = (boundary(at.start), self.line(boundary(at.start)));
        let line = self.text[self.lines[number - 1]..].lines().next().unwrap_or_default();
        let column = self.text[self.lines[number - 1]..start].chars().count();
        let end = boundary(at.end).clamp(start, (self.lines[number - 1] + line.len()).max(start));
        let excerpt = excerpt(line, column, self.text[start..end].chars().count());
        Mistake { file: self.name.clone(), line: number, column: column + 1, text, excerpt }
    }
}

/// Returns the part of a line around `column`, and below it a line that marks `marked` characters.
fn excerpt(line: &str, column: usize, marked: usize) -> String {
    if line.trim().is_empty() {
        return String::new();
    }
    let skipped = if column < EXCERPT_CHARS_MAX * 3 / 4 { 0 } else { column - EXCERPT_CHARS_MAX / 4 };
    let visible = |letter: char| if is_invisible(letter) { '\u{fffd}' } else { letter };
    let shown = line.chars().skip(skipped).take(EXCERPT_CHARS_MAX).map(|letter| match letter {
        '\t' => ' ',
        letter => visible(letter),
    });
    let shown: String = shown.collect();
    let column = column - skipped;
    let marked = marked.min(EXCERPT_CHARS_MAX.saturating_sub(column)).max(1);
    format!("\n    {}\n    {}{}", shown.trim_end(), " ".repeat(column), "^".repeat(marked))
}

/// Returns whether a character changes what a terminal or a page shows around it: a control character, a line separator,
/// or a mark that changes the direction of text.
pub fn is_invisible(letter: char) -> bool {
    let is_mark = matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}');
    letter.is_control() || is_mark || letter == '\u{feff}'
}

/// Collects the mistakes of one plan. Beyond [`MISTAKES_MAX`] it only counts them, because each is looked up in its file.
#[derive(Default)]
pub struct Mistakes {
    kept: RefCell<Vec<Mistake>>,
    dropped: Cell<usize>,
}

impl Mistakes {
    /// Adds a mistake at this place of a file.
    pub fn add(&self, file: &PlanText, at: Range<usize>, text: String) {
        self.add_with(|| file.mistake(at, text));
    }

    /// Adds a mistake that has been looked up already.
    pub fn add_found(&self, mistake: Mistake) {
        self.add_with(|| mistake);
    }

    fn add_with(&self, mistake: impl FnOnce() -> Mistake) {
        let mut kept = self.kept.borrow_mut();
        match kept.len() < MISTAKES_MAX {
            true => kept.push(mistake()),
            false => self.dropped.set(self.dropped.get() + 1),
        }
    }

    /// Returns whether no mistake was added.
    pub fn is_empty(&self) -> bool {
        self.kept.borrow().is_empty()
    }

    /// Returns the mistakes in the order of their places, or `None` if there is none.
    pub fn report(self) -> Option<PlanRefused> {
        let (mut mistakes, dropped) = (self.kept.into_inner(), self.dropped.get());
        mistakes.sort();
        (!mistakes.is_empty()).then_some(PlanRefused { mistakes, dropped })
    }
}

/// The mistakes of a plan that is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct PlanRefused {
    /// The mistakes, 1 to [`MISTAKES_MAX`], file by file in the order of their places.
    pub mistakes: Vec<Mistake>,
    /// Number of further mistakes.
    pub dropped: usize,
}

impl From<Mistake> for PlanRefused {
    fn from(mistake: Mistake) -> PlanRefused {
        PlanRefused { mistakes: vec![mistake], dropped: 0 }
    }
}

impl fmt::Display for PlanRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.mistakes.len() + self.dropped;
        write!(f, "{count} {}", if count == 1 { "mistake" } else { "mistakes" })?;
        self.mistakes.iter().try_for_each(|mistake| write!(f, "\n{mistake}"))?;
        if self.dropped > 0 { write!(f, "\n… and {} more", self.dropped) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> PlanText {
        PlanText::new("x.toml", text.into())
    }

    #[test]
    fn a_mistake_has_its_line_column_and_excerpt() {
        let found = text("a = 1\r\n\tß = twö # x\r\n").mistake(13..17, "wrong".into());
        assert_eq!(found.to_string(), "x.toml:2:6: wrong\n     ß = twö # x\n         ^^^");
        let at_the_end = text("a\n").mistake(2..2, "more".into());
        assert_eq!(at_the_end.to_string(), "x.toml:2:1: more");
        assert_eq!(text("").mistake(7..9, "more".into()).to_string(), "x.toml:1:1: more");
    }

    #[test]
    fn long_lines_are_cut_around_the_place_and_nothing_invisible_is_shown() {
        let line = format!("{}\u{1b}[2J\u{202e}here{}", "x".repeat(500), "y".repeat(500));
        let found = text(&line).mistake(507..511, "wrong".into());
        let lines: Vec<String> = found.to_string().lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "x.toml:1:506: wrong");
        assert!(lines[1].chars().count() <= 104 && lines[1].contains("x\u{fffd}[2J\u{fffd}herey"), "{}", lines[1]);
        let marked = lines[2].chars().count() - 4;
        assert_eq!(lines[1].chars().skip(marked).take(4).collect::<String>(), "here");
    }

    #[test]
    fn text_in_another_encoding_is_refused_with_its_place() {
        let found = PlanText::from_bytes("x.toml", b"a = 1\nname = \"Stra\xdfe\"\n".to_vec()).err().unwrap();
        assert_eq!((found.line, found.column), (2, 13));
    }

    #[test]
    fn only_so_many_mistakes_are_reported() {
        let source = text(&"x\n".repeat(MISTAKES_MAX + 5));
        let mistakes = Mistakes::default();
        let place = |line: usize| line * 2..line * 2 + 1;
        (0..MISTAKES_MAX + 5).for_each(|line| mistakes.add(&source, place(MISTAKES_MAX.abs_diff(line)), "no".into()));
        let report = mistakes.report().unwrap().to_string();
        assert!(report.starts_with("105 mistakes\nx.toml:2:1: no\n") && report.ends_with("… and 5 more"), "{report}");
    }
}
