//! Watches that go wrong: whatever happens on the way, the kernel ends up with what the objects
//! say, and what has nothing to do with it does not move.

use super::*;
use crate::harness::eventually_within;

/// The kinds whose watches are disturbed.
const BOTH: [Kind; 2] = [Kind::Services, Kind::Slices];

/// A proxy in step with a server.
struct Site {
    // The process goes before its server and its host.
    process: Pointsman,
    server: ApiServer,
    host: Host,
}

/// A Service that nobody touches, with more elements than all others together.
fn steady() -> [Value; 2] {
    let pods: Vec<u8> = (100..160).collect();
    web("steady", 99, &pods)
}

impl Site {
    fn new(format: Format) -> Self {
        let host = Host::new();
        let mut objects = cluster(steady());
        objects.extend(web("web", 10, &[1, 2]));
        objects.extend(web("gone", 11, &[3]));
        let server = ApiServer::start(&host, objects);
        if format == Format::Json {
            server.speak_json();
        }
        let process = start(&host, &server);
        in_step("the first sync", &host, &server);
        for kind in Kind::ALL {
            server.wait_until_heard(kind);
        }
        Self {
            process,
            server,
            host,
        }
    }

    /// Changes some objects, and deletes some.
    fn change(&self) {
        change(&self.server);
    }

    /// Waits until both kinds are watched a second time.
    fn wait_until_begun_again(&self) {
        eventually("the watches are begun again", || {
            BOTH.iter()
                .all(|kind| self.server.requests_for(*kind, Phase::Watch).len() > 1)
        });
    }

    /// Waits until no watch of these kinds is open.
    fn wait_until_closed(&self) {
        eventually("the watches are closed", || {
            BOTH.iter().all(|kind| self.server.open(*kind) == 0)
        });
    }
}

fn change(server: &ApiServer) {
    for object in web("gone", 11, &[3]) {
        server.delete(&object);
    }
    for object in web("new", 12, &[4, 5]) {
        server.put(object);
    }
    server.put(slice("web", "TCP", &["10.244.1.2", "10.244.1.6"]));
}

/// Each on a site of its own: most of the time they wait.
fn at_once<T: Copy + Send>(cases: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for case in cases {
            let check = &check;
            scope.spawn(move || check(case));
        }
    });
}

/// Disturbs a proxy that runs well, and checks that all is well again: what the disturbance
/// changed is programmed, the rest has not moved, and the next change is heard of. In each format.
fn recovers(name: &str, disturb: impl Fn(&Site) + Sync) {
    at_once([Format::Protobuf, Format::Json], |format| {
        recovers_from(&format!("{name}, {format:?}"), format, &disturb);
    });
}

