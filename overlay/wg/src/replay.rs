//! Which numbers of messages came already (RFC 6479).

/// How many numbers before the highest are remembered. Cores and paths reorder; so many messages are under 10 ms of
/// 10 Gb/s.
const WINDOW: u64 = 8192;

const WORD_BITS: u64 = 64;

/// One word more than the window has, so that a new word can be cleared before it is used.
const WORDS: usize = (WINDOW / WORD_BITS) as usize + 1;

/// Numbers that came, of one session.
#[derive(Debug)]
pub(crate) struct ReplayWindow {
    /// One more than the highest number.
    next: u64,
    words: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// Notes a number. Whether it is new: it did not come before, and is not too old to tell.
    #[inline]
    pub(crate) fn admit(&mut self, number: u64) -> bool {
        if number >= self.next {
            self.advance(number);
        } else if self.next - number > WINDOW {
            return false;
        }
        let word = &mut self.words[(number / WORD_BITS) as usize % WORDS];
        let bit = 1 << (number % WORD_BITS);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Makes a number the highest, and forgets what falls out of the window.
    #[inline]
    fn advance(&mut self, number: u64) {
        let first = self.next.div_ceil(WORD_BITS);
        let last = number / WORD_BITS;
        if last >= first {
            for word in 0..(last - first + 1).min(WORDS as u64) {
                self.words[((last - word) % WORDS as u64) as usize] = 0;
            }
        }
        self.next = number.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_number_is_new_once() {
        let mut window = ReplayWindow::default();
        for number in 0..3 * WINDOW {
            assert!(window.admit(number));
            assert!(!window.admit(number));
        }
        assert!(!window.admit(0));
    }

    #[test]
    fn the_highest_number_is_no_trap() {
        let mut window = ReplayWindow::default();
        assert!(window.admit(u64::MAX));
        assert!(!window.admit(0));
    }

    proptest! {
        #[test]
        fn it_does_what_a_set_of_all_numbers_does(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..3 * WINDOW), 1..400)
        ) {
            let mut window = ReplayWindow::default();
            let mut seen = BTreeSet::new();
            let mut highest: Option<u64> = None;
            for (is_ahead, distance) in steps {
                let base = highest.unwrap_or(0);
                let number = if is_ahead { base + distance } else { base.saturating_sub(distance) };
                let is_old = highest.is_some_and(|highest| number + WINDOW < highest + 1);
                let expected = !is_old && seen.insert(number);
                prop_assert_eq!(window.admit(number), expected, "number {}", number);
                highest = highest.max(Some(number));
            }
        }
    }
}
