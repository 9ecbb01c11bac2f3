//! Netlink attributes: type, length, value (`include/uapi/linux/netlink.h`).
//!
//! Only bytes live here: no attribute's meaning, no unsafe code.

/// Bytes of an attribute's header.
pub(crate) const HEADER: usize = 4;
/// The bit that marks an attribute as made of attributes.
const NESTED: u16 = 1 << 15;
/// The bits of the type that say what the value is made of.
const TYPE_MASK: u16 = 0x3fff;

/// Appends a string attribute with its final NUL.
pub(crate) fn put_string(out: &mut Vec<u8>, kind: u16, text: &str) {
    put_header(out, kind, text.len() + 1);
    out.extend_from_slice(text.as_bytes());
    out.push(0);
    align(out);
}

/// Appends an attribute of bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, kind: u16, bytes: &[u8]) {
    put_header(out, kind, bytes.len());
    out.extend_from_slice(bytes);
    align(out);
}

/// Appends a 32-bit attribute in network byte order, as nf_tables wants all its numbers.
pub(crate) fn put_u32(out: &mut Vec<u8>, kind: u16, value: u32) {
    put_bytes(out, kind, &value.to_be_bytes());
}

fn put_header(out: &mut Vec<u8>, kind: u16, payload: usize) {
    // Callers keep attributes below 64 KiB; a longer one would be refused by the kernel.
    let length = u16::try_from(HEADER + payload).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
}

fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Opens a nested attribute; give the result to [`end_nest`].
pub(crate) fn begin_nest(out: &mut Vec<u8>, kind: u16) -> usize {
    let start = out.len();
    put_header(out, kind | NESTED, 0);
    start
}

/// Closes a nested attribute.
pub(crate) fn end_nest(out: &mut [u8], start: usize) {
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

/// Walks attributes. Stops at the first that is cut short.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?);
        let value = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind & TYPE_MASK, value))
    }
}

/// The first attribute of a kind.
pub(crate) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes(attributes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// A 32-bit number in network byte order.
pub(crate) fn be_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A string without its final NUL.
pub(crate) fn string(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut out = Vec::new();
        put_string(&mut out, 1, "abc");
        let nest = begin_nest(&mut out, 2);
        put_u32(&mut out, 3, 7);
        put_bytes(&mut out, 4, &[9, 8, 7, 6, 5]);
        end_nest(&mut out, nest);
        assert_eq!(out.len() % 4, 0);
        let outer: Vec<_> = Attributes(&out).collect();
        assert_eq!(outer.len(), 2);
        assert_eq!(string(outer[0].1), Some("abc"));
        assert_eq!(find(outer[1].1, 3).and_then(be_u32), Some(7));
        assert_eq!(find(outer[1].1, 4), Some(&[9, 8, 7, 6, 5][..]));
    }

    #[test]
    fn an_attribute_cut_short_ends_the_walk() {
        for bytes in [
            &[1, 2][..],
            &[8, 0, 1, 0, 1][..],
            &[3, 0, 1, 0][..],
            &[0, 0, 0, 0][..],
        ] {
            assert_eq!(Attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
