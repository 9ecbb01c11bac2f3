//! Prints aligned tables.

/// Prints rows below a header, each column as wide as its widest cell.
pub fn print<const COLUMNS: usize>(header: [&str; COLUMNS], rows: &[[String; COLUMNS]]) {
    let mut widths = header.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    line(&widths, header.iter().copied());
    for row in rows {
        line(&widths, row.iter().map(String::as_str));
    }
}

fn line<'a>(widths: &[usize], cells: impl Iterator<Item = &'a str>) {
    let mut text = String::new();
    for (width, cell) in widths.iter().zip(cells) {
        text.push_str("  ");
        text.push_str(&format!("{cell:width$}"));
    }
    println!("{}", text.trim_end());
}
