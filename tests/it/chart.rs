//! The Helm chart: it makes the objects that `manifests/` makes.
//!
//! What helm makes of it for a few values is in `tests/data/chart`, with a digest of the chart that it was made from.
//! With a helm at hand (`POINTSMAN_HELM`), the chart is rendered again here; `UPDATE_GOLDEN=1` keeps what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: impl AsRef<Path>) -> Value {
    serde_saphyr::from_str(&read(path)).expect("YAML")
}

fn documents(text: &str) -> Vec<Value> {
    let documents = text
        .split("\n---")
        .map(|part| part.trim_start_matches("---"));
    let parsed = documents.map(|part| serde_saphyr::from_str(part).expect("YAML"));
    parsed.filter(|object: &Value| !object.is_null()).collect()
}

/// Objects by kind and name, each as one text.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, String> {
    let named = |object: Value| {
        let name = format!(
            "{}/{}",
            object["kind"].as_str().unwrap_or_default(),
            object["metadata"]["name"].as_str().unwrap_or_default()
        );
        (name, serde_json::to_string_pretty(&object).expect("JSON"))
    };
    objects.into_iter().map(named).collect()
}

fn same(what: &str, chart: Vec<Value>, manifests: Vec<Value>) {
    let (chart, manifests) = (by_name(chart), by_name(manifests));
    let names = |objects: &BTreeMap<String, String>| -> BTreeSet<String> {
        objects.keys().cloned().collect()
    };
    assert_eq!(names(&chart), names(&manifests), "{what}");
    for (name, object) in &chart {
        assert_eq!(object, &manifests[name], "{what}: {name}");
    }
}

/// As much of kustomize as `manifests/` uses.
fn kustomize(directory: &str) -> Vec<Value> {
    let at = |file: &str| {
        let mut path = PathBuf::new();
        for part in Path::new(directory).join(file).components() {
            match part {
                std::path::Component::ParentDir => {
                    path.pop();
                }
                part => path.push(part),
            }
        }
        path
    };
    let file = yaml(at("kustomization.yaml"));
    let each = |field: &str| file[field].as_array().cloned().unwrap_or_default();
    let mut objects = Vec::new();
    for resource in each("resources") {
        let path = at(resource.as_str().expect("a path"));
        if root().join(&path).is_dir() {
            objects.extend(kustomize(path.to_str().expect("a path")));
        } else {
            objects.extend(documents(&read(path)));
        }
    }
    for generated in each("configMapGenerator") {
        let mut data = serde_json::Map::new();
        for file in generated["files"].as_array().expect("files") {
            let (name, path) = file
                .as_str()
                .and_then(|file| file.split_once('='))
                .expect("a file");
            data.insert(name.to_owned(), json!(read(at(path))));
        }
        objects.push(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": data,
            "metadata": {"name": generated["name"], "labels": generated["options"]["labels"]},
        }));
    }
    if let Some(namespace) = file["namespace"].as_str() {
        for object in &mut objects {
            let kind = object["kind"].as_str().expect("a kind");
            if !kind.starts_with("Cluster") {
                object["metadata"]["namespace"] = json!(namespace);
            }
        }
    }
    for patch in each("patches") {
        let path = at(patch["path"].as_str().expect("a path"));
        if patch.get("target").is_some() {
            patch_daemon_set(&mut objects, path);
            continue;
        }
        let patch = yaml(path);
        assert_eq!(patch["$patch"], "delete");
        let is_it = |object: &Value| {
            object["kind"] == patch["kind"]
                && object["metadata"]["name"] == patch["metadata"]["name"]
        };
        objects.retain(|object| !is_it(object));
    }
    for image in each("images") {
        let tag = image["newTag"].as_str().expect("a tag");
        let text = serde_json::to_string(&objects).expect("JSON");
        let name = image["name"].as_str().expect("a name");
        let text = text.replace(
            &format!("\"image\":\"{name}\""),
            &format!("\"image\":\"{name}:{tag}\""),
        );
        objects = serde_json::from_str(&text).expect("JSON");
    }
    objects
}

