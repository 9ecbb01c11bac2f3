//! What watch events become, one by one.

use super::*;
use crate::core::model::Family;
use crate::source::objects;

fn slice(name: &str, version: &str) -> objects::EndpointSlice {
    serde_json::from_value(serde_json::json!({
        "metadata": {
            "name": name, "namespace": "default", "resourceVersion": version,
            "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05Z"},
        },
        "addressType": "IPv4",
    }))
    .unwrap()
}

fn teller() -> Teller {
    Teller::new(Converter::new("node-1"), mpsc::channel(1).0)
}

/// What the notices say, one word each.
fn told(notices: Vec<Notice>) -> Vec<String> {
    notices
        .into_iter()
        .flat_map(|notice| match notice {
            Notice::Changes(changes) => changes
                .changes
                .into_iter()
                .map(|change| match change {
                    Change::EndpointSlice(key, Some(_)) => format!("+{}", key.name),
                    Change::EndpointSlice(key, None) => format!("-{}", key.name),
                    other => format!("{other:?}"),
                })
                .collect(),
            Notice::Complete(kind) => vec![format!("complete {}", kind.name())],
            Notice::Failed(_, why, _) => vec![format!("failed {why}")],
        })
        .collect()
}

impl Teller {
    fn slices(&mut self, steps: Vec<Step<objects::EndpointSlice>>) -> Vec<String> {
        steps
            .into_iter()
            .flat_map(|step| told(self.take(Item::EndpointSlice(step))))
            .collect()
    }
}

#[test]
fn a_kind_is_complete_after_each_of_its_lists() {
    let mut teller = teller();
    let list = || vec![Step::Begin, Step::Listed(vec![slice("a", "1")]), Step::End];
    assert_eq!(teller.slices(list()), ["+a", "complete EndpointSlice"]);
    assert_eq!(teller.slices(list()), ["+a", "complete EndpointSlice"]);
}

#[test]
fn what_a_first_list_told_before_it_broke_off_is_gone_if_the_next_does_not_name_it() {
    let mut teller = teller();
    let mut steps = vec![Step::Begin];
    let all = (0..CHUNK).map(|n| slice(&format!("s{n}"), "1"));
    steps.push(Step::Listed(all.collect()));
    assert_eq!(teller.slices(steps).len(), CHUNK);
    let again = vec![Step::Begin, Step::Listed(vec![slice("s0", "1")]), Step::End];
    let told = teller.slices(again);
    assert_eq!(
        told.iter().filter(|word| word.starts_with('-')).count(),
        CHUNK - 1
    );
    assert_eq!(told.last().unwrap(), "complete EndpointSlice");
}

#[test]
fn what_a_later_list_does_not_name_is_gone_and_told_with_the_rest() {
    let mut teller = teller();
    teller.slices(vec![
        Step::Begin,
        Step::Listed(vec![slice("a", "1")]),
        Step::Listed(vec![slice("b", "2")]),
        Step::End,
    ]);
    let unfinished = vec![
        Step::Begin,
        Step::Listed(vec![slice("c", "5")]),
        Step::Failed("x".into(), Duration::ZERO),
    ];
    assert_eq!(teller.slices(unfinished), ["failed x"]);
    let again = vec![
        Step::Begin,
        Step::Listed(vec![slice("b", "2")]),
        Step::Listed(vec![slice("c", "6")]),
    ];
    assert_eq!(teller.slices(again), [""; 0]);
    assert_eq!(
        teller.slices(vec![Step::End]),
        ["+b", "+c", "-a", "complete EndpointSlice"]
    );
}

#[test]
fn an_object_that_a_later_list_has_and_cannot_be_read_stays_as_it_was() {
    let key = |name| Some(ObjectKey::new("default", name));
    let first = |teller: &mut Teller| {
        let all = ["a", "b", "c"].map(|name| slice(name, "1"));
        teller.slices(vec![Step::Begin, Step::Listed(all.into()), Step::End]);
    };
    let mut named = teller();
    first(&mut named);
    let again = || {
        let spoiled = Step::Spoiled(vec![key("b"), key("new")]);
        let listed = Step::Listed(vec![slice("a", "2")]);
        vec![Step::Begin, listed, spoiled, Step::End]
    };
    assert_eq!(
        named.slices(again()),
        ["+a", "-c", "complete EndpointSlice"]
    );
    assert_eq!(
        named.slices(again()),
        ["+a", "complete EndpointSlice"],
        "it is known as before"
    );
    let deleted = Step::Deleted(slice("b", "9"));
    assert_eq!(named.slices(vec![deleted]), ["-b"]);

    // Which one it is nobody knows: it may be any of them.
    let mut nameless = teller();
    first(&mut nameless);
    let spoiled = Step::Spoiled(vec![None]);
    assert_eq!(
        nameless.slices(vec![Step::Begin, spoiled, Step::End]),
        ["complete EndpointSlice"]
    );
    let told = nameless.slices(vec![Step::Begin, Step::End]);
    assert_eq!(
        told,
        ["-a", "-b", "-c", "complete EndpointSlice"],
        "the next one counts"
    );
}

#[test]
fn an_event_older_than_what_is_known_is_passed_over() {
    let mut teller = teller();
    teller.slices(vec![Step::Begin, Step::End]);
    let steps = vec![
        Step::Applied(slice("a", "10")),
        Step::Applied(slice("a", "9")),
        Step::Deleted(slice("a", "8")),
        Step::Applied(slice("a", "10")),
        Step::Deleted(slice("a", "11")),
    ];
    assert_eq!(teller.slices(steps), ["+a", "+a", "-a"]);
}

#[test]
fn slices_tell_when_their_change_began() {
    let mut teller = teller();
    let notices = teller.take(Item::EndpointSlice(Step::Applied(slice("a", "1"))));
    let [Notice::Changes(changes)] = notices.as_slice() else {
        panic!("{notices:?}");
    };
    let at = "2026-01-02T03:04:05Z".parse::<jiff::Timestamp>().unwrap();
    let expected = Trigger::At(
        ObjectKey::new("default", "a"),
        Family::V4,
        at.as_nanosecond(),
    );
    assert_eq!(changes.triggers, [expected]);
}

#[test]
fn what_a_later_list_has_in_the_version_that_is_known_is_no_news() {
    let mut teller = teller();
    let list = |version| {
        let objects = vec![slice("same", "1"), slice("other", version)];
        vec![Step::Begin, Step::Listed(objects), Step::End]
    };
    teller.slices(list("2"));
    let notices = list("3").into_iter();
    let notices: Vec<Notice> = notices
        .flat_map(|step| teller.take(Item::EndpointSlice(step)))
        .collect();
    let [Notice::Changes(changes), Notice::Complete(_)] = notices.as_slice() else {
        panic!("{notices:?}");
    };
    let names = changes.triggers.iter().map(|trigger| match trigger {
        Trigger::At(key, ..) | Trigger::Gone(key) => key.name.to_string(),
    });
    assert_eq!(names.collect::<Vec<_>>(), ["other"]);
    assert_eq!(changes.causes.len(), 1);
    assert_eq!(changes.changes.len(), 2, "what it says counts all the same");
}

#[test]
fn a_list_that_broke_off_keeps_nothing() {
    let mut teller = teller();
    teller.slices(vec![Step::Begin, Step::End]);
    teller.slices(vec![
        Step::Begin,
        Step::Listed(vec![slice("a", "1")]),
        Step::Failed("x".into(), Duration::ZERO),
    ]);
    let known = &teller.known[Kind::EndpointSlice as usize];
    assert!(known.listing.is_none() && known.held.changes.is_empty());
}
