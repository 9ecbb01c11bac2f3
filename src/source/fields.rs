//! Fields of protobuf as objects have them of which a cluster has thousands: read and written as `prost` does it, but
//! that a short text takes no memory beside the object's.

use compact_str::CompactString;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{
    DecodeContext, WireType, bytes, decode_varint, encode_key, encode_varint, encoded_len_varint,
    int64, key_len, message as nested, skip_field, string,
};
use prost::{DecodeError, Message};

/// What a field of an object is.
pub(super) trait Field {
    /// Takes what has been written of it.
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError>;

    /// Writes it.
    fn encode(&self, tag: u32, buffer: &mut impl BufMut);

    /// How many bytes that takes.
    fn encoded_len(&self, tag: u32) -> usize;
}

/// An object within an object.
pub(super) trait Part: Message + Default {}

/// Makes messages of structs, by the number and the name of each of their fields.
macro_rules! messages {
    ($($type:ident { $($tag:literal: $field:ident,)* })*) => {$(
        impl $crate::source::fields::Part for $type {}

        impl ::prost::Message for $type {
            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: ::prost::encoding::WireType,
                buffer: &mut impl ::prost::bytes::Buf,
                context: ::prost::encoding::DecodeContext,
            ) -> Result<(), ::prost::DecodeError> {
                use $crate::source::fields::Field;
                let (merged, field) = match tag {
                    $($tag => (Field::merge(&mut self.$field, wire_type, buffer, context), stringify!($field)),)*
                    _ => return ::prost::encoding::skip_field(wire_type, tag, buffer, context),
                };
                merged.map_err(|mut error| {
                    error.push(stringify!($type), field);
                    error
                })
            }

            fn encode_raw(&self, buffer: &mut impl ::prost::bytes::BufMut) {
                use $crate::source::fields::Field;
                $(Field::encode(&self.$field, $tag, buffer);)*
            }

            fn encoded_len(&self) -> usize {
                use $crate::source::fields::Field;
                0 $(+ Field::encoded_len(&self.$field, $tag))*
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    )*};
}
pub(super) use messages;

/// What is made of a text where it lies.
pub(super) fn text<T>(
    wire_type: WireType,
    buffer: &mut impl Buf,
    context: DecodeContext,
    make: impl FnOnce(&str) -> T,
) -> Result<T, DecodeError> {
    let piece = in_one_piece(wire_type, buffer.chunk());
    if let Some(text) = piece.and_then(|bytes| std::str::from_utf8(bytes).ok()) {
        let made = make(text);
        skip_field(wire_type, 1, buffer, context)?;
        return Ok(made);
    }
    // It lies in pieces, or this says what is wrong with it.
    let mut text = String::new();
    string::merge(wire_type, &mut text, buffer, context)?;
    Ok(make(&text))
}

/// A text, whatever is stored where one should be.
pub(super) fn lossy_text(
    wire_type: WireType,
    buffer: &mut impl Buf,
    context: DecodeContext,
) -> Result<CompactString, DecodeError> {
    if let Some(bytes) = in_one_piece(wire_type, buffer.chunk()) {
        let text = CompactString::from_utf8_lossy(bytes);
        skip_field(wire_type, 1, buffer, context)?;
        return Ok(text);
    }
    let mut value = Vec::new();
    bytes::merge(wire_type, &mut value, buffer, context)?;
    Ok(CompactString::from_utf8_lossy(&value))
}

fn in_one_piece(wire_type: WireType, mut rest: &[u8]) -> Option<&[u8]> {
    if wire_type != WireType::LengthDelimited {
        return None;
    }
    let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    rest.get(..length)
}

/// Writes a text.
pub(super) fn encode_text(tag: u32, text: &str, buffer: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(text.len() as u64, buffer);
    buffer.put_slice(text.as_bytes());
}

/// How many bytes that takes.
pub(super) fn encoded_text_len(tag: u32, text: &str) -> usize {
    key_len(tag) + encoded_len_varint(text.len() as u64) + text.len()
}

/// An empty one is absent.
impl Field for CompactString {
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        *self = text(wire_type, buffer, context, |text| Self::new(text))?;
        Ok(())
    }

    fn encode(&self, tag: u32, buffer: &mut impl BufMut) {
        if !self.is_empty() {
            encode_text(tag, self, buffer);
        }
    }

    fn encoded_len(&self, tag: u32) -> usize {
        match self.as_str() {
            "" => 0,
            text => encoded_text_len(tag, text),
        }
    }
}

impl Field for Option<CompactString> {
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        Field::merge(self.get_or_insert_default(), wire_type, buffer, context)
    }

    fn encode(&self, tag: u32, buffer: &mut impl BufMut) {
        if let Some(text) = self {
            encode_text(tag, text, buffer);
        }
    }

    fn encoded_len(&self, tag: u32) -> usize {
        self.as_ref().map_or(0, |text| encoded_text_len(tag, text))
    }
}

impl Field for Vec<CompactString> {
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.push(text(wire_type, buffer, context, |text| {
            CompactString::new(text)
        })?);
        Ok(())
    }

    fn encode(&self, tag: u32, buffer: &mut impl BufMut) {
        for text in self {
            encode_text(tag, text, buffer);
        }
    }

    fn encoded_len(&self, tag: u32) -> usize {
        self.iter().map(|text| encoded_text_len(tag, text)).sum()
    }
}

impl Field for Option<i64> {
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        int64::merge(wire_type, self.get_or_insert_default(), buffer, context)
    }

    fn encode(&self, tag: u32, buffer: &mut impl BufMut) {
        if let Some(number) = self {
            int64::encode(tag, number, buffer);
        }
    }

    fn encoded_len(&self, tag: u32) -> usize {
        self.as_ref()
            .map_or(0, |number| int64::encoded_len(tag, number))
    }
}

/// It is always there.
impl<T: Part> Field for T {
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        nested::merge(wire_type, self, buffer, context)
    }

    fn encode(&self, tag: u32, buffer: &mut impl BufMut) {
        nested::encode(tag, self, buffer);
    }

    fn encoded_len(&self, tag: u32) -> usize {
        nested::encoded_len(tag, self)
    }
}

impl<T: Part> Field for Option<T> {
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        nested::merge(wire_type, self.get_or_insert_default(), buffer, context)
    }

    fn encode(&self, tag: u32, buffer: &mut impl BufMut) {
        if let Some(part) = self {
            nested::encode(tag, part, buffer);
        }
    }

    fn encoded_len(&self, tag: u32) -> usize {
        self.as_ref()
            .map_or(0, |part| nested::encoded_len(tag, part))
    }
}

impl<T: Part> Field for Vec<T> {
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        nested::merge_repeated(wire_type, self, buffer, context)
    }

    fn encode(&self, tag: u32, buffer: &mut impl BufMut) {
        nested::encode_repeated(tag, self, buffer);
    }

    fn encoded_len(&self, tag: u32) -> usize {
        nested::encoded_len_repeated(tag, self)
    }
}
