//! The objects in a text of YAML or JSON, one at a time: a List of a cluster is larger in memory than
//! the cluster.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What aliases may expand to, in bytes, whatever a text says.
const MOST_EXPANDED: usize = 64 << 20;
/// How often each may be used at least.
const LEAST_EXPANSIONS: usize = 16;

/// A text that is no YAML or JSON.
#[derive(Debug)]
pub(super) struct Broken {
    /// From 1; 0 if it is not known.
    pub(super) line: usize,
    pub(super) reason: String,
}

/// Hears of each object, and of which kind it is if it does not say so itself but the list does that it is
/// in.
pub(super) type Each<'a> = &'a mut dyn FnMut(&Value, &str);

/// Calls `each` with every object of a text. Returns whether there was a document.
pub(super) fn read(text: &str, is_json: bool, each: Each<'_>) -> Result<bool, Broken> {
    if is_json || text.trim_start().starts_with(['{', '[']) {
        return read_json(text, each);
    }
    let mut any = false;
    for (line, document) in documents(text) {
        if document.lines().all(is_empty) {
            continue;
        }
        any = true;
        let most = (MOST_EXPANDED / text.len().max(1)).max(LEAST_EXPANSIONS);
        // The budgets guard against hostile input; a manifest is the operator's own, and a large
        // cluster's is larger than any of them.
        let options = serde_saphyr::options! {
            budget: None,
            with_snippet: false,
            alias_limits: serde_saphyr::alias_limits! { max_alias_expansions_per_anchor: most },
        };
        let read = |deserializer: serde_saphyr::Deserializer<'_, '_>| {
            Objects { each: &mut *each }.deserialize(deserializer)
        };
        serde_saphyr::with_deserializer_from_str_with_options(document, options, read).map_err(
            |error| {
                let here = error
                    .location()
                    .and_then(|location| usize::try_from(location.line()).ok());
                let reason = error.to_string();
                Broken {
                    line: here.map_or(0, |here| here + line),
                    reason: reason.lines().next().unwrap_or_default().to_owned(),
                }
            },
        )?;
    }
    Ok(any)
}

fn read_json(text: &str, each: Each<'_>) -> Result<bool, Broken> {
    let mut any = false;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let broken = |error: serde_json::Error| Broken {
        line: error.line(),
        reason: error.to_string(),
    };
    loop {
        // One after the other, with blanks between them.
        if deserializer.end().is_ok() {
            return Ok(any);
        }
        any = true;
        let objects = Objects { each: &mut *each };
        objects.deserialize(&mut deserializer).map_err(broken)?;
    }
}

/// The documents of a YAML text, and how many lines are before each. A line of `---` begins one, and one of
/// `...` ends it, wherever they stand (YAML 1.2, 9.1.2 and 6.9, `c-forbidden`); directives belong to what
/// follows them.
fn documents(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = Some((0, text));
    std::iter::from_fn(move || {
        let (before, text) = rest?;
        let (mut at, mut lines, mut begun) = (0, 0, false);
        let mut ended = false;
        for line in text.split_inclusive('\n') {
            if ended || (begun && is_marker(line, "---")) {
                rest = Some((before + lines, text.get(at..)?));
                return Some((before, text.get(..at)?));
            }
            ended = begun && is_marker(line, "...");
            begun |= is_marker(line, "---") || !(is_empty(line) || line.starts_with('%'));
            at += line.len();
            lines += 1;
        }
        rest = None;
        Some((before, text))
    })
}

fn is_marker(line: &str, marker: &str) -> bool {
    let rest = line.strip_prefix(marker);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether a line says nothing.
fn is_empty(line: &str) -> bool {
    let text = line.trim();
    text.is_empty() || text.starts_with(['#', '%']) || text == "---" || text == "..."
}

/// Reads a value, and hands out the objects in it.
struct Objects<'a> {
    each: Each<'a>,
}

impl<'de> DeserializeSeed<'de> for Objects<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Ignores what is no object.
macro_rules! ignore_scalars {
    () => {
        ignore_scalars! {
            visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str),
            visit_unit(), visit_none(),
        }
    };
    ($($visit:ident($($kind:ty)?),)*) => {
        $(fn $visit<E>(self $(, _: $kind)?) -> Result<(), E> { Ok(()) })*
    };
}

