use super::*;
use crate::agent::preflight;
use crate::dataplane::Mode;

fn found() -> Found {
    Found {
        node: "node-1".to_owned(),
        mode: "nftables",
        source: "https://10.0.0.1:6443".to_owned(),
        watches: vec![watch("Service"), watch("EndpointSlice")],
        inner: Some(Loop {
            programmed: true,
            ..Loop::default()
        }),
        is_silent: false,
        machine: Facts::default(),
        findings: Vec::new(),
    }
}

fn watch(kind: &str) -> Watch {
    Watch {
        kind: kind.to_owned(),
        complete: true,
        last_heard: None,
        failing_since: None,
        failing_for: 0,
        why: None,
    }
}

/// What comes first.
fn first(found: Found) -> String {
    let status = found.judge();
    let first = status.problems.into_iter().chain(status.suspicions).next();
    first.map_or_else(String::new, |problem| problem.what)
}

#[test]
fn a_node_that_does_its_work_has_no_problem() {
    let status = found().judge();
    assert!(status.healthy, "{status:?}");
    assert_eq!(
        (status.problems, status.suspicions),
        (Vec::new(), Vec::new())
    );
}

#[test]
fn the_worst_comes_first_and_makes_the_node_unhealthy() {
    type Break = fn(&mut Found);
    fn inner(found: &mut Found) -> &mut Loop {
        found.inner.as_mut().unwrap()
    }
    let cases: [(&str, Break); 7] = [
        ("the sync loop has not answered", |found| {
            (found.inner, found.is_silent) = (None, true);
        }),
        (
            "the API server https://10.0.0.1:6443 has not been reached for 200 s (refused): nothing new is programmed",
            |found| {
                found.watches[1].failing_for = 200;
                found.watches[1].why = Some("refused".to_owned());
            },
        ),
        (
            "nothing is programmed yet: the first lists of EndpointSlice have not come",
            |found| {
                found.inner = None;
                found.watches[1].complete = false;
            },
        ),
        ("nothing can be programmed for 30 s: no memory", |found| {
            inner(found).failing = Some((30, "no memory".to_owned()));
        }),
        ("the kernel refuses the rules of IPv6", |found| {
            inner(found).resting = vec!["IPv6".to_owned()];
        }),
        (
            "our tables were changed 7 times within ten minutes, last by nft (pid 9)",
            |found| {
                inner(found).repairs = Repaired {
                    lately: 7,
                    by: Some("nft (pid 9)".to_owned()),
                };
            },
        ),
        (
            "the kernel refuses 1 Services, which are left out: shop/web (IPv4)",
            |found| {
                inner(found).refused = vec!["shop/web (IPv4)".to_owned()];
            },
        ),
    ];
    for (words, change) in cases {
        let mut broken = found();
        // What is only suspicious does not hide it.
        broken.inner.as_mut().unwrap().contested = 3;
        change(&mut broken);
        assert!(!found_copy(&broken).judge().healthy, "{words}");
        let said = first(broken);
        assert!(said.starts_with(words), "{said:?} is not {words:?}");
    }
}

fn found_copy(found: &Found) -> Found {
    Found {
        node: found.node.clone(),
        mode: found.mode,
        source: found.source.clone(),
        watches: found.watches.clone(),
        inner: found.inner.clone(),
        is_silent: found.is_silent,
        machine: found.machine.clone(),
        findings: found.findings.clone(),
    }
}

#[test]
fn two_repairs_are_no_problem_and_a_suspicion_is_none_either() {
    let mut odd = found();
    let inner = odd.inner.as_mut().unwrap();
    inner.repairs.lately = 2;
    inner.contested = 1;
    inner.warnings =
        vec!["Service shop/web: spec.ports[0].port: 0 is not between 1 and 65535".to_owned()];
    let status = odd.judge();
    assert!(status.healthy);
    assert_eq!(status.suspicions.len(), 2, "{status:?}");
}

#[test]
fn what_is_found_on_the_machine_is_a_problem_if_it_is_certain() {
    let facts = Facts {
        ipv4_forwarding: Some(0),
        rp_filter: Some(1),
        ..Facts::default()
    };
    let mut lossy = found();
    lossy.findings = preflight::findings(&facts, &[], Mode::Nftables);
    let status = lossy.judge();
    assert!(
        status.problems[0]
            .what
            .starts_with("IPv4 forwarding is off")
    );
    assert!(status.suspicions[0].what.starts_with("rp_filter is strict"));
}