fn recovers_from(name: &str, format: Format, disturb: impl FnOnce(&Site)) {
    let site = Site::new(format);
    let (host, server) = (&site.host, &site.server);
    let before = mentioning(&elements(host), "10.96.0.99");
    let operations = metric(host, "pointsman_operations_total");
    assert!(before.len() > 60, "{before:?}");
    disturb(&site);
    in_step(name, host, server);
    let after = elements(host);
    assert_eq!(mentioning(&after, "10.96.0.99"), before, "{name}");
    let done = metric(host, "pointsman_operations_total") - operations;
    // In how many syncs the changes come is chance; whoever programs anew what has not changed does this much.
    let anew = before.len() as f64;
    assert!(done < anew, "{name}: {done} operations for a few changes");
    server.put(slice("web", "TCP", &["10.244.1.7"]));
    for object in web("later", 13, &[8]) {
        server.put(object);
    }
    in_step(&format!("{name}: a later change"), host, server);
    assert_eq!(site.process.terminate(), Some(0), "{name}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_watch_that_says_410_is_begun_again_and_what_it_missed_is_made_up_for() {
    recovers("410 as an event", |site| {
        site.server.lose(change);
        for kind in BOTH {
            site.server.say_gone(kind);
        }
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_watch_that_is_refused_with_410_is_begun_again_and_what_it_missed_is_made_up_for() {
    recovers("410 as a status", |site| {
        site.server.lose(change);
        for kind in BOTH {
            site.server.cut(kind);
        }
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_watch_whose_connection_breaks_goes_on_where_it_was() {
    recovers("broken connections", |site| {
        let lists = || BOTH.map(|kind| site.server.requests_for(kind, Phase::List).len());
        let before = lists();
        for kind in BOTH {
            // It stays away for a moment, so that something is missed.
            site.server
                .misbehave(kind, Phase::Watch, Answer::Silence, usize::MAX);
            site.server.cut(kind);
        }
        site.wait_until_closed();
        site.change();
        site.server.behave();
        in_step("broken connections", &site.host, &site.server);
        assert_eq!(lists(), before, "nothing had to be listed again");
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_watch_that_the_server_ends_goes_on_where_it_was() {
    recovers("watches that end", |site| {
        for _ in 0..3 {
            // One that hears nothing yet does not hear that it is to end.
            let begun = || BOTH.map(|kind| site.server.begun(kind));
            eventually("both are watched", || !begun().contains(&0));
            let before = begun();
            for kind in BOTH {
                site.server.end(kind);
            }
            eventually("they are begun again", || {
                begun()
                    .iter()
                    .zip(before)
                    .all(|(now, before)| *now > before)
            });
        }
        site.change();
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_watch_that_stalls_is_made_up_for_when_its_connection_breaks() {
    recovers("stalled watches", |site| {
        for kind in BOTH {
            site.server
                .misbehave(kind, Phase::Watch, Answer::Stall, usize::MAX);
            site.server.cut(kind);
        }
        site.wait_until_begun_again();
        site.change();
        for kind in BOTH {
            site.server.wait_for_watch(kind);
            site.server.cut(kind);
        }
        site.server.behave();
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn events_that_come_late_or_twice_change_nothing() {
    recovers("late and double events", |site| {
        let server = &site.server;
        let event = |what: &str, mut object: Value, version: u64| {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            json!({"type": what, "object": object}).to_string()
        };
        let old = |pod: &str| slice("web", "TCP", &[pod]);
        let first = server.put(old("10.244.1.50"));
        let second = server.put(old("10.244.1.51"));
        server.say(Kind::Slices, event("MODIFIED", old("10.244.1.51"), second));
        server.say(Kind::Slices, event("ADDED", old("10.244.1.51"), second));
        server.say(Kind::Slices, event("MODIFIED", old("10.244.1.50"), first));
        server.say(Kind::Slices, event("DELETED", old("10.244.1.50"), first));
        let [service, slice] = web("gone", 11, &[3]);
        let gone = [server.delete(&service), server.delete(&slice)];
        for (kind, object, version) in [
            (Kind::Services, service, gone[0]),
            (Kind::Slices, slice, gone[1]),
        ] {
            server.say(kind, event("DELETED", object, version));
        }
        // What comes after them says that they have been heard.
        for object in web("marker", 14, &[9]) {
            server.put(object);
        }
        eventually("the marker", || {
            mentioning(&elements(&site.host), "10.244.1.9").len() == 1
        });
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_watch_goes_on_from_the_last_bookmark() {
    recovers("bookmarks only", |site| {
        let server = &site.server;
        // Versions pass that are about objects nobody selected.
        let mut other = node();
        other["metadata"]["name"] = json!("node-2");
        for _ in 0..5 {
            server.put(other.clone());
        }
        let version = server.version();
        for kind in BOTH {
            server.bookmark(kind);
            server.bookmark(kind);
        }
        server.forget_history();
        let lists = || BOTH.map(|kind| server.requests_for(kind, Phase::List).len());
        let before = lists();
        let begun = BOTH.map(|kind| server.begun(kind));
        for kind in BOTH {
            server.end(kind);
        }
        for (kind, begun) in BOTH.into_iter().zip(begun) {
            let mut asked = Vec::new();
            eventually("the watch goes on", || {
                asked = server.requests_for(kind, Phase::Watch);
                asked.len() > 1
            });
            let from = asked[1].asks("resourceVersion").map(str::to_owned);
            assert_eq!(from, Some(version.to_string()));
            eventually("it hears", || server.begun(kind) > begun);
        }
        assert_eq!(lists(), before, "nothing had to be listed again");
        site.change();
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_watch_that_is_refused_for_a_while_comes_back() {
    let answers = [
        Answer::TooMany(1),
        Answer::Refuse(500),
        Answer::Refuse(403),
        Answer::Refuse(503),
        Answer::Garbage,
        Answer::Surprise,
    ];
    at_once(answers, |answer| {
        // What cannot be read of a server's is a reason to list, not to watch again.
        let times = if answer == Answer::Surprise { 1 } else { 2 };
        recovers(&format!("{answer:?} instead of a watch"), |site| {
            for kind in BOTH {
                site.server.misbehave(kind, Phase::Watch, answer, times);
                site.server.cut(kind);
            }
            eventually("it has misbehaved", || site.server.has_misbehaved());
            site.change();
        });
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn what_something_on_the_way_says_instead_of_a_server_is_no_reason_to_list() {
    let answers = [404, 502, 503, 200].map(|code| match code {
        200 => Answer::Garbage,
        code => Answer::Proxy(code),
    });
    at_once(answers, |answer| {
        recovers(&format!("{answer:?} instead of a watch"), |site| {
            let lists = || BOTH.map(|kind| site.server.requests_for(kind, Phase::List).len());
            let before = lists();
            for kind in BOTH {
                site.server.misbehave(kind, Phase::Watch, answer, 4);
                site.server.cut(kind);
            }
            eventually_within(Duration::from_secs(60), "it has misbehaved", || {
                site.server.has_misbehaved()
            });
            site.change();
            in_step("a server that is back", &site.host, &site.server);
            assert_eq!(lists(), before, "{answer:?}");
        });
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_list_that_is_refused_for_a_while_comes_back() {
    let answers = [
        Answer::TooMany(1),
        Answer::Refuse(500),
        Answer::Refuse(403),
        Answer::Break(1),
        Answer::Garbage,
        Answer::Surprise,
    ];
    at_once(answers, |answer| {
        recovers(&format!("{answer:?} instead of a list"), |site| {
            for kind in BOTH {
                site.server.misbehave(kind, Phase::List, answer, 2);
            }
            site.server.lose(change);
            for kind in BOTH {
                site.server.say_gone(kind);
            }
            eventually("it has misbehaved", || site.server.has_misbehaved());
        });
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a7_an_update_that_changes_nothing_programs_nothing() {
    recovers("updates that change nothing", |site| {
        let operations = || metric(&site.host, "pointsman_operations_total");
        let before = operations();
        let [mut service, mut slice] = web("web", 10, &[1, 2]);
        for number in 0..5 {
            // What a proxy does not read.
            service["metadata"]["annotations"] = json!({"example.com/number": number.to_string()});
            slice["metadata"]["generation"] = json!(number);
            site.server.put(service.clone());
            site.server.put(slice.clone());
        }
        let changes = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
        eventually("they have been taken in", || {
            metric(&site.host, changes) >= 5.0
        });
        assert_eq!(operations(), before);
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_line_that_is_no_json_is_a_reason_to_list_again() {
    recovers("a line that is no JSON", |site| {
        site.server.lose(change);
        for kind in BOTH {
            site.server.say(kind, "<html>502 Bad Gateway</html>");
        }
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_watch_that_ends_in_the_middle_of_an_event_goes_on_before_it() {
    recovers("half an event", |site| {
        for object in web("web", 10, &[1, 77]) {
            site.server.end_in_the_middle(&object);
        }
        site.wait_until_begun_again();
        site.change();
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_server_that_was_gone_is_found_again_and_what_it_forgot_is_listed() {
    for forgets in [false, true] {
        let Site {
            process,
            mut server,
            host,
        } = Site::new(Format::Protobuf);
        let before = mentioning(&elements(&host), "10.96.0.99");
        server.go_away();
        process.wait_for("the watch failed");
        change(&server);
        if forgets {
            server.forget_history();
        }
        server.come_back(&host);
        in_step("what changed while it was gone", &host, &server);
        assert_eq!(mentioning(&elements(&host), "10.96.0.99"), before);
    }
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn an_event_of_the_wrong_shape_is_a_reason_to_list_again() {
    recovers_from("an object of the wrong shape", Format::Json, |site| {
        let mut shapes = web("gone", 11, &[3]);
        shapes[0]["spec"] = json!(5);
        shapes[1]["endpoints"] = json!("none");
        site.server.lose(change);
        for (kind, object) in BOTH.into_iter().zip(shapes) {
            let line = json!({"type": "MODIFIED", "object": object});
            site.server.say(kind, line.to_string());
        }
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn json_that_is_no_event_is_a_reason_to_list_again() {
    recovers("JSON that is no event", |site| {
        site.server.lose(change);
        for kind in BOTH {
            site.server.say(kind, r#"{"surprise": 1}"#);
        }
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn protobuf_that_is_mangled_is_a_reason_to_list_again() {
    type Mangle = fn(&mut Vec<u8>);
    let mangled: [(&str, Mangle); 6] = [
        ("a length beyond everything", |bytes| bytes[0] = 0xff),
        ("no magic", |bytes| {
            let at = bytes
                .windows(4)
                .position(|part| part == b"k8s\0")
                .expect("an object");
            bytes[at] = b'K';
        }),
        ("another kind", |bytes| {
            let at = bytes.windows(7).position(|part| part == b"Service");
            let at = at.or_else(|| bytes.windows(8).position(|part| part == b"Endpoint"));
            bytes[at.expect("a kind")] = b'X';
        }),
        ("an unknown kind of event", |bytes| bytes[6] = b'X'),
        ("a name that is no text", |bytes| {
            let at = bytes
                .windows(3)
                .position(|part| part == b"web")
                .expect("a name");
            bytes[at] = 0xff;
        }),
        ("a frame of nothing", |bytes| *bytes = vec![0; 4]),
    ];
    at_once(mangled, |(name, mangle)| {
        recovers_from(name, Format::Protobuf, |site| {
            site.server.lose(change);
            for (kind, object) in BOTH.into_iter().zip(web("web", 10, &[1, 2])) {
                let event = json!({"type": "MODIFIED", "object": object});
                let mut bytes = ApiServer::in_protobuf(&event);
                mangle(&mut bytes);
                site.server.send(kind, bytes);
            }
        });
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_server_that_changes_its_format_is_understood_from_its_next_answer_on() {
    let cases = [Format::Protobuf, Format::Json];
    at_once(cases, |format| {
        recovers_from("the format changes", format, |site| {
            site.server.lose(change);
            // In the middle of a stream first, where it makes no sense.
            for (kind, object) in BOTH.into_iter().zip(web("web", 10, &[1, 2])) {
                let event = json!({"type": "MODIFIED", "object": object});
                match format {
                    Format::Protobuf => {
                        site.server.speak_json();
                        site.server.send(kind, format!("{event}\n"));
                    }
                    Format::Json => {
                        site.server.speak_protobuf();
                        site.server.send(kind, ApiServer::in_protobuf(&event));
                    }
                }
            }
            eventually("both are listed in the other format", || {
                BOTH.iter().all(|kind| {
                    let lists = site.server.requests_for(*kind, Phase::List);
                    lists.last().is_some_and(|list| list.format != format)
                })
            });
        });
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn an_object_of_ten_megabytes_is_read_and_one_of_twenty_is_a_reason_to_list_again() {
    recovers_from("large objects", Format::Protobuf, |site| {
        let large = |megabytes: usize| {
            let [mut service, _] = web("web", 10, &[]);
            service["metadata"]["annotations"] =
                json!({"example.com/x": "x".repeat(megabytes << 20)});
            service
        };
        site.server.put(large(10));
        // What comes after it says that it has been heard.
        for object in web("new", 12, &[4, 5]) {
            site.server.put(object);
        }
        in_step("ten megabytes", &site.host, &site.server);
        let lists = site.server.requests_for(Kind::Services, Phase::List);
        assert_eq!(lists.len(), 1, "nothing had to be listed again");
        let event = json!({"type": "MODIFIED", "object": large(20)});
        site.server.lose(change);
        for kind in BOTH {
            site.server.send(kind, ApiServer::in_protobuf(&event));
        }
    });
}
