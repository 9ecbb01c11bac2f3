//! In which form the API server answers.
//!
//! Protobuf costs both ends a fraction of what JSON does. What a server cannot say in it, it says in JSON.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::unreadable::Unreadable;

/// A form of objects that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
    /// `application/json`.
    Json,
}

impl Format {
    /// All of them, the best first.
    pub const ALL: [Self; 2] = [Self::Protobuf, Self::Json];

    /// Its media type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
            Self::Json => "application/json",
        }
    }

    /// The format of a media type, whatever its parameters.
    #[must_use]
    pub fn named(text: &str) -> Option<Self> {
        let essence = text.split(';').next().unwrap_or_default().trim();
        let mut all = Self::ALL.into_iter();
        all.find(|format| essence.eq_ignore_ascii_case(format.name()))
    }

    /// The formats among media types, in their order, and the types that are none. `*/*` stands for all. Never
    /// returns no format: without any, all are taken.
    #[must_use]
    pub fn among(types: &[String]) -> (Vec<Self>, Vec<&str>) {
        let mut formats = Vec::new();
        let mut others = Vec::new();
        let mut add = |format| {
            if !formats.contains(&format) {
                formats.push(format);
            }
        };
        for text in types.iter().map(|text| text.trim()) {
            match (Self::named(text), text) {
                (Some(format), _) => add(format),
                (None, "") => {}
                (None, text) if text.starts_with("*/*") => Self::ALL.into_iter().for_each(&mut add),
                (None, text) => others.push(text),
            }
        }
        if formats.is_empty() {
            formats.extend(Self::ALL);
        }
        (formats, others)
    }

    /// The format of an answer. One that does not say it is taken for JSON.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Unreadable> {
        let Some(value) = headers.get(CONTENT_TYPE) else {
            return Ok(Self::Json);
        };
        let text = String::from_utf8_lossy(value.as_bytes());
        Self::named(&text).ok_or_else(|| Unreadable::Format(text.into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_asked_for_in_the_order_that_was_given_and_others_are_named() {
        use Format::{Json, Protobuf};
        let cases: [(&str, &[Format], &[&str]); 7] = [
            (
                "application/vnd.kubernetes.protobuf,*/*",
                &[Protobuf, Json],
                &[],
            ),
            ("application/json", &[Json], &[]),
            ("application/json,*/*", &[Json, Protobuf], &[]),
            (
                "Application/JSON;q=0.9, application/vnd.kubernetes.protobuf;q=0.1",
                &[Json, Protobuf],
                &[],
            ),
            (
                "application/cbor,application/json",
                &[Json],
                &["application/cbor"],
            ),
            ("application/yaml", &[Protobuf, Json], &["application/yaml"]),
            ("", &[Protobuf, Json], &[]),
        ];
        for (text, formats, others) in cases {
            let types: Vec<String> = text.split(',').map(str::to_owned).collect();
            let found = Format::among(&types);
            assert_eq!(found, (formats.to_vec(), others.to_vec()), "{text}");
        }
    }

    #[test]
    fn what_is_neither_protobuf_nor_json_is_no_answer_of_an_api_server() {
        let of = |text: &'static str| {
            let value = http::HeaderValue::from_static(text);
            Format::of(&HeaderMap::from_iter([(CONTENT_TYPE, value)]))
        };
        let watch = "application/vnd.kubernetes.protobuf;stream=watch";
        assert!(matches!(of(watch), Ok(Format::Protobuf)));
        assert!(matches!(of("application/json"), Ok(Format::Json)));
        assert!(matches!(Format::of(&HeaderMap::new()), Ok(Format::Json)));
        let said = of("text/html; charset=utf-8").map_err(|error| error.to_string());
        assert!(said.is_err_and(|said| said.contains("text/html") && said.contains("check")));
    }
}
