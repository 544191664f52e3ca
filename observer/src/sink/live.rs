//! Lines at the end of a terminal that are updated in place.

use std::io::{self, IsTerminal, Write};

use crossterm::{
    cursor::{MoveToColumn, MoveUp},
    queue,
    style::Print,
    terminal::{Clear, ClearType},
};
use rustix::termios::tcgetwinsize;
use unicode_width::UnicodeWidthChar;

/// Rows at most: what happened before them stays in view.
pub(super) const MAX_ROWS: usize = 8;
/// Width where the terminal does not say.
const WIDTH: usize = 80;

/// What is drawn at the end.
#[derive(Default)]
pub struct Live {
    rows: u16,
}

impl Live {
    /// For stdout, if it is a terminal that can do this and takes styles.
    pub fn of_stdout(styled: bool) -> Option<Self> {
        let able = std::env::var_os("TERM").is_some_and(|kind| kind != "dumb");
        (styled && able && io::stdout().is_terminal()).then(Self::default)
    }

    /// Takes away what is drawn, so that something can be written in its place.
    pub(super) fn erase(&mut self, writer: &mut impl Write) -> io::Result<()> {
        if self.rows > 0 {
            queue!(writer, MoveUp(self.rows), MoveToColumn(0), Clear(ClearType::FromCursorDown))?;
            self.rows = 0;
        }
        Ok(())
    }

    /// Draws rows in the place of those before; one that is too long is cut, since a wrapped one could not be taken away.
    pub(super) fn draw(&mut self, writer: &mut impl Write, rows: &[String]) -> io::Result<()> {
        self.erase(writer)?;
        // Of stdout, which need not be the terminal that the process was started from.
        let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        let (width, height) = size.map_or((WIDTH, MAX_ROWS + 1), |size| (size.ws_col.into(), size.ws_row.into()));
        for row in rows.iter().take(MAX_ROWS.min(height - 1)) {
            queue!(writer, Print(fit(row, width)), Print('\n'))?;
            self.rows += 1;
        }
        Ok(())
    }
}

/// As much of a text as fits into so many columns.
fn fit(text: &str, width: usize) -> String {
    let wide = |character: char| character.width().unwrap_or(0);
    if text.chars().map(wide).sum::<usize>() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub(1);
    let kept = text.chars().take_while(|character| {
        let enough = wide(*character) <= left;
        left = left.saturating_sub(wide(*character));
        enough
    });
    kept.chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_never_wrap() {
        assert_eq!(fit("curl", 4), "curl");
        assert_eq!(fit("curls", 4), "cur…");
        assert_eq!(fit("日本語", 4), "日…");
        assert_eq!(fit("日本語", 6), "日本語");
    }
}