impl<'de> Visitor<'de> for Objects<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Kubernetes objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items
            .next_element_seed(Objects {
                each: &mut *self.each,
            })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut object = Map::new();
        let mut without_kind = Vec::new();
        let mut is_list = false;
        while let Some(name) = fields.next_key::<String>()? {
            if name != "items" {
                object.insert(name, fields.next_value()?);
                continue;
            }
            is_list = true;
            let kind = item_kind(&object);
            fields.next_value_seed(Items {
                kind,
                without_kind: &mut without_kind,
                each: &mut *self.each,
            })?;
        }
        if is_list {
            let kind = item_kind(&object).unwrap_or_default();
            for item in &without_kind {
                (self.each)(item, &kind);
            }
        } else {
            (self.each)(&Value::Object(object), "");
        }
        Ok(())
    }

    ignore_scalars! {}
}

/// The kind of a list's items, as far as the list says it.
fn item_kind(list: &Map<String, Value>) -> Option<String> {
    let kind = list.get("kind")?.as_str()?;
    kind.strip_suffix("List").map(str::to_owned)
}

/// The items of a list.
struct Items<'a> {
    /// Their kind, if it is known.
    kind: Option<String>,
    /// Those whose kind only what follows can tell.
    without_kind: &'a mut Vec<Value>,
    each: Each<'a>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the items of a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<Value>()? {
            match &self.kind {
                Some(kind) => (self.each)(&item, kind),
                None if item.get("kind").is_some() => (self.each)(&item, ""),
                None => self.without_kind.push(item),
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }

    ignore_scalars! {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, Broken> {
        let mut names = Vec::new();
        read(text, false, &mut |object, kind| {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
            let kind = text("/kind").unwrap_or(kind);
            names.push(format!("{kind} {}", text("/metadata/name").unwrap_or("?")));
        })?;
        Ok(names)
    }

    #[test]
    fn every_object_is_heard_of_once_with_its_kind() {
        let cases: [(&str, &str, &[&str]); 10] = [
            ("nothing", "", &[]),
            ("a comment", "# nothing\n---\n", &[]),
            ("a scalar", "just words", &[]),
            (
                "documents, with a marker inside a block that ends it",
                "kind: A\nmetadata: {name: a}\n--- # and\nkind: B\nmetadata:\n  name: b\n...\n---\n",
                &["A a", "B b"],
            ),
            (
                "directives, which belong to what follows",
                "%YAML 1.2\n---\nkind: A\n...\n%YAML 1.2\n---\nkind: B\n",
                &["A ?", "B ?"],
            ),
            (
                "documents that end without another that begins",
                "kind: A\n...\nkind: B\n...\n",
                &["A ?", "B ?"],
            ),
            (
                "what looks like a marker and is none",
                "kind: A\nmetadata:\n  name: |-\n    ---\n",
                &["A ---"],
            ),
            (
                "a list whose kind comes after its items",
                r#"{"items": [{"metadata": {"name": "a"}}, {"kind": "B", "metadata": {"name": "b"}}], "kind": "AList"}"#,
                &["B b", "A a"],
            ),
            (
                "lists within lists, and items that are no list",
                r#"[{"kind": "A"}, [{"kind": "B"}]] {"kind": "CList", "items": 7}"#,
                &["A ?", "B ?"],
            ),
            (
                "an alias",
                "kind: A\nmetadata: &m {name: a}\n---\nkind: AList\nitems:\n- &i {metadata: {name: b}}\n- *i\n",
                &["A a", "A b", "A b"],
            ),
        ];
        for (what, text, expected) in cases {
            assert_eq!(names(text).expect(what), expected, "{what}");
        }
    }

    #[test]
    fn the_line_of_a_mistake_counts_from_the_beginning_of_the_file() {
        let error = names("kind: A\n---\nkind: B\n---\nkind: [\n").unwrap_err();
        assert!((5..=6).contains(&error.line), "{error:?}");
        assert_eq!(names("{\"a\": 1}\n{\"b\": }").unwrap_err().line, 2);
    }

    #[test]
    fn an_alias_is_not_expanded_without_bound() {
        let long = "x".repeat(1 << 20);
        let uses = "- *a\n".repeat(3000);
        let text = format!("kind: A\nlong: &a {long}\nuses:\n{uses}");
        assert!(names(&text).is_err());
        // In proportion to the file people may use as many as they like.
        let text = format!("kind: A\nshort: &a x\nuses:\n{uses}");
        assert_eq!(names(&text).unwrap(), ["A ?"]);
    }
}
