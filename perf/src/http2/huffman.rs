//! HPACK's Huffman code (RFC 7541, appendix B).
//!
//! The code is canonical: codes of one length are consecutive numbers in the order of their symbols, and follow those
//! of the next shorter length. So the lengths say it all. Decoding goes bit by bit, which is slow and does not matter:
//! a connection's header blocks are decoded once and then recognised by their bytes.

use std::sync::LazyLock;

/// The length of each byte's code.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26,
];

const LENGTH_MAX: usize = 30;

/// Padding is the start of this symbol's code, all ones; the symbol itself never comes.
const END: u16 = 256;

/// The canonical code, by length.
struct Code {
    /// The first code of each length, its index among `symbols`, and how many there are.
    levels: [(u32, usize, u32); LENGTH_MAX + 1],
    symbols: Vec<u16>,
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let all: Vec<(usize, u16)> =
        LENGTHS.iter().map(|&length| usize::from(length)).chain([LENGTH_MAX]).zip(0..).collect();
    let mut levels = [(0, 0, 0); LENGTH_MAX + 1];
    let (mut code, mut symbols) = (0u32, Vec::with_capacity(all.len()));
    for (length, level) in levels.iter_mut().enumerate() {
        code <<= 1;
        let first = symbols.len();
        symbols.extend(all.iter().filter(|(of, _)| *of == length).map(|(_, symbol)| *symbol));
        let count = (symbols.len() - first) as u32;
        *level = (code, first, count);
        code += count;
    }
    Code { levels, symbols }
});

/// Decodes a string. `None`: no valid code, or padding that is not the start of the end symbol.
pub fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut length) = (0u32, 0usize);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |shift| u32::from(byte >> shift & 1))) {
        code = code << 1 | bit;
        length += 1;
        let (first, start, count) = *CODE.levels.get(length)?;
        if let Some(at) = code.checked_sub(first).filter(|at| *at < count) {
            match *CODE.symbols.get(start + at as usize)? {
                END => return None,
                symbol => out.push(symbol as u8),
            }
            (code, length) = (0, 0);
        }
    }
    let padding_is_ones = length < 8 && code == (1 << length) - 1;
    padding_is_ones.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfc_decode() {
        let www = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode(&www).unwrap(), b"www.example.com");
        assert_eq!(decode(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(), b"no-cache");
        assert_eq!(decode(&[0x64, 0x02]).unwrap(), b"302");
        assert_eq!(decode(&[]).unwrap(), b"");
    }

    #[test]
    fn bad_padding_and_the_end_symbol_are_refused() {
        assert_eq!(decode(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbe]), None, "padding with a zero");
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), None, "the end symbol");
        assert_eq!(decode(&[0x64, 0x02, 0xff]), None, "a whole byte of padding");
    }
}
