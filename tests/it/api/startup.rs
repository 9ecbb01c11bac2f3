//! The first lists: what is asked for, and what waits for what.

use std::time::{Duration, Instant};

use super::*;
use crate::api_server::Request;

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a1_a2_a3_m2_lists_come_compressed_in_protobuf_from_the_cache_and_are_of_what_matters() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let _process = start(&host, &server);
    in_step("the first sync", &host, &server);
    let selectors = [
        (
            Kind::Services,
            Some("!service.kubernetes.io/service-proxy-name"),
            Some("spec.clusterIP!=None"),
        ),
        (Kind::Slices, Some("!service.kubernetes.io/headless"), None),
        (Kind::Nodes, None, Some("metadata.name=node-1")),
        (Kind::ServiceCidrs, None, None),
    ];
    for (kind, labels, fields) in selectors {
        server.wait_for_watch(kind);
        let [lists, watches] =
            [Phase::List, Phase::Watch].map(|phase| server.requests_for(kind, phase));
        assert_eq!([lists.len(), watches.len()], [1, 1], "{kind:?}");
        for request in lists.iter().chain(&watches) {
            assert_eq!(request.format, Format::Protobuf, "{request:?}");
            assert_eq!(request.asks("labelSelector"), labels, "{kind:?}");
            assert_eq!(request.asks("fieldSelector"), fields, "{kind:?}");
            assert!(request.agent.starts_with("pointsman/"), "{request:?}");
        }
        let list = &lists[0];
        assert_eq!(list.asks("resourceVersion"), Some("0"), "{list:?}");
        assert!(list.accept_encoding.contains("gzip"), "{list:?}");
        assert_eq!(watches[0].asks("allowWatchBookmarks"), Some("true"));
        let timeout = watches[0].asks("timeoutSeconds").expect("a timeout");
        let timeout: u32 = timeout.parse().expect("seconds");
        assert!((300..=600).contains(&timeout), "{timeout} s");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn m2_the_configuration_says_in_which_form_objects_are_asked_for() {
    let both = "application/vnd.kubernetes.protobuf,application/json";
    let cases = [
        (
            "application/vnd.kubernetes.protobuf",
            both,
            Format::Protobuf,
        ),
        (
            "application/json",
            "application/json,application/vnd.kubernetes.protobuf",
            Format::Json,
        ),
        ("application/cbor", both, Format::Protobuf),
    ];
    for (content_type, accept, format) in cases {
        let host = Host::new();
        let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
        if format == Format::Json {
            server.speak_json();
        }
        let flag = format!("--kube-api-content-type={content_type}");
        let process = launch(&host, &server, &[&flag]);
        process.wait_for("synced");
        in_step(content_type, &host, &server);
        let lists = server.requests_for(Kind::Slices, Phase::List);
        assert_eq!(lists[0].accept, accept, "{content_type}");
        assert_eq!(lists[0].format, format, "{content_type}");
        if content_type.ends_with("cbor") {
            process.wait_for("\"application/cbor\" cannot be read here");
        }
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn m2_all_watches_share_one_connection_and_find_another_when_it_breaks() {
    let host = Host::new();
    let mut server = ApiServer::start_secure(&host, cluster(web("web", 10, &[1])));
    let began = Instant::now();
    let _process = start(&host, &server);
    for kind in Kind::ALL {
        server.wait_for_watch(kind);
    }
    // What writes events may have made one before that was known; and where the first takes long, nobody waits for it.
    let is_quick = began.elapsed() < Duration::from_secs(1);
    let made = server.connections();
    assert!(made <= 2 || !is_quick, "{made}");
    let established = || {
        let shown = host.sh("ss -Htn state established dport = :6443");
        shown.lines().count()
    };
    eventually("one connection is left", || established() == 1);
    server.go_away();
    for object in web("late", 11, &[2]) {
        server.put(object);
    }
    server.come_back(&host);
    in_step("what changed while it was gone", &host, &server);
    eventually("one connection is left again", || established() == 1);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a1_a2_what_the_selectors_leave_out_is_not_served_and_goes_when_it_is_labelled() {
    let labelled = |mut object: Value, label: &str| {
        object["metadata"]["labels"][label] = json!("x");
        object
    };
    let host = Host::new();
    let mut objects = cluster(web("web", 10, &[1, 2]));
    objects.extend(web("lost", 11, &[3]));
    let [other, slice] = web("other", 12, &[4]);
    objects.extend([
        labelled(other, "service.kubernetes.io/service-proxy-name"),
        slice,
    ]);
    let [empty, slice] = web("empty", 13, &[5]);
    objects.extend([empty, labelled(slice, "service.kubernetes.io/headless")]);
    let server = ApiServer::start(&host, objects);
    let _process = start(&host, &server);
    in_step("the first sync", &host, &server);
    let found = elements(&host);
    assert!(mentioning(&found, "10.96.0.12").is_empty(), "{found:?}");
    assert!(!found["ip no-endpoints-ips"].is_empty(), "{found:?}");

    let [service, slice] = web("lost", 11, &[3]);
    server.put(labelled(
        service,
        "service.kubernetes.io/service-proxy-name",
    ));
    eventually("the Service is gone", || {
        mentioning(&elements(&host), "10.96.0.11").is_empty()
    });
    server.put(labelled(slice, "service.kubernetes.io/headless"));
    server.put(web("lost", 11, &[3])[0].clone());
    in_step("the Service is back, without its slice", &host, &server);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn m2_what_the_servers_cache_does_not_have_is_asked_for_in_pages() {
    let host = Host::new();
    let objects = (1..=10).flat_map(|number| web(&format!("web-{number}"), number, &[number]));
    let server = ApiServer::start(&host, cluster(objects));
    server.limit_pages(3);
    server.misbehave(Kind::Slices, Phase::List, Answer::Refuse(410), 1);
    let process = start(&host, &server);
    let asked = |kind: Kind| {
        let lists = server.requests_for(kind, Phase::List);
        let said = |list: &Request| match (list.asks("resourceVersion"), list.asks("limit")) {
            (Some("0"), None) => "cache",
            (Some(_), None) => "version",
            (None, Some(_)) => "page",
            other => panic!("{other:?}"),
        };
        lists.iter().map(said).collect::<Vec<_>>()
    };
    in_step("pages of slices", &host, &server);
    let pages = ["page"; 4];
    assert_eq!(asked(Kind::Slices), [&["cache"], &pages[..]].concat());
    assert_eq!(asked(Kind::Services), ["cache"]);
    for kind in [Kind::Services, Kind::Slices] {
        server.wait_until_heard(kind);
    }
    // What the cache has not heard of yet, etcd has; a server that is late for another reason is let be.
    server.misbehave(Kind::Services, Phase::List, Answer::TooNew, 1);
    server.misbehave(Kind::Slices, Phase::List, Answer::Refuse(504), 1);
    server.lose(|server| {
        server.put(web("late", 30, &[30])[0].clone());
        server.put(slice("web-5", "TCP", &["10.244.1.55"]));
    });
    for kind in [Kind::Services, Kind::Slices] {
        server.say_gone(kind);
    }
    in_step("what was lost", &host, &server);
    let again = [&["cache", "version"], &pages[..]].concat();
    assert_eq!(asked(Kind::Services), again);
    let again = [&["cache"], &pages[..], &["version", "version"]].concat();
    assert_eq!(asked(Kind::Slices), again);
    process.wait_for("Too large resource version");
    let [service, _] = web("web-3", 3, &[]);
    server.delete(&service);
    server.put(web("late", 20, &[20])[0].clone());
    server.put(slice("web-4", "TCP", &["10.244.1.4", "10.244.1.44"]));
    in_step("what changed since", &host, &server);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn g2_nothing_is_programmed_before_services_and_slices_are_complete() {
    for slow in [Kind::Services, Kind::Slices] {
        let host = Host::new();
        let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
        server.misbehave(slow, Phase::List, Answer::Stall, usize::MAX);
        let process = launch(&host, &server, &[]);
        for kind in Kind::ALL {
            server.wait_for_watch(kind);
        }
        wait_for_health(&host, "/livez", 200);
        // More of what is complete must not set it off either.
        let [service, slice] = web("more", 11, &[2]);
        server.put(if slow == Kind::Services {
            slice
        } else {
            service
        });
        for _ in 0..50 {
            assert_eq!(host.ruleset(), "", "{slow:?} are not complete");
            assert_eq!(health(&host, "/healthz"), Some(503));
        }
        server.behave();
        process.wait_for("synced");
        in_step("all is complete", &host, &server);
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn g2_rules_that_are_there_stay_untouched_until_all_is_complete() {
    for slow in [Kind::Services, Kind::Slices] {
        let host = Host::new();
        let mut objects = cluster(web("web", 10, &[1, 2, 3]));
        objects.extend(web("gone", 11, &[4]));
        let server = ApiServer::start(&host, objects);
        let process = start(&host, &server);
        in_step("the first sync", &host, &server);
        assert_eq!(process.terminate(), Some(0));
        let before = host.ruleset();

        let [service, slice] = web("gone", 11, &[4]);
        server.delete(&service);
        server.delete(&slice);
        server.put(self::slice("web", "TCP", &["10.244.1.2", "10.244.1.9"]));
        server.misbehave(slow, Phase::List, Answer::Stall, usize::MAX);
        let process = launch(&host, &server, &[]);
        for kind in Kind::ALL {
            server.wait_for_watch(kind);
        }
        wait_for_health(&host, "/livez", 200);
        for _ in 0..50 {
            assert_eq!(host.ruleset(), before, "{slow:?} are not complete");
        }
        server.behave();
        process.wait_for("synced");
        in_step("what changed meanwhile", &host, &server);
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn g2_g10_a_service_cidr_list_that_is_slow_or_fails_holds_up_nothing() {
    let failures = [
        Answer::Stall,
        Answer::Silence,
        Answer::Refuse(403),
        Answer::Refuse(500),
        Answer::Garbage,
        Answer::Surprise,
    ];
    for failure in failures {
        let host = Host::new();
        let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
        server.misbehave(Kind::ServiceCidrs, Phase::List, failure, usize::MAX);
        let _process = start(&host, &server);
        let found = elements(&host);
        assert!(!mentioning(&found, "10.96.0.10").is_empty(), "{found:?}");
        assert!(found["ip service-cidrs"].is_empty(), "{found:?}");
        wait_for_health(&host, "/healthz", 200);
        server.behave();
        in_step(&format!("the ranges, after {failure:?}"), &host, &server);
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn g2_a_server_that_knows_no_service_cidrs_holds_up_nothing() {
    let host = Host::new();
    let objects = web("web", 10, &[1]);
    let server = ApiServer::start(&host, [vec![node()], objects.to_vec()].concat());
    let always = usize::MAX;
    server.misbehave(Kind::ServiceCidrs, Phase::List, Answer::Refuse(404), always);
    let _process = start(&host, &server);
    in_step("without ranges", &host, &server);
    wait_for_health(&host, "/healthz", 200);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn m2_lists_of_many_objects_arrive_whole() {
    for (format, pages) in [
        (Format::Protobuf, false),
        (Format::Protobuf, true),
        (Format::Json, false),
        (Format::Json, true),
    ] {
        let host = Host::new();
        let number = |number: u16| {
            let address = format!("10.96.{}.{}", 1 + number / 200, 1 + number % 200);
            service(&format!("web-{number:04}"), &[&address]).0
        };
        let server = ApiServer::start(&host, cluster((0..1200).map(number)));
        if format == Format::Json {
            server.speak_json();
        }
        if pages {
            server.misbehave(Kind::Services, Phase::List, Answer::Refuse(410), 1);
        }
        let _process = start(&host, &server);
        in_step(
            &format!("1200 Services, {format:?}, in pages: {pages}"),
            &host,
            &server,
        );
        let asked = server.requests_for(Kind::Services, Phase::List).len();
        assert_eq!(asked > 1, pages, "{asked} pages");
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_first_list_that_breaks_off_leaves_nothing_behind_that_the_next_does_not_name() {
    let host = Host::new();
    let number = |number: u16| {
        let address = format!("10.96.{}.{}", 1 + number / 200, 1 + number % 200);
        service(&format!("web-{number:04}"), &[&address]).0
    };
    // More than are handed on at once while the first list is read.
    let server = ApiServer::start(&host, cluster((0..700).map(number)));
    server.misbehave(Kind::Services, Phase::List, Answer::Break(650), 1);
    server.misbehave(Kind::Services, Phase::List, Answer::Stall, 1);
    let _process = launch(&host, &server, &[]);
    eventually("the list is asked for again", || {
        server.requests_for(Kind::Services, Phase::List).len() == 2
    });
    server.wait_for_watch(Kind::Services);
    for gone in [0, 1, 300] {
        server.delete(&number(gone));
    }
    server.behave();
    in_step("the list as it is now", &host, &server);
}
