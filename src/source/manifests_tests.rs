//! Files as people write them, and what a change to them brings.

use super::*;
use std::fs;

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  ports: [{port: 80}]
";

fn names(changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .map(|change| match change {
            Change::Service(key, Some(_)) => format!("Service {key}"),
            Change::Service(key, None) => format!("no Service {key}"),
            Change::EndpointSlice(key, Some(_)) => format!("EndpointSlice {key}"),
            Change::EndpointSlice(key, None) => format!("no EndpointSlice {key}"),
            Change::Node(node) => format!("Node {}", node.is_some()),
            Change::ServiceCidr(name, cidrs) => format!("ServiceCIDR {name} {}", cidrs.is_some()),
            Change::InterfaceAddresses(_) | Change::Observed(..) => {
                unreachable!("no object brings it")
            }
        })
        .collect()
}

fn load(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let mut manifests = Manifests::new(directory.path().to_owned(), "node-1");
    let loaded = manifests.load().unwrap();
    (
        names(&loaded.changes),
        loaded.warnings.iter().map(ToString::to_string).collect(),
        loaded
            .broken
            .iter()
            .map(|error| {
                error
                    .to_string()
                    .replace(directory.path().to_str().unwrap(), "")
            })
            .collect(),
    )
}

#[test]
fn every_form_that_kubectl_prints_is_read() {
    let service = |name: &str| {
        format!(
            r#"{{"kind":"Service","metadata":{{"name":"{name}","namespace":"x"}},"spec":{{"clusterIP":"10.0.0.1"}}}}"#
        )
    };
    let list = format!(
        r#"{{"kind":"List","apiVersion":"v1","items":[{},{}]}}"#,
        service("a"),
        service("b")
    );
    let typed_list = r#"{"kind":"ServiceList","items":[{"metadata":{"name":"c"},"spec":{"clusterIP":"10.0.0.1"}}]}"#;
    let cases: [(&str, &str, String, &[&str]); 7] = [
        ("one document", "f.yaml", WEB.into(), &["Service shop/web"]),
        (
            "several documents, empty ones too",
            "f.yml",
            format!(
                "---\n{WEB}---\n---\nkind: ServiceCIDR\nmetadata: {{name: k}}\nspec: {{cidrs: [10.96.0.0/12]}}\n"
            ),
            &["Service shop/web", "ServiceCIDR k true"],
        ),
        (
            "a List",
            "f.json",
            list.clone(),
            &["Service x/a", "Service x/b"],
        ),
        (
            "JSON in a YAML file",
            "f.yaml",
            list.clone(),
            &["Service x/a", "Service x/b"],
        ),
        (
            "a typed list, whose items have no kind",
            "f.json",
            typed_list.into(),
            &["Service default/c"],
        ),
        (
            "several JSON values",
            "f.json",
            format!("{}\n{}", service("a"), service("d")),
            &["Service x/a", "Service x/d"],
        ),
        (
            "other kinds are passed over",
            "f.yaml",
            "kind: Pod\nmetadata: {name: p}\n".into(),
            &[],
        ),
    ];
    for (rule, file, text, expected) in cases {
        let (found, warnings, broken) = load(&[(file, &text)]);
        assert_eq!(found, expected, "{rule}");
        assert_eq!((warnings, broken), (vec![], vec![]), "{rule}");
    }
}

#[test]
fn directories_are_searched_for_manifests_and_nothing_else() {
    let (found, ..) = load(&[
        ("deep/er/web.yaml", WEB),
        ("notes.txt", "not: [yaml"),
        ("..data/web2.yaml", WEB),
        (".web3.yaml.swp", "x"),
    ]);
    assert_eq!(found, ["Service shop/web"]);
}

#[test]
fn a_broken_file_is_named_with_its_line() {
    let (found, _, broken) = load(&[
        ("a.yaml", WEB),
        ("b.yaml", "kind: Service\nspec: [1, 2\nx: y\n"),
    ]);
    assert_eq!(found, ["Service shop/web"], "the other file is loaded");
    assert_eq!(broken.len(), 1);
    assert!(
        broken[0].starts_with("/b.yaml:3: ") || broken[0].starts_with("/b.yaml:4: "),
        "{broken:?}"
    );
    let (_, _, broken) = load(&[("b.json", "{\n\"kind\": }")]);
    assert!(broken[0].starts_with("/b.json:2: "), "{broken:?}");
}

