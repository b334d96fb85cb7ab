//! Tables for people: aligned columns of bounded width, one line per row.

/// Space between columns.
const GAP: &str = "  ";

/// What a cell shows that has nothing to show.
pub const NOTHING: &str = "-";

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    title: &'static str,
    is_number: bool,
    width_max: usize,
}

impl Column {
    /// A column of text, cut at this many characters.
    pub const fn text(title: &'static str, width_max: usize) -> Self {
        Self { title, is_number: false, width_max }
    }

    /// A column of numbers, aligned at the right.
    pub const fn number(title: &'static str) -> Self {
        /// Room for any 64-bit number and a unit.
        const NUMBER_WIDTH_MAX: usize = 24;
        Self { title, is_number: true, width_max: NUMBER_WIDTH_MAX }
    }
}

/// Rows below the titles of their columns.
#[derive(Debug, Clone)]
pub struct Table<const N: usize> {
    columns: [Column; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub fn new(columns: [Column; N]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The lines, titles first, each with its line end.
    pub fn render(&self) -> String {
        let mut rows = vec![self.columns.map(|column| column.title.to_owned())];
        rows.extend(self.rows.iter().map(|row| self.clean_row(row)));
        let widths: [usize; N] =
            std::array::from_fn(|index| rows.iter().map(|row| row[index].chars().count()).max().unwrap_or(0));
        let mut text = String::new();
        for row in &rows {
            text.push_str(self.line(row, &widths).trim_end());
            text.push('\n');
        }
        text
    }

    fn clean_row(&self, row: &[String; N]) -> [String; N] {
        std::array::from_fn(|index| clean(&row[index], self.columns[index].width_max))
    }

    fn line(&self, row: &[String; N], widths: &[usize; N]) -> String {
        let cells = row.iter().zip(&self.columns).zip(widths).map(|((cell, column), &width)| {
            if column.is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join(GAP)
    }
}

/// One cell's text: no control characters, which could steer the terminal, and no more than `width_max` characters.
fn clean(text: &str, width_max: usize) -> String {
    let mut cell: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some((cut, _)) = cell.char_indices().nth(width_max) {
        cell.truncate(cut);
        cell.pop();
        cell.push('…');
    }
    match cell.trim() {
        "" => NOTHING.to_owned(),
        _ => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[&str; 3]]) -> String {
        let mut table = Table::new([Column::text("ID", 8), Column::number("COUNT"), Column::text("CMD", 6)]);
        for row in rows {
            table.row(row.map(str::to_owned));
        }
        table.render()
    }

    #[test]
    fn text_is_aligned_left_and_numbers_right() {
        assert_eq!(
            table(&[["/a", "3", "x"], ["/longer", "1200", "y"]]),
            "ID       COUNT  CMD\n/a           3  x\n/longer   1200  y\n"
        );
    }

    #[test]
    fn long_cells_are_cut_and_empty_ones_marked() {
        assert_eq!(table(&[["/0123456789", "1", ""]]), "ID        COUNT  CMD\n/012345…      1  -\n");
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let text = table(&[["/a", "1", "a\u{1b}[2J"]]);
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert_eq!(table(&[["/a", "1", "a\nb"]]).lines().count(), 2);
    }

    #[test]
    fn characters_count_not_bytes() {
        assert_eq!(table(&[["äöü", "1", "ßßßßßß"]]), "ID   COUNT  CMD\näöü      1  ßßßßßß\n");
    }

    #[test]
    fn a_table_without_rows_shows_its_titles() {
        assert_eq!(table(&[]), "ID  COUNT  CMD\n");
    }
}
