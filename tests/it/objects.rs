//! Objects for tests, as short as they can be said.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A Service to build on.
pub struct Service(pub Value);

/// A Service in namespace `default` with one TCP port 80 named `http` and these `ClusterIP`s.
pub fn service(name: &str, cluster_ips: &[&str]) -> Service {
    let families: Vec<&str> = cluster_ips
        .iter()
        .map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" })
        .collect();
    Service(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "creationTimestamp": "2024-01-01T00:00:00Z"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ips.first(),
            "clusterIPs": cluster_ips,
            "ipFamilies": families,
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        },
    }))
}

impl Service {
    /// Sets a field by its JSON pointer below the object; parents must exist.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
        self.0
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{parent} does not exist"))
            .as_object_mut()
            .expect("an object")
            .insert(field.to_owned(), value);
        self
    }

    /// Gives it a type and its port a node port.
    pub fn node_port(self, port: u16) -> Self {
        self.set("/spec/type", json!("NodePort"))
            .set("/spec/ports/0/nodePort", json!(port))
    }

    /// Gives it load-balancer addresses.
    pub fn vips(self, ips: &[&str]) -> Self {
        let ingress: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        self.set("/spec/type", json!("LoadBalancer"))
            .set("/status", json!({"loadBalancer": {"ingress": ingress}}))
    }

    /// Gives it external IPs.
    pub fn external_ips(self, ips: &[&str]) -> Self {
        self.set("/spec/externalIPs", json!(ips))
    }

    /// Remembers clients.
    pub fn affinity(self, seconds: u32) -> Self {
        self.set("/spec/sessionAffinity", json!("ClientIP")).set(
            "/spec/sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": seconds}}),
        )
    }

    /// Makes its port a UDP port.
    pub fn udp(self) -> Self {
        self.set("/spec/ports/0/protocol", json!("UDP"))
    }

    /// Sets its age.
    pub fn created(self, time: &str) -> Self {
        self.set("/metadata/creationTimestamp", json!(time))
    }
}

/// One endpoint of a slice: ready, and without a node.
pub fn endpoint(address: &str) -> Value {
    json!({
        "addresses": [address],
        "conditions": {"ready": true, "serving": true, "terminating": false},
    })
}

/// A slice of a Service with these addresses, port 8080 named `http`; all of one family.
pub fn slice(service: &str, protocol: &str, addresses: &[&str]) -> Value {
    slice_of(
        service,
        protocol,
        addresses.iter().map(|address| endpoint(address)).collect(),
    )
}

/// A slice of a Service with these endpoints.
pub fn slice_of(service: &str, protocol: &str, endpoints: Vec<Value>) -> Value {
    let is_v6 = endpoints
        .first()
        .and_then(|endpoint| endpoint.pointer("/addresses/0")?.as_str())
        .is_some_and(|address| address.contains(':'));
    let family = if is_v6 { "IPv6" } else { "IPv4" };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{family}"),
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": [{"name": "http", "protocol": protocol, "port": 8080}],
        "endpoints": endpoints,
    })
}

/// The node of the harness.
pub fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": super::harness::NODE, "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:244:0:1::/64"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8:2::1"},
        ]},
    })
}

/// The ranges that the tests' `ClusterIP`s come from.
pub fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]},
    })
}

/// A directory of manifests that a test changes.
pub struct Manifests {
    directory: tempfile::TempDir,
}

impl Manifests {
    /// Manifests with the node, the service ranges and these objects.
    pub fn new(objects: Vec<Value>) -> Self {
        let manifests = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        manifests.write("base.json", vec![node(), service_cidr()]);
        manifests.write("objects.json", objects);
        manifests
    }

    /// Where they are.
    pub fn path(&self) -> &str {
        self.directory.path().to_str().expect("a path")
    }

    /// Writes a file in one step.
    pub fn write(&self, name: &str, objects: Vec<Value>) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.write_text(name, &list.to_string());
    }

    /// Writes a file in one step, whatever is in it.
    pub fn write_text(&self, name: &str, text: &str) -> PathBuf {
        let path: &Path = self.directory.path();
        let hidden = path.join(format!(".{name}.new"));
        std::fs::write(&hidden, text).expect("a file");
        let file = path.join(name);
        std::fs::rename(&hidden, &file).expect("a file");
        file
    }
}
