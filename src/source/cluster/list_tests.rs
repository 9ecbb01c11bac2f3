//! Lists in pieces, whole and broken; their bytes are another author's.

use std::io::Write;

use k8s_pb::api::core::v1 as core;
use k8s_pb::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_pb::apimachinery::pkg::runtime;
use proptest::prelude::*;

use super::*;
use crate::source::objects::Service;

fn service(name: &str) -> core::Service {
    core::Service {
        metadata: Some(meta::ObjectMeta {
            name: Some(name.to_owned()),
            generation: Some(-1),
            annotations: [("pointsman.io/algorithm".to_owned(), "note".to_owned())].into(),
            ..meta::ObjectMeta::default()
        }),
        spec: Some(core::ServiceSpec {
            publish_not_ready_addresses: Some(true),
            ..core::ServiceSpec::default()
        }),
        status: None,
    }
}

fn list(kind: &str, names: &[&str]) -> Vec<u8> {
    let list = core::ServiceList {
        metadata: Some(meta::ListMeta {
            resource_version: Some("17".to_owned()),
            r#continue: Some("more".to_owned()),
            remaining_item_count: Some(300),
            ..meta::ListMeta::default()
        }),
        items: names.iter().map(|name| service(name)).collect(),
    };
    let object = runtime::Unknown {
        type_meta: Some(runtime::TypeMeta {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
        }),
        raw: Some(list.encode_to_vec()),
        content_encoding: Some(String::new()),
        content_type: Some(String::new()),
    };
    [MAGIC.as_slice(), &object.encode_to_vec()].concat()
}