/// JSON patches (RFC 6902), of which `add` and `replace`.
fn patch_daemon_set(objects: &mut [Value], path: impl AsRef<Path>) {
    let mut sets = objects
        .iter_mut()
        .filter(|object| object["kind"] == "DaemonSet");
    let set = sets.next().expect("a DaemonSet");
    for patch in yaml(path).as_array().expect("patches") {
        let (parent, last) = patch["path"]
            .as_str()
            .and_then(|path| path.rsplit_once('/'))
            .expect("a path");
        let parent = set.pointer_mut(parent).expect("something there");
        match (parent, last) {
            (Value::Array(list), "-") => list.push(patch["value"].clone()),
            (Value::Array(list), index) => {
                list[index.parse::<usize>().expect("an index")] = patch["value"].clone();
            }
            (parent, field) => parent[field] = patch["value"].clone(),
        }
    }
}

/// A digest of everything that the chart is rendered from.
fn digest() -> String {
    let mut files = BTreeMap::new();
    let mut directories = vec![root().join("charts/pointsman")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("the chart") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path.clone(), std::fs::read(path).expect("a file"));
            }
        }
    }
    let mut hash = Sha256::new();
    for (path, text) in files {
        let name = path.strip_prefix(root()).expect("of the chart");
        hash.update(format!("{} {}\n", name.display(), text.len()));
        hash.update(text);
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn helm(arguments: &[&str]) -> Option<Output> {
    let helm = std::env::var_os("POINTSMAN_HELM").filter(|helm| !helm.is_empty())?;
    let output = Command::new(helm)
        .args(arguments)
        .current_dir(root())
        .env("HELM_NO_PLUGINS", "1")
        .output();
    Some(output.expect("helm"))
}

/// What helm makes of the chart with the values of a case.
fn rendered(case: &str) -> String {
    let path = format!("tests/data/chart/{case}.yaml");
    let values = format!("tests/data/chart/{case}.values.yaml");
    let chart = "charts/pointsman";
    let arguments = ["template", "pointsman", chart, "--namespace", "kube-system"];
    let versions = ["--kube-version", "1.36.0", "--values", &values];
    let head = format!("# What helm makes of the chart {}\n", digest());
    let Some(output) = helm(&[&arguments[..], &versions].concat()) else {
        let golden = read(&path);
        assert!(
            golden.starts_with(&head),
            "the chart has changed since {path} was made: UPDATE_GOLDEN=1 with POINTSMAN_HELM"
        );
        return golden;
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = head + &String::from_utf8(output.stdout).expect("text");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(root().join(&path), &text).expect("a golden file");
    }
    assert!(
        read(&path) == text,
        "{path} is not what helm makes; see UPDATE_GOLDEN=1 and git diff"
    );
    text
}

#[test]
fn the_chart_makes_the_objects_of_the_manifests() {
    same(
        "default",
        documents(&rendered("default")),
        kustomize("manifests/base"),
    );
    same(
        "kubeadm",
        documents(&rendered("kubeadm")),
        kustomize("manifests/kubeadm"),
    );
    let mut with_legacy = kustomize("manifests/base");
    patch_daemon_set(&mut with_legacy, "manifests/iptables/daemonset.yaml");
    same("iptables", documents(&rendered("iptables")), with_legacy);
    let mut monitored = kustomize("manifests/base");
    monitored.extend(kustomize("manifests/servicemonitor"));
    monitored.extend(kustomize("manifests/monitoring"));
    for object in &mut monitored {
        if let Some(text) = object.pointer_mut("/data/config.conf") {
            let loopback = text.as_str().expect("text").to_owned();
            *text = json!(loopback.replace("127.0.0.1:10249", "0.0.0.0:10249"));
        }
    }
    same("monitored", documents(&rendered("monitored")), monitored);
}

#[test]
fn values_are_found_where_they_belong() {
    let text = rendered("everything");
    let objects = documents(&text);
    let of_kind = |kind: &str| {
        let mut found = objects.iter().filter(|object| object["kind"] == kind);
        found.next().unwrap_or_else(|| panic!("no {kind}")).clone()
    };
    let set = of_kind("DaemonSet");
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let image = format!(
        "registry.example/pointsman@sha256:{}",
        "0123456789abcdef".repeat(4)
    );
    assert_eq!(container["image"], *image);
    assert_eq!(pod["initContainers"][0]["image"], *image);
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert_eq!(container["args"][2], "--service-metrics");
    assert_eq!(container["resources"]["limits"]["memory"], "1Gi");
    assert_eq!(
        container["securityContext"]["capabilities"]["add"],
        json!(["NET_ADMIN", "NET_RAW"])
    );
    assert_eq!(
        set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
        1
    );
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        *labels,
        json!({"team": "network", "app.kubernetes.io/name": "pointsman"})
    );
    let config = of_kind("ConfigMap");
    let file = config["data"]["config.conf"].as_str().expect("a file");
    let file: Value = serde_saphyr::from_str(file).expect("YAML");
    assert_eq!(file["clusterCIDR"], "10.244.0.0/16,fd00:244::/56");
    assert_eq!(file["nodePortAddresses"], json!(["primary"]));
    let kubeconfig = config["data"]["kubeconfig.conf"].as_str().expect("a file");
    assert!(
        kubeconfig.contains("server: https://192.0.2.1:6443\n"),
        "{kubeconfig}"
    );
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        assert_eq!(
            of_kind(kind)["metadata"]["labels"]["release"],
            "prometheus",
            "{kind}"
        );
    }
    assert_eq!(
        of_kind("ServiceMonitor")["spec"]["endpoints"][0]["interval"],
        "30s"
    );
    assert_eq!(
        of_kind("ServiceMonitor")["spec"]["serviceDiscoveryRole"],
        "EndpointSlice"
    );
}

