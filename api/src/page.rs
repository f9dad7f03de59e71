//! Pages of a list, newest first. One row more than a page holds is asked for: it tells whether there is
//! another page, and is not shown.

use crate::contract::{Bounded, Wire};

/// The most rows of a page, as a client says it.
pub type Limit = Option<Wire<Bounded<1, 100>>>;

/// How many rows a page holds.
#[derive(Clone, Copy, Debug)]
pub struct Page(u32);

impl Page {
    /// As many as `limit` says, within bounds of its own; 20 if it does not.
    pub fn of<const MIN: u32, const MAX: u32>(limit: Option<Wire<Bounded<MIN, MAX>>>) -> Self {
        Self(limit.map_or(20, |Wire(Bounded(limit))| limit))
    }

    /// How many rows to look for.
    pub fn rows(self) -> u32 {
        self.0 + 1
    }

    /// Cut `rows` to the page, and answer the last of it where another page follows.
    pub fn cut<T>(self, rows: &mut Vec<T>) -> Option<&T> {
        let size = usize::try_from(self.0).unwrap_or(usize::MAX);
        let more = rows.len() > size;
        rows.truncate(size);
        rows.last().filter(|_| more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_page_is_the_last_unless_a_row_follows() {
        let page = Page::of(Some(Wire(Bounded::<1, 100>(2))));
        assert_eq!(page.rows(), 3);

        let (mut full, mut more) = (vec![3, 2], vec![3, 2, 1]);

        assert_eq!(page.cut(&mut full), None);
        assert_eq!(page.cut(&mut more), Some(&2));
        assert_eq!(more, [3, 2]);
    }
}
