//! What is programmed: the elements of our sets and maps, and those that objects ask for.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::{Host, by, pointsman};
use crate::objects::Manifests;

/// The elements of our sets and maps, as nft lists them; in iptables mode the rules of each family.
pub type Elements = BTreeMap<String, BTreeSet<String>>;

/// Every element in the kernel, with its slot if it has one.
pub fn elements(host: &Host) -> Elements {
    if let Some(variant) = by() {
        return rules(host, variant);
    }
    let listed = host.sh("nft -j list ruleset 2>/dev/null");
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let mut elements = Elements::new();
    for object in listed["nftables"].as_array().expect("a list") {
        let Some(set) = object.get("set").or_else(|| object.get("map")) else {
            continue;
        };
        if set["table"] != "pointsman" {
            continue;
        }
        let name = format!("{} {}", set["family"], set["name"]).replace('"', "");
        let of_set = elements.entry(name).or_default();
        for element in set["elem"].as_array().into_iter().flatten() {
            of_set.insert(element.to_string());
        }
    }
    elements
}

/// Our rules, without marks, and those that lead to them.
fn rules(host: &Host, variant: &str) -> Elements {
    let of_family = |family: &str| {
        let listed = host.sh(&format!("{}-save", variant.replace("ip", family)));
        let is_ours = |line: &&str| {
            let rule = line.strip_prefix("-A ").unwrap_or_default();
            rule.starts_with("P") && !rule.starts_with("PRE") && !rule.starts_with("POST")
                || rule.contains("-j POINTSMAN-")
        };
        let is_mark = |line: &&str| {
            line.contains("--comment \"pointsman:") || line.contains("--comment pointsman:")
        };
        let lines = listed.lines().filter(is_ours).filter(|line| !is_mark(line));
        lines.map(str::to_owned).collect()
    };
    ["ip", "ip6"]
        .map(|family| (family.to_owned(), of_family(family)))
        .into()
}

/// The same in what a dry run prints.
fn printed_rules(text: &str) -> Elements {
    let of_family = |option: &str| {
        let rules = text.lines().filter_map(|line| line.strip_prefix(option));
        let as_listed = |rule: &str| {
            let first = rule
                .strip_prefix("-I ")
                .and_then(|rule| rule.split_once(" 1 "));
            first.map_or_else(
                || rule.to_owned(),
                |(chain, rule)| format!("-A {chain} {rule}"),
            )
        };
        rules.map(as_listed).collect()
    };
    [("ip", "-4 "), ("ip6", "-6 ")]
        .map(|(family, option)| (family.to_owned(), of_family(option)))
        .into()
}

/// The same without slots, which depend on what was there before; only which of the two lists
/// of a destination they are of.
pub fn without_slots(elements: Elements) -> Elements {
    let without = |(name, of_set): (String, BTreeSet<String>)| {
        let of_set = if name.ends_with("endpoints") {
            of_set.iter().map(|element| without_slot(element)).collect()
        } else {
            of_set
        };
        (name, of_set)
    };
    elements.into_iter().map(without).collect()
}

fn without_slot(element: &str) -> String {
    let mut element: Value = serde_json::from_str(element).expect("JSON");
    let key = element[0]["concat"].as_array_mut().expect("a key");
    // A place or an id: c and e are of the primary list, d and f of the local one.
    let number = key.pop().expect("a number").to_string();
    key.push(json!(number.trim_matches('"').get(..1)));
    element.to_string()
}

/// What a dry run says of the same objects in files, loaded by nft.
pub fn wanted(host: &Host, objects: Vec<Value>) -> Elements {
    wanted_with(host, objects, &[])
}

/// The same, with flags.
pub fn wanted_with(host: &Host, objects: Vec<Value>, flags: &[&str]) -> Elements {
    let manifests = Manifests::new(objects);
    manifests.write("base.json", Vec::new());
    let mut arguments = vec!["--manifests", manifests.path(), "--dry-run"];
    if by().is_some() {
        arguments.extend([
            "--proxy-mode",
            "iptables",
            "--nodeport-addresses",
            "primary",
        ]);
    }
    let (code, text, log) = pointsman(host, &[&arguments[..], flags].concat());
    assert_eq!(code, Some(0), "{log}");
    if by().is_some() {
        return printed_rules(&text);
    }
    let other = Host::new();
    let (ok, said) = other.sh_with_input("nft -f -", &text);
    assert!(ok, "{said}");
    without_slots(elements(&other))
}

/// The first few elements that one has and the other has not.
pub fn difference(one: &Elements, other: &Elements) -> Vec<String> {
    let of_set = |(name, of_set): (&String, &BTreeSet<String>)| {
        let known = other.get(name).cloned().unwrap_or_default();
        let more = of_set.difference(&known);
        more.map(|element| format!("{name}: {element}"))
            .collect::<Vec<_>>()
    };
    one.iter().flat_map(of_set).take(10).collect()
}
