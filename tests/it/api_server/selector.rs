//! What a request's query says.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Request;

/// Which objects are meant: as much of selectors as a proxy needs.
pub(super) struct Selector {
    without_labels: Vec<String>,
    fields: Vec<(String, bool, String)>,
}

impl Selector {
    pub(super) fn of(request: &Request) -> Result<Self, ()> {
        let parts = |name: &str| {
            let text = request.asks(name).unwrap_or_default();
            let parts: Vec<String> = text.split(',').map(str::to_owned).collect();
            parts.into_iter().filter(|part| !part.is_empty())
        };
        let without_labels = parts("labelSelector")
            .map(|part| part.strip_prefix('!').map(str::to_owned).ok_or(()))
            .collect::<Result<_, _>>()?;
        let fields = parts("fieldSelector")
            .map(|part| {
                let (field, value) = part.split_once('=').ok_or(())?;
                let (field, equal) = match field.strip_suffix('!') {
                    Some(field) => (field, false),
                    None => (field, true),
                };
                let known = ["metadata.name", "spec.clusterIP"].contains(&field);
                known
                    .then(|| (field.to_owned(), equal, value.to_owned()))
                    .ok_or(())
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            without_labels,
            fields,
        })
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let labelled = |label: &String| object["metadata"]["labels"].get(label).is_some();
        !self.without_labels.iter().any(labelled)
            && self.fields.iter().all(|(field, equal, value)| {
                let pointer = format!("/{}", field.replace('.', "/"));
                let found = object.pointer(&pointer).and_then(Value::as_str);
                (found.unwrap_or_default() == value) == *equal
            })
    }
}

pub(super) fn query(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| digit.unwrap_or(b'0'));
                let digits = std::str::from_utf8(&digits).unwrap_or("00");
                u8::from_str_radix(digits, 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