/// The names of the objects, and what the list says of itself.
fn read(format: Format, bytes: &[u8], piece: usize) -> Result<(Vec<String>, String), Unreadable> {
    let mut listing = List::<Service>::new(format, false);
    let mut names = Vec::new();
    for piece in bytes.chunks(piece) {
        listing.push(piece)?;
        while let Some(object) = listing.next()? {
            names.push(object.metadata.name.to_string());
        }
    }
    let (metadata, rest) = listing.end()?;
    names.extend(
        rest.into_iter()
            .map(|object| object.metadata.name.to_string()),
    );
    let told = format!("{} {}", metadata.resource_version, metadata.r#continue);
    Ok((names, told))
}

#[test]
fn objects_come_one_by_one_wherever_pieces_end() {
    let long = "x".repeat(300);
    let bytes = list("ServiceList", &["a", &long, "b"]);
    for piece in 1..bytes.len() {
        let (names, told) = read(Format::Protobuf, &bytes, piece).unwrap();
        assert_eq!(names, ["a", &long, "b"], "{piece}");
        assert_eq!(told, "17 more");
    }
}

#[test]
fn a_list_that_ends_early_is_no_shorter_list() {
    let bytes = list("ServiceList", &["a", "b", "c"]);
    // What is left out at the end is nothing that is read.
    let needed = bytes.len() - 4;
    for length in 0..needed {
        assert!(
            read(Format::Protobuf, &bytes[..length], 7).is_err(),
            "{length}"
        );
    }
    let json = br#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
    assert!(read(Format::Json, json, 7).is_ok());
    for length in 0..json.len() {
        assert!(read(Format::Json, &json[..length], 7).is_err(), "{length}");
    }
}

#[test]
fn what_is_no_list_of_the_kind_is_not_taken_for_an_empty_one() {
    let cases: [(Format, &[u8]); 14] = [
        (Format::Json, br#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#),
        (Format::Json, br#"{"kind":"ServiceList","apiVersion":"x/v9","metadata":{"resourceVersion":"1"},"items":[]}"#),
        (Format::Json, br#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"1"}}"#),
        (Format::Json, br#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"a"},"items":[]}"#),
        (Format::Json, br#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[{}]}"#),
        (Format::Json, b"{}"),
        (Format::Json, br#"{"surprise": 1}"#),
        (Format::Json, br#"{"kind":"Status","metadata":{}}"#),
        (Format::Json, br#"{"kind":"ServiceList","metadata":{}}"#),
        (
            Format::Json,
            br#"{"kind":"NodeList","metadata":{"resourceVersion":"1"}}"#,
        ),
        (Format::Json, b"<html>"),
        (Format::Protobuf, b""),
        (Format::Protobuf, b"k8s\0"),
        (Format::Protobuf, b"{\"kind\":\"ServiceList\"}"),
    ];
    for (format, bytes) in cases {
        let text = String::from_utf8_lossy(bytes);
        assert!(read(format, bytes, 3).is_err(), "{text}");
    }
    for kind in ["NodeList", "Service", "Status", "List", ""] {
        let bytes = list(kind, &[]);
        assert!(read(Format::Protobuf, &bytes, 9).is_err(), "{kind}");
    }
}

/// The bytes with each of these in place of that.
fn replaced(mut bytes: Vec<u8>, old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(old.len()).position(|part| part == old) {
        bytes[at + found..at + found + old.len()].copy_from_slice(new);
        at += found + old.len();
    }
    bytes
}

#[test]
fn an_annotation_that_is_no_text_is_its_authors_business() {
    // The API server looks at annotations' names only.
    let bytes = replaced(
        list("ServiceList", &["a", "b"]),
        b"note",
        b"\xff\xfe\xfd\xfc",
    );
    assert!(bytes.windows(2).any(|part| part == b"\xff\xfe"));
    let (names, _) = read(Format::Protobuf, &bytes, 9).unwrap();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn an_object_that_cannot_be_read_is_left_out_and_the_others_are_not() {
    let bytes = replaced(
        list("ServiceList", &["a", "bad!", "c"]),
        b"bad!",
        b"\xff\xfe\xfd\xfc",
    );
    let mut list = List::<Service>::new(Format::Protobuf, false);
    list.push(&bytes).unwrap();
    let names: Vec<_> = std::iter::from_fn(|| list.next().unwrap())
        .map(|object| object.metadata.name.to_string())
        .collect();
    assert_eq!(names, ["a", "c"]);
    let [spoiled] = list.take_spoiled().try_into().unwrap();
    assert_eq!(spoiled.key, None, "it is the name that cannot be read");
    assert!(list.end().is_ok());
}

#[test]
fn of_an_object_that_cannot_be_read_the_name_is_known_unless_that_is_it() {
    let mut object = service("web");
    object.metadata.as_mut().unwrap().namespace = Some("shop".to_owned());
    object.spec.as_mut().unwrap().session_affinity = Some("bad!".to_owned());
    let bytes = replaced(object.encode_to_vec(), b"bad!", b"\xff\xfe\xfd\xfc");
    let error = Service::read(bytes.as_slice()).unwrap_err();
    let spoiled = Spoiled::new(&bytes, error);
    assert_eq!(spoiled.key, Some(ObjectKey::new("shop", "web")));
    let why = spoiled.error.to_string();
    assert!(why.contains("session_affinity"), "{why}");
}

#[test]
fn an_object_that_is_longer_than_any_is_refused_before_it_takes_memory() {
    // A ServiceList whose only item says that it is 4 GiB long.
    let mut bytes = list("ServiceList", &[]);
    let empty = bytes.clone();
    bytes.truncate(4);
    let raw = [0x12, 0xff, 0xff, 0xff, 0xff, 0x0f];
    let kind = &empty[4..4 + 2 + usize::from(empty[5])];
    bytes.extend_from_slice(kind);
    bytes.extend_from_slice(&[0x12, 0xff, 0xff, 0xff, 0xff, 0x1f]);
    bytes.extend_from_slice(&raw);
    let error = read(Format::Protobuf, &bytes, 5).unwrap_err().to_string();
    assert!(error.contains("4294967295 bytes"), "{error}");
}

#[test]
fn what_comes_compressed_is_the_same_and_no_less_whole() {
    let plain = list("ServiceList", &["a", "b", "c"]);
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zip.write_all(&plain).unwrap();
    let zipped = zip.finish().unwrap();
    let read = |bytes: &[u8], piece: usize| -> Result<Vec<String>, Unreadable> {
        let mut listing = List::<Service>::new(Format::Protobuf, true);
        let mut names = Vec::new();
        for piece in bytes.chunks(piece) {
            listing.push(piece)?;
            while let Some(object) = listing.next()? {
                names.push(object.metadata.name.to_string());
            }
        }
        let (_, rest) = listing.end()?;
        names.extend(
            rest.into_iter()
                .map(|object| object.metadata.name.to_string()),
        );
        Ok(names)
    };
    for piece in 1..zipped.len() {
        assert_eq!(read(&zipped, piece).unwrap(), ["a", "b", "c"], "{piece}");
    }
    for length in 0..zipped.len() {
        assert!(read(&zipped[..length], 7).is_err(), "{length}");
    }
    let longer = [zipped.as_slice(), b"x"].concat();
    assert!(read(&longer, usize::MAX).is_err());
    assert!(read(&longer, zipped.len()).is_err());
    let mut damaged = zipped.clone();
    let last = damaged.len() - 6;
    damaged[last] ^= 1;
    assert!(read(&damaged, 7).is_err());
}

proptest! {
    #[test]
    fn mangled_lists_are_read_or_refused_and_the_same_in_pieces(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        piece in 1_usize..40,
    ) {
        let mut bytes = list("ServiceList", &["a", "bcd", "e"]);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let whole = read(Format::Protobuf, &bytes, usize::MAX).map_err(|error| error.to_string());
        let pieces = read(Format::Protobuf, &bytes, piece).map_err(|error| error.to_string());
        prop_assert_eq!(whole, pieces);
    }
}
