//! ChaCha20: two blocks of key stream of eight messages at a time.

use std::arch::x86_64::*;

use super::wide::LANES;

/// Octets of a block.
pub(super) const BLOCK: usize = 64;

/// "expand 32-byte k", the first row of the state.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Where the number of the block is in the state.
const BLOCK_NUMBER: usize = 12;

/// How many pairs of rounds follow the first one.
pub(super) const PAIRS_LEFT: usize = 9;

/// The state in the beginning: a register for each word, of which the first eight lanes are for one block of each
/// message, and the others for the block after it.
pub(super) struct KeyStream {
    first: [__m512i; 16],
    /// The state after the first round of columns. The first column of it is not mixed yet, because it alone depends on
    /// the number of the block.
    mixed: [__m512i; 16],
}

/// Blocks that are being made: two of each message.
pub(super) struct Rounds<'a> {
    first: &'a [__m512i; 16],
    number: __m512i,
    v: [__m512i; 16],
}

/// Adds, mixes and turns in four columns or diagonals of the state at once.
macro_rules! quarter_rounds {
    ($v:ident, $([$a:literal $b:literal $c:literal $d:literal])*) => {
        $($v[$a] = _mm512_add_epi32($v[$a], $v[$b]);)*
        $($v[$d] = _mm512_rol_epi32::<16>(_mm512_xor_si512($v[$d], $v[$a]));)*
        $($v[$c] = _mm512_add_epi32($v[$c], $v[$d]);)*
        $($v[$b] = _mm512_rol_epi32::<12>(_mm512_xor_si512($v[$b], $v[$c]));)*
        $($v[$a] = _mm512_add_epi32($v[$a], $v[$b]);)*
        $($v[$d] = _mm512_rol_epi32::<8>(_mm512_xor_si512($v[$d], $v[$a]));)*
        $($v[$c] = _mm512_add_epi32($v[$c], $v[$d]);)*
        $($v[$b] = _mm512_rol_epi32::<7>(_mm512_xor_si512($v[$b], $v[$c]));)*
    };
}

impl KeyStream {
    /// The key stream of messages by a key and their numbers.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(key: &[u32; 8], numbers: &[u64; LANES]) -> Self {
        let mut first = [_mm512_setzero_si512(); 16];
        for (word, number) in first.iter_mut().zip(CONSTANTS.iter().chain(key)) {
            *word = _mm512_set1_epi32(number.cast_signed());
        }
        let [a, b, c, d, e, f, g, h] = numbers.map(u64::cast_signed);
        let numbers = _mm512_setr_epi64(a, b, c, d, e, f, g, h);
        let twice = |half| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half), half);
        first[14] = twice(_mm512_cvtepi64_epi32(numbers));
        first[15] = twice(_mm512_cvtepi64_epi32(_mm512_srli_epi64::<32>(numbers)));
        let mut mixed = first;
        quarter_rounds!(mixed, [1 5 9 13] [2 6 10 14] [3 7 11 15]);
        Self { first, mixed }
    }

    /// The first eight words of the first block, which are the key of Poly1305, and the second block.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn first(&self) -> ([__m256i; 8], [__m512i; LANES]) {
        let words = self.begun(0).through().words();
        let mut keys = [_mm256_setzero_si256(); 8];
        for (key, word) in keys.iter_mut().zip(words) {
            *key = _mm512_castsi512_si256(word);
        }
        let [_, second] = transposed(&words);
        (keys, second)
    }

    /// A block of each message, and the one after it.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn blocks(&self, number: u32) -> [[__m512i; LANES]; 2] {
        self.begun(number).through().blocks()
    }

    /// The same, after the first pair of ten pairs of rounds.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn begun(&self, number: u32) -> Rounds<'_> {
        let number = _mm512_set1_epi32(number.cast_signed());
        let number = _mm512_mask_add_epi32(number, 0xff00, number, _mm512_set1_epi32(1));
        let mut v = self.mixed;
        v[BLOCK_NUMBER] = number;
        quarter_rounds!(v, [0 4 8 12]);
        quarter_rounds!(v, [0 5 10 15] [1 6 11 12] [2 7 8 13] [3 4 9 14]);
        Rounds { first: &self.first, number, v }
    }
}

impl Rounds<'_> {
    /// The first round of a pair.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn columns(&mut self) {
        let v = &mut self.v;
        quarter_rounds!(v, [0 4 8 12] [1 5 9 13] [2 6 10 14] [3 7 11 15]);
    }

    /// The second round of a pair.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn diagonals(&mut self) {
        let v = &mut self.v;
        quarter_rounds!(v, [0 5 10 15] [1 6 11 12] [2 7 8 13] [3 4 9 14]);
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn through(mut self) -> Self {
        for _ in 0..PAIRS_LEFT {
            self.columns();
            self.diagonals();
        }
        self
    }

    /// The blocks, after [`PAIRS_LEFT`] pairs of rounds.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn blocks(self) -> [[__m512i; LANES]; 2] {
        transposed(&self.words())
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn words(mut self) -> [__m512i; 16] {
        for (word, first) in self.v.iter_mut().zip(self.first) {
            *word = _mm512_add_epi32(*word, *first);
        }
        // Of the first state, this word alone is another one in each block.
        self.v[BLOCK_NUMBER] = _mm512_add_epi32(self.v[BLOCK_NUMBER], self.number);
        self.v
    }
}

/// From a register for each word to a register for each block.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(words: &[__m512i; 16]) -> [[__m512i; LANES]; 2] {
    let mut quads = [_mm512_setzero_si512(); 16];
    for row in 0..4 {
        let [a, b, c, d] = [words[4 * row], words[4 * row + 1], words[4 * row + 2], words[4 * row + 3]];
        let [ab, cd] = [_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d)];
        let [ab_high, cd_high] = [_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d)];
        // Of the blocks 0, 4, 8 and 12; of 1, 5, 9 and 13; and so on: four words next to each other.
        quads[row] = _mm512_unpacklo_epi64(ab, cd);
        quads[4 + row] = _mm512_unpackhi_epi64(ab, cd);
        quads[8 + row] = _mm512_unpacklo_epi64(ab_high, cd_high);
        quads[12 + row] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    let mut blocks = [[_mm512_setzero_si512(); LANES]; 2];
    for column in 0..4 {
        let [a, b, c, d] =
            [quads[4 * column], quads[4 * column + 1], quads[4 * column + 2], quads[4 * column + 3]];
        let [ab, cd] = [_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d)];
        let [ab_high, cd_high] = [_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d)];
        blocks[0][column] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        blocks[0][4 + column] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        blocks[1][column] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
        blocks[1][4 + column] = _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high);
    }
    blocks
}