#[test]
fn an_object_of_the_wrong_shape_is_named_with_its_field_and_left_out() {
    let text = "
kind: Service
metadata: {name: odd, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}, {port: eighty}]}
---
kind: EndpointSlice
metadata: {name: odd-1, namespace: shop}
addressType: IPv4
endpoints: {}
";
    let (found, warnings, _) = load(&[("a.yaml", &format!("{text}---\n{WEB}"))]);
    assert_eq!(found, ["Service shop/web"]);
    assert_eq!(warnings.len(), 2);
    assert!(
        warnings[0].starts_with("Service shop/odd: spec.ports[1].port: "),
        "{warnings:?}"
    );
    assert!(
        warnings[1].starts_with("EndpointSlice shop/odd-1: endpoints: "),
        "{warnings:?}"
    );
    assert!(
        warnings
            .iter()
            .all(|text| text.ends_with("; the object is left out"))
    );
}

#[test]
fn null_means_absent() {
    let text = r#"{"kind":"Service","metadata":{"name":"n","namespace":"x","labels":null,"creationTimestamp":null},
        "spec":{"clusterIP":"10.0.0.1","ports":null,"externalIPs":null,"sessionAffinityConfig":null,"clusterIPs":null},"status":null}"#;
    let (found, warnings, broken) = load(&[("a.json", text)]);
    assert_eq!(found, ["Service x/n"]);
    assert_eq!((warnings, broken), (vec![], vec![]));
}

#[test]
fn a_change_brings_what_changed_and_a_broken_edit_brings_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    let mut manifests = Manifests::new(directory.path().to_owned(), "node-1");
    let mut write = |text: &str| {
        fs::write(&path, text).unwrap();
        let loaded = manifests.load().unwrap();
        (
            names(&loaded.changes),
            loaded.warnings.len(),
            loaded.broken.len(),
        )
    };
    let second = WEB.replace("web", "api2");
    assert_eq!(write(WEB), (vec!["Service shop/web".into()], 0, 0));
    assert_eq!(
        write(&format!("{WEB}---\n{second}")),
        (
            vec!["Service shop/api2".into(), "Service shop/web".into()],
            0,
            0
        )
    );
    let half_way = write(&format!("{WEB}---\nkind: Service\nmetadata: {{name: ap"));
    assert_eq!(half_way.0, [""; 0], "all as it was");
    assert_eq!(half_way.2, 1);
    let wrong_shape = second.replace("port: 80", "port: eighty-one");
    assert_eq!(
        write(&format!("{WEB}---\n{wrong_shape}")),
        (vec!["Service shop/web".into()], 1, 0),
        "an object that has become wrong stays as it was"
    );
    assert_eq!(
        write(&second),
        (
            vec!["no Service shop/web".into(), "Service shop/api2".into()],
            0,
            0
        )
    );
    fs::remove_file(&path).unwrap();
    let loaded = manifests.load().unwrap();
    assert_eq!(names(&loaded.changes), ["no Service shop/api2"]);
}

#[test]
fn an_object_that_appears_twice_is_reported() {
    let (found, warnings, _) = load(&[("a.yaml", WEB), ("b.yaml", WEB)]);
    // In this order: the last one counts.
    assert_eq!(found, ["Service shop/web", "Service shop/web"]);
    assert_eq!(warnings.len(), 1);
}

#[test]
fn a_path_that_is_not_there_is_an_error_that_names_it() {
    let mut manifests = Manifests::new("/nonexistent/manifests".into(), "node-1");
    let error = manifests.load().unwrap_err().to_string();
    assert!(error.contains("/nonexistent/manifests"), "{error}");
}

/// A directory with manifests, and what they say.
struct Directory {
    directory: tempfile::TempDir,
    manifests: Manifests,
}

