//! Clusters to measure: objects as an API server sends them, one after another.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::{Duration, Instant};

use pointsman::core::model::{Change, ObjectKey};
use pointsman::source::convert::Converter;
use pointsman::source::objects;

use crate::harness::NODE;

/// Endpoints in a slice, at most: the controller's own limit.
const SLICE: u32 = 100;

/// A cluster in which all Services are alike but for their names and addresses.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
}

impl Shape {
    /// Endpoints of all of them.
    pub const fn all_endpoints(self) -> u32 {
        self.services * self.endpoints
    }

    /// The address of a Service.
    pub fn cluster_ip(index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + index)
    }

    /// The address of an endpoint. Each Service has as many again in reserve.
    pub fn endpoint(self, service: u32, index: u32) -> Ipv4Addr {
        let first = u32::from(Ipv4Addr::new(11, 0, 0, 0));
        Ipv4Addr::from(first + service * 2 * self.endpoints + index)
    }

    /// A Service, as the API server writes it; with affinity, if so many seconds are given.
    pub fn service(index: u32, affinity: Option<u32>) -> String {
        let ip = Self::cluster_ip(index);
        let affinity = affinity.map_or_else(
            || r#""sessionAffinity":"None""#.to_owned(),
            |seconds| {
                format!(
                    r#""sessionAffinity":"ClientIP","sessionAffinityConfig":{{"clientIP":{{"timeoutSeconds":{seconds}}}}}"#
                )
            },
        );
        format!(
            r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"svc-{index}","namespace":"default","uid":"6f1c2c5e-0000-4000-8000-{index:012}","resourceVersion":"{version}","creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"app":"svc-{index}"}},"managedFields":[{MANAGED}]}},"spec":{{"ports":[{{"name":"http","protocol":"TCP","port":80,"targetPort":8080}}],"selector":{{"app":"svc-{index}"}},"clusterIP":"{ip}","clusterIPs":["{ip}"],"type":"ClusterIP",{affinity},"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster"}},"status":{{"loadBalancer":{{}}}}}}"#,
            version = index + 1000,
        )
    }

    /// One of a Service's slices, with these endpoints in it.
    pub fn slice(self, service: u32, part: u32, endpoints: impl Iterator<Item = u32>) -> String {
        self.slice_of(service, service, part, endpoints)
    }

    /// The same with the addresses that another Service of this shape would have.
    pub fn slice_of(
        self,
        service: u32,
        addresses_of: u32,
        part: u32,
        endpoints: impl Iterator<Item = u32>,
    ) -> String {
        let endpoints: Vec<String> = endpoints
            .map(|index| {
                let address = self.endpoint(addresses_of, index);
                format!(
                    r#"{{"addresses":["{address}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"targetRef":{{"kind":"Pod","namespace":"default","name":"svc-{service}-7d9c5b8f6d-{index:05}","uid":"0b1d2c3e-0000-4000-8000-{index:012}"}},"nodeName":"node-{node}","zone":"zone-{zone}"}}"#,
                    node = index % 1000 + 100,
                    zone = index % 3,
                )
            })
            .collect();
        format!(
            r#"{{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{{"name":"svc-{service}-{part:05}","generateName":"svc-{service}-","namespace":"default","uid":"5c3e1f7a-0000-4000-8000-{service:012}","resourceVersion":"{version}","generation":1,"creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"app":"svc-{service}","endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"svc-{service}"}},"annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"2026-01-01T00:00:00Z"}},"ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"svc-{service}","uid":"6f1c2c5e-0000-4000-8000-{service:012}","controller":true,"blockOwnerDeletion":true}}],"managedFields":[{MANAGED}]}},"addressType":"IPv4","endpoints":[{endpoints}],"ports":[{{"name":"http","protocol":"TCP","port":8080}}]}}"#,
            version = service + 1000,
            endpoints = endpoints.join(","),
        )
    }

    /// The endpoints of each of a Service's slices.
    pub fn parts(self) -> impl Iterator<Item = (u32, Range<u32>)> {
        (0..self.endpoints.div_ceil(SLICE))
            .map(move |part| (part, part * SLICE..((part + 1) * SLICE).min(self.endpoints)))
    }

    /// All objects, as text.
    pub fn objects(self) -> impl Iterator<Item = String> {
        (0..self.services).flat_map(move |index| {
            std::iter::once(Self::service(index, None)).chain(
                self.parts()
                    .map(move |(part, endpoints)| self.slice(index, part, endpoints)),
            )
        })
    }

    /// All objects as changes; how many bytes of JSON they were, and how long it took to turn
    /// those into changes.
    pub fn changes(self) -> (Vec<Change>, usize, Duration) {
        let mut reader = Reader::default();
        let mut bytes = 0;
        let changes = self
            .objects()
            .map(|text| {
                bytes += text.len();
                reader.read(&text)
            })
            .collect();
        (changes, bytes, reader.spent)
    }
}

/// What the API server keeps about who wrote which field: nobody reads it here.
const MANAGED: &str = r#"{"manager":"kube-controller-manager","operation":"Update","apiVersion":"discovery.k8s.io/v1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:addressType":{},"f:endpoints":{},"f:metadata":{"f:annotations":{".":{},"f:endpoints.kubernetes.io/last-change-trigger-time":{}},"f:generateName":{},"f:labels":{".":{},"f:endpointslice.kubernetes.io/managed-by":{},"f:kubernetes.io/service-name":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"6f1c2c5e\"}":{}}},"f:ports":{}}}"#;

/// Reads objects as the watch does, and counts the time.
pub struct Reader {
    converter: Converter,
    /// The time that it took.
    pub spent: Duration,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            converter: Converter::new(NODE),
            spent: Duration::ZERO,
        }
    }
}

impl Reader {
    /// Turns one object's text into a change.
    pub fn read(&mut self, text: &str) -> Change {
        let started = Instant::now();
        let change = if text.starts_with(r#"{"kind":"Service""#) {
            let object: objects::Service = serde_json::from_str(text).expect("a Service");
            self.converter.service(&object)
        } else {
            let object: objects::EndpointSlice = serde_json::from_str(text).expect("a slice");
            self.converter.endpoint_slice(&object)
        };
        self.spent += started.elapsed();
        change.expect("an object that is served")
    }
}

/// That a Service is gone.
pub fn service_gone(index: u32) -> Change {
    Change::Service(ObjectKey::new("default", format!("svc-{index}")), None)
}
