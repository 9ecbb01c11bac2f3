//! Which registers a rule uses is its encoder's choice: nft up to 1.0 begins a value of more than four
//! bytes at a multiple of sixteen, newer ones do not. Rules that differ in nothing else do the same.
//!
//! Pure: from libnftnl's description of a rule to one that does not tell.

use std::collections::BTreeSet;

/// Registers of four bytes in one of sixteen, which has a number of its own (`NFT_REG_1` to `NFT_REG_4`,
/// `NFT_REG32_00` and so on, `include/uapi/linux/netfilter/nf_tables.h`).
const SMALL_IN_LARGE: u32 = 4;
const FIRST_SMALL: u32 = 8;

/// The place of a register among those of four bytes.
const fn slot(register: u32) -> u32 {
    match register {
        1..=4 => (register - 1) * SMALL_IN_LARGE,
        _ => register.saturating_sub(FIRST_SMALL),
    }
}

/// A description in which no register is left out for the sake of where the next one begins.
pub(super) fn packed(description: &str) -> String {
    let slots: BTreeSet<u32> = registers(description)
        .map(|(_, number)| slot(number))
        .collect();
    let mut left_out = 0;
    let mut last: Option<u32> = None;
    let places: Vec<(u32, u32)> = slots
        .into_iter()
        .map(|slot| {
            let gap = last.map_or(0, |last| slot - last);
            if slot % SMALL_IN_LARGE == 0 && (1..SMALL_IN_LARGE).contains(&gap) {
                left_out += gap - 1;
            }
            last = Some(slot);
            (slot, slot - left_out)
        })
        .collect();
    let mut out = String::with_capacity(description.len());
    let mut done = 0;
    for (at, number) in registers(description) {
        let slot = slot(number);
        let place = places.iter().find(|(known, _)| *known == slot);
        out.push_str(description.get(done..at).unwrap_or_default());
        out.push_str(&place.map_or(slot, |(_, place)| *place).to_string());
        done = at + digits(description.get(at..).unwrap_or_default()).len();
    }
    out.push_str(description.get(done..).unwrap_or_default());
    out
}

/// Where registers are named, and their numbers: a word with `reg` in it, a space, a number.
fn registers(description: &str) -> impl Iterator<Item = (usize, u32)> {
    description.match_indices("reg").filter_map(|(at, _)| {
        let rest = description.get(at..)?;
        let word = rest.find(|c: char| !c.is_ascii_alphabetic() && c != '_')?;
        let number = rest.get(word..)?.strip_prefix(' ')?;
        Some((at + word + 1, digits(number).parse().ok()?))
    })
}

fn digits(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_digit());
    text.get(..end.unwrap_or(text.len())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_differ_in_their_registers_only_are_described_alike() {
        let cases = [
            // The key is hashed from values that begin at a multiple of sixteen bytes, or do not.
            (
                "[ hash reg 1 = jhash(reg 2, 16) ] [ hash reg 9 = jhash(reg 3, 24) ] [ dynset update reg_key 1 set a sreg_data 2 ]",
                "[ hash reg 1 = jhash(reg 10, 16) ] [ hash reg 9 = jhash(reg 14, 24) ] [ dynset update reg_key 1 set a sreg_data 10 ]",
                true,
            ),
            // A value of eight bytes instead of two of four.
            (
                "[ payload load 4b => reg 1 ] [ payload load 2b => reg 9 ]",
                "[ payload load 4b => reg 1 ] [ payload load 2b => reg 10 ]",
                false,
            ),
            ("[ cmp eq reg 1 0x8 ]", "[ cmp eq reg 1 0x9 ]", false),
            ("[ lookup reg 1 set x ]", "[ lookup reg 1 set y ]", false),
        ];
        for (one, other, alike) in cases {
            assert_eq!(packed(one) == packed(other), alike, "{one} and {other}");
        }
        assert_eq!(packed("no register"), "no register");
        assert_eq!(packed("reg "), "reg ");
    }
}
