//! Rows as aligned text, the way psql shows them.

/// Header, rule, rows, and a count. A cell that is `None` is NULL and shown empty, as psql does.
pub fn render(columns: &[String], rows: &[Vec<Option<String>>]) -> String {
    let width = |s: &str| s.chars().count();
    let mut widths: Vec<usize> = columns.iter().map(|c| width(c)).collect();
    let mut numeric = vec![true; columns.len()];
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            if let Some(cell) = cell {
                widths[i] = widths[i].max(cell.lines().map(width).max().unwrap_or(0));
                numeric[i] &= cell.parse::<f64>().is_ok();
            }
        }
    }
    let mut out = String::new();
    let header = columns.iter().zip(&widths).map(|(c, w)| {
        let left = (w - width(c)) / 2;
        format!(" {}{c}{} ", " ".repeat(left), " ".repeat(w - width(c) - left))
    });
    out.push_str(header.collect::<Vec<_>>().join("|").trim_end());
    out.push('\n');
    out.push_str(&widths.iter().map(|w| "-".repeat(w + 2)).collect::<Vec<_>>().join("+"));
    out.push('\n');
    for row in rows {
        let cells = row.iter().enumerate().map(|(i, cell)| {
            let cell = cell.as_deref().unwrap_or("").replace('\n', "\\n");
            let pad = " ".repeat(widths[i].saturating_sub(width(&cell)));
            if numeric[i] { format!(" {pad}{cell} ") } else { format!(" {cell}{pad} ") }
        });
        out.push_str(cells.collect::<Vec<_>>().join("|").trim_end());
        out.push('\n');
    }
    out.push_str(&match rows.len() {
        1 => "(1 row)\n".to_string(),
        n => format!("({n} rows)\n"),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_psql() {
        let columns = ["id".to_string(), "name".to_string()];
        let rows = [vec![Some("1".into()), Some("ada".into())], vec![Some("20".into()), None]];
        assert_eq!(render(&columns, &rows), " id | name\n----+------\n  1 | ada\n 20 |\n(2 rows)\n");
        assert_eq!(render(&columns, &rows[..0]), " id | name\n----+------\n(0 rows)\n");
    }
}
