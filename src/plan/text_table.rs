//! Tables in plain text.

/// Returns a table with a line for each row. Columns are as wide as their widest cell, and two blanks apart.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |cell: &str| cell.chars().count();
    let mut widths: Vec<usize> = header.iter().map(|cell| width(cell)).collect();
    for row in rows {
        row.iter().zip(&mut widths).for_each(|(cell, widest)| *widest = width(cell).max(*widest));
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, widest)| format!("{cell}{}", " ".repeat(widest - width(cell))));
        let line = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let head = line(&mut header.iter().copied());
    let lines = rows.iter().map(|row| line(&mut row.iter().map(String::as_str)));
    std::iter::once(head).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["1".into(), "Größe".into(), String::new()], vec!["22".into(), "x".into(), "y".into()]];
        assert_eq!(table(&["id", "name", "z"], &rows), "id  name   z\n1   Größe\n22  x      y\n");
    }
}
