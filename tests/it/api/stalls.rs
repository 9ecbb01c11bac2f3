//! A server that takes connections and says nothing. The proxy's own patience is minutes, so
//! these tests ask its source of objects, with less.

use std::sync::Arc;

use pointsman::source::cluster::{self, Notice, WatchOptions};
use pointsman::source::convert::Converter;

use super::*;

/// Follows a server with a patience of a second, until it has told the complete list of
/// Services. Returns whether that came in time.
fn completes(host: &Host, server: &ApiServer) -> bool {
    follows_until(host, server, |notice| {
        matches!(notice, Notice::Complete(cluster::Kind::Service))
    })
}

/// The same, until it has told something.
fn follows_until(
    host: &Host,
    server: &ApiServer,
    mut is_it: impl FnMut(&Notice) -> bool + Send + 'static,
) -> bool {
    let kubeconfig = server.kubeconfig();
    let follow = async move {
        let patience = Duration::from_secs(1);
        let client = cluster::connect_with_patience(Some(kubeconfig), None, patience).await;
        let options = WatchOptions {
            watch_timeout: Duration::from_secs(1),
            list_patience: patience,
            ..WatchOptions::new(crate::harness::NODE)
        };
        let converter = Converter::new(crate::harness::NODE);
        let mut notices = cluster::follow(&client.expect("a client").0, converter, &options);
        while let Some(notice) = notices.recv().await {
            if is_it(&notice) {
                return true;
            }
        }
        false
    };
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        // Far longer than a second and the grace that a connection without a word has.
        let patience = Duration::from_secs(30);
        runtime.block_on(async { tokio::time::timeout(patience, follow).await })
    })
    .unwrap_or(false)
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_list_that_stalls_is_given_up_and_asked_for_again() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    server.misbehave(Kind::Services, Phase::List, Answer::Stall, 1);
    assert!(completes(&host, &server), "{:?}", server.requests());
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_request_that_is_never_answered_is_given_up_and_made_again() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    server.misbehave(Kind::Services, Phase::List, Answer::Silence, 1);
    assert!(completes(&host, &server), "{:?}", server.requests());
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_list_that_takes_longer_than_the_server_gives_it_comes_in_pages() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    server.misbehave(Kind::Services, Phase::List, Answer::Slow, 2);
    assert!(completes(&host, &server), "{:?}", server.requests());
    let lists = server.requests_for(Kind::Services, Phase::List);
    let pages: Vec<bool> = lists
        .iter()
        .map(|list| list.asks("limit").is_some())
        .collect();
    assert_eq!(pages, [false, false, true], "{lists:?}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_server_that_was_restored_and_is_silent_is_listed() {
    let host = Host::new();
    let server = Arc::new(ApiServer::start(&host, cluster(web("web", 10, &[1]))));
    let restored = Arc::clone(&server);
    server.put(slice("web", "TCP", &["10.244.1.2"]));
    let was = server.version();
    // What it has now is older than what it has told, and it says nothing until it has come as far again.
    let has_restored = move |notice: &Notice| {
        if matches!(notice, Notice::Complete(cluster::Kind::EndpointSlice)) {
            restored.restore(cluster(web("web", 10, &[5])), was - 2);
        }
        let Notice::Changes(changes) = notice else {
            return false;
        };
        changes.changes.iter().any(|change| {
            let text = format!("{change:?}");
            text.contains("10.244.1.5")
        })
    };
    assert!(
        follows_until(&host, &server, has_restored),
        "{:?}",
        server.requests()
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_server_that_has_nothing_to_say_is_not_listed() {
    let host = Host::new();
    let server = Arc::new(ApiServer::start(&host, cluster(web("web", 10, &[1]))));
    let asked = |server: &ApiServer| {
        let lists = server.requests_for(Kind::Slices, Phase::List);
        let checks = lists
            .iter()
            .filter(|list| list.asks("fieldSelector") == Some("metadata.name=-"));
        (checks.count(), lists.len())
    };
    let other = Arc::clone(&server);
    // After a check it is watched again, and says what there is to say.
    let is_checked = move |notice: &Notice| {
        if matches!(notice, Notice::Complete(cluster::Kind::Service)) {
            let server = Arc::clone(&other);
            std::thread::spawn(move || {
                eventually("a check", || asked(&server).0 > 0);
                server.put(slice("web", "TCP", &["10.244.1.5"]));
            });
        }
        format!("{notice:?}").contains("10.244.1.5")
    };
    assert!(follows_until(&host, &server, is_checked));
    let (checks, lists) = asked(&server);
    assert_eq!(lists, checks + 1, "{:?}", server.requests());
}