#[test]
fn helm_finds_nothing_wrong_and_wrong_values_are_named() {
    let Some(lint) = helm(&["lint", "--strict", "charts/pointsman"]) else {
        eprintln!("ignored: POINTSMAN_HELM does not say where helm is");
        return;
    };
    assert!(
        lint.status.success(),
        "{}",
        String::from_utf8_lossy(&lint.stdout)
    );
    let wrong = [
        ("image.digest=sha256:1", "digest"),
        ("apiServer=control-plane", "apiServer"),
        ("config.mode=magic", "mode"),
        ("maxUnavailable=0", "maxUnavailable"),
        ("maxUnavailable=0%", "maxUnavailable"),
        ("extraArgs[0]=verbose", "extraArgs"),
        ("metrics.servicemonitor.enabled=true", "servicemonitor"),
        ("imageTag=1", "imageTag"),
        ("metrics.serviceMonitor.discoveryRole=Pod", "discoveryRole"),
        ("config.healthzBindAddress=10256", "healthzBindAddress"),
        ("apiServer=https://x:6443 # y", "apiServer"),
        (
            "config.healthzBindAddress=127.0.0.1:10256",
            "healthzBindAddress",
        ),
        ("kubeadm=true", "kube-system"),
        (
            "metrics.serviceMonitor.enabled=true",
            "config.metricsBindAddress",
        ),
    ];
    let none = ["podLabels=null", "metrics.serviceMonitor.labels=null"];
    for value in none {
        let on = "config.metricsBindAddress=0.0.0.0:10249,metrics.serviceMonitor.enabled=true";
        let chart = [
            "template",
            "x",
            "charts/pointsman",
            "--set",
            on,
            "--set",
            value,
        ];
        let output = helm(&chart).expect("helm");
        assert!(output.status.success(), "{value}: {output:?}");
    }
    for (value, named) in wrong {
        let output = helm(&["template", "x", "charts/pointsman", "--set", value]).expect("helm");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(named),
            "{value}: {said}"
        );
    }
}