impl Directory {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifests = Manifests::new(directory.path().join("m"), "node-1");
        fs::create_dir(directory.path().join("m")).unwrap();
        Self {
            directory,
            manifests,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("m").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// What a load brings, and what it says of files that count as they last were.
    fn load(&mut self) -> (Vec<String>, Vec<String>) {
        let loaded = self.manifests.load().unwrap();
        let broken = loaded.broken.iter().map(ToString::to_string).collect();
        (names(&loaded.changes), broken)
    }
}

fn nothing() -> (Vec<String>, Vec<String>) {
    (Vec::new(), Vec::new())
}

#[test]
fn what_is_no_file_is_not_opened_and_said_once() {
    let mut site = Directory::new();
    site.write("a.yaml", WEB);
    nix::unistd::mkfifo(&site.path("b.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (changes, broken) = site.load();
    assert_eq!(changes, ["Service shop/web"]);
    assert_eq!(broken.len(), 1);
    assert!(
        broken[0].contains("b.yaml is left out: it is no file"),
        "{broken:?}"
    );
    assert_eq!(site.load(), nothing());
}

#[test]
fn a_link_that_leads_up_is_followed_once() {
    let mut site = Directory::new();
    site.write("a.yaml", WEB);
    std::os::unix::fs::symlink(".", site.path("here")).unwrap();
    std::os::unix::fs::symlink("..", site.path("up")).unwrap();
    assert_eq!(site.load().0, ["Service shop/web"]);
}

#[test]
fn a_file_of_the_same_size_and_time_and_a_link_that_leads_elsewhere_are_changes() {
    let mut site = Directory::new();
    let other = WEB.replace("web", "api");
    site.write("a.yaml", WEB);
    site.load();
    let path = site.path("a.yaml");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    site.write("a.yaml", &other);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(time).unwrap();
    assert_eq!(site.load().0, ["no Service shop/web", "Service shop/api"]);

    // A directory behind a link is exchanged for another, as a volume does.
    fs::remove_file(&path).unwrap();
    let version = |name: &str, text: &str| {
        let version = site.directory.path().join(name);
        fs::create_dir(&version).unwrap();
        fs::write(version.join("a.yaml"), text).unwrap();
        version
    };
    let (one, two) = (version("one", WEB), version("two", &other));
    let link = site.path("current");
    std::os::unix::fs::symlink(one, &link).unwrap();
    assert_eq!(site.load().0, ["no Service shop/api", "Service shop/web"]);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(two, &link).unwrap();
    assert_eq!(site.load().0, ["no Service shop/web", "Service shop/api"]);
}

#[test]
fn a_file_that_comes_to_nothing_withdraws_nothing_and_a_list_without_items_all() {
    let mut site = Directory::new();
    site.write("a.yaml", WEB);
    site.load();
    for empty in ["", "\n", "# to be written\n---\n"] {
        site.write("a.yaml", empty);
        let (changes, broken) = site.load();
        assert_eq!(changes, [""; 0]);
        assert!(broken[0].contains("a.yaml is empty"), "{broken:?}");
        assert_eq!(site.load(), nothing(), "once");
    }
    site.write("a.yaml", "kind: List\nitems: []\n");
    assert_eq!(site.load(), (vec!["no Service shop/web".into()], vec![]));
}

#[test]
fn what_has_not_changed_is_not_told_again() {
    let mut site = Directory::new();
    site.write("a.yaml", WEB);
    site.write("b.yaml", &WEB.replace("web", "api"));
    assert_eq!(site.load().0, ["Service shop/web", "Service shop/api"]);
    assert_eq!(site.load(), nothing());
    site.write("b.yaml", &WEB.replace("web", "api2"));
    assert_eq!(site.load().0, ["no Service shop/api", "Service shop/api2"]);
}

#[test]
fn of_files_with_the_same_object_the_last_counts_and_the_others_when_it_is_gone() {
    let mut site = Directory::new();
    let address = |loaded: &Loaded| -> Vec<String> {
        let changes = loaded.changes.iter();
        changes
            .filter_map(|change| match change {
                Change::Service(_, Some(service)) => Some(service.cluster_ips.v4?.to_string()),
                _ => None,
            })
            .collect()
    };
    for (index, name) in ["a.yaml", "b.yaml", "c.yaml"].iter().enumerate() {
        site.write(name, &WEB.replace("10.96.0.1", &format!("10.96.0.{index}")));
    }
    let loaded = site.manifests.load().unwrap();
    assert_eq!(
        address(&loaded).last().map(String::as_str),
        Some("10.96.0.2")
    );
    assert!(!loaded.warnings.is_empty());
    fs::remove_file(site.path("c.yaml")).unwrap();
    assert_eq!(address(&site.manifests.load().unwrap()), ["10.96.0.1"]);
    // One that does not count may change.
    site.write("a.yaml", &WEB.replace("10.96.0.1", "10.96.0.9"));
    assert_eq!(address(&site.manifests.load().unwrap()), [""; 0]);
    site.write("b.yaml", "kind: List\nitems: []\n");
    assert_eq!(address(&site.manifests.load().unwrap()), ["10.96.0.9"]);
    fs::remove_file(site.path("a.yaml")).unwrap();
    let loaded = site.manifests.load().unwrap();
    assert_eq!(names(&loaded.changes), ["no Service shop/web"]);
}
