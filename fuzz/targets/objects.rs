//! Lines of JSON, each an object as an API server sends it, taken in one after the other: conversion,
//! compilation, the diff engine, and the batch and the text that come of it.
//!
//! A line that begins with `-` is an object that is gone, an empty one brings the node in step.

#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use pointsman::agent::reconciler::{Desired, Proxy};
use pointsman::core::compile::{Compiled, MOST_ELEMENTS, NodePortAddresses, compile_known};
use pointsman::core::ir::{Action, Delta, Entry, Operation};
use pointsman::core::model::{Change, Family, Node, ObjectKey, Protocol};
use pointsman::dataplane::nftables::{Encoder, render};
use pointsman::dataplane::{
    Applied, ApplyError, Backend, Changed, Difference, Mode, Options, Unavailable,
};
use pointsman::source::convert::Converter;
use pointsman::source::objects::Metadata;
use serde_json::Value;

/// A kernel that takes everything.
struct Taker {
    /// The program alone takes longer to encode and to print than all the rest: one input in sixteen has
    /// that done.
    encoder: Option<Encoder>,
    held: HashSet<Entry>,
}

/// Few, so that one sync takes several transactions.
const AT_ONCE: usize = 64;

impl Backend for Taker {
    const MODE: Mode = Mode::Either;

    fn open(options: Options) -> Result<Self, Unavailable> {
        Ok(Self {
            encoder: Some(Encoder::new(options)),
            held: HashSet::new(),
        })
    }

    fn render(options: &Options, entries: &[Entry]) -> String {
        render(options, entries)
    }

    fn reconfigure(&mut self, _: Options) {}

    fn families(&self) -> Vec<Family> {
        Family::BOTH.to_vec()
    }

    fn withhold(&mut self, _: Family, _: bool) {}

    fn look_for_families(&mut self) -> bool {
        false
    }

    fn take_over(&mut self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn remove_leftovers(&mut self) -> Result<usize, ApplyError> {
        Ok(0)
    }

    fn clean_up(&mut self) -> Result<(), ApplyError> {
        Ok(())
    }

    fn watch(&mut self, _: Changed) -> Result<bool, Unavailable> {
        Ok(true)
    }

    fn counts(&self) -> Vec<(Family, &'static str, usize)> {
        Vec::new()
    }

    fn refused_on_loopback(&mut self) -> Result<Vec<(Family, Protocol, u64)>, Unavailable> {
        Ok(Vec::new())
    }

    fn differences(&mut self, _: &Delta) -> Result<Vec<Difference>, Unavailable> {
        Ok(Vec::new())
    }

    fn read(&mut self) -> Result<Vec<Entry>, Unavailable> {
        Ok(self.held.iter().cloned().collect())
    }

    fn apply(&mut self, delta: &Delta) -> Result<Applied, ApplyError> {
        for Operation { entry, .. } in &delta.remove {
            assert!(self.held.remove(entry), "{entry:?} was not there");
        }
        for Operation { entry, .. } in &delta.add {
            assert!(self.held.insert(entry.clone()), "{entry:?} is there");
        }
        if let Some(encoder) = &mut self.encoder {
            encoder.transaction(delta);
        }
        Ok(Applied::default())
    }

    fn most_operations(&self) -> usize {
        AT_ONCE
    }

    fn isolate_services(&mut self, _: bool) {}

    fn has_garbage(&self) -> bool {
        false
    }

    fn tidy(&mut self) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// Endpoints keep the places that they have.
fn anywhere(mut entry: Entry) -> Entry {
    if let Entry::Slot { index, .. } = &mut entry {
        *index = 0;
    }
    entry
}

fn sync(proxy: &mut Proxy<Taker>) {
    proxy.sync().expect("everything is taken");
    let wanted = proxy.desired().engine().wanted_entries();
    let applied: HashSet<Entry> = proxy
        .desired()
        .engine()
        .applied_entries()
        .into_iter()
        .collect();
    assert_eq!(applied, proxy.backend().held);
    assert_eq!(wanted.len(), applied.len());
    let applied: HashSet<Entry> = applied.into_iter().map(anywhere).collect();
    for entry in &wanted {
        let entry = anywhere(entry.clone());
        assert!(applied.contains(&entry), "{entry:?} is missing");
    }
    if proxy.backend().encoder.is_some() {
        Taker::render(&Options::default(), &wanted);
    }
    proxy.take_stale_flows();
}

/// What a Service is, as the bound counts.
fn elements(compiled: &Compiled) -> usize {
    let destinations = compiled.destinations.iter().map(|(_, forwarding)| {
        let endpoints = match &forwarding.action {
            Action::Balance {
                primary, external, ..
            } => primary.len() + external.as_ref().map_or(0, |external| external.len()),
            Action::Reject | Action::Drop => 0,
        };
        1 + endpoints + forwarding.sources.networks().len()
    });
    destinations.sum()
}

fn read(converter: &mut Converter, line: &[u8]) -> Option<Change> {
    let (gone, line) = match line.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let object: Value = serde_json::from_slice(line).ok()?;
    let kind = object.get("kind")?.as_str()?;
    if gone {
        let metadata = object.get("metadata").cloned().unwrap_or_default();
        let metadata: Metadata = serde_json::from_value(metadata).ok()?;
        let key = ObjectKey::new(metadata.namespace.as_str(), metadata.name.as_str());
        return Some(match kind {
            "Service" => Change::Service(key, None),
            "EndpointSlice" => Change::EndpointSlice(key, None),
            "Node" => Change::Node(None),
            _ => Change::ServiceCidr(metadata.name.to_string(), None),
        });
    }
    // From the bytes, as a watch does it.
    match kind {
        "Service" => converter.service(&serde_json::from_slice(line).ok()?),
        "EndpointSlice" => converter.endpoint_slice(&serde_json::from_slice(line).ok()?),
        "Node" => converter.node(&serde_json::from_slice(line).ok()?),
        "ServiceCIDR" => converter.service_cidr(&serde_json::from_slice(line).ok()?),
        _ => None,
    }
}

fuzz_target!(|data: &[u8]| {
    let mut converter = Converter::new("node-1");
    let desired = Desired::new(Node::named("node-1"), NodePortAddresses::default());
    let mut backend = Taker::open(Options::default()).expect("it is no kernel");
    backend.encoder.take_if(|_| data.len() % 16 != 0);
    let mut proxy = Proxy::start(desired, backend).expect("it is no kernel");
    for line in data.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            sync(&mut proxy);
            continue;
        }
        let Some(change) = read(&mut converter, line) else {
            continue;
        };
        let service = match &change {
            Change::Service(key, _) => Some(key.clone()),
            Change::EndpointSlice(_, Some(slice)) => Some(slice.service.clone()),
            _ => None,
        };
        proxy.take([change]);
        let state = proxy.desired().state();
        let known = service.and_then(|key| state.service(state.id_of(&key)?));
        if let Some(known) = known {
            let compiled = compile_known(known, state.node());
            assert!(elements(&compiled) <= MOST_ELEMENTS);
            assert!(compiled.shared.len() <= MOST_ELEMENTS);
        }
    }
    sync(&mut proxy);
    // A restart with nothing changed is an empty delta.
    proxy.read_again().expect("it is no kernel");
    let pending = proxy.desired().engine().pending();
    assert!(pending.delta().is_empty(), "{:?}", pending.delta());
    let warnings = converter.take_warnings();
    assert!(warnings.len() <= 16 * (data.len() + 1));
});
