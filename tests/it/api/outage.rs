//! Without an API server, traffic goes on.

use std::net::TcpListener;

use super::*;

/// A port of pods that sends back what it gets, for as long as a client likes.
fn echo(pods: &Host) {
    let listener = pods.run(|| TcpListener::bind("0.0.0.0:8080").expect("a port"));
    pods.spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else {
                return;
            };
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = connection.read(&mut buffer) {
                    if connection.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn open(client: &Host) -> TcpStream {
    client.run(|| {
        let vip = "10.96.0.10:80".parse().expect("an address");
        let stream = TcpStream::connect_timeout(&vip, crate::harness::PATIENCE);
        let stream = stream.expect("a connection through the VIP");
        let patience = Some(crate::harness::PATIENCE);
        stream.set_read_timeout(patience).expect("a timeout");
        stream
    })
}

fn works(what: &str, stream: &mut TcpStream) {
    stream.write_all(b"hello").expect(what);
    let mut buffer = [0; 5];
    stream.read_exact(&mut buffer).expect(what);
    assert_eq!(&buffer, b"hello", "{what}");
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn connections_go_on_without_an_api_server_across_a_restart_too() {
    let world = World::new();
    let host = &world.node;
    echo(&world.pods);
    let mut objects = cluster(web("web", 10, &[1, 2]));
    objects.extend(web("gone", 11, &[3]));
    let mut server = ApiServer::start(host, objects);
    let process = start(host, &server);
    in_step("the first sync", host, &server);
    let mut old = open(&world.client);
    works("before", &mut old);

    server.go_away();
    process.wait_for("the watch failed");
    process.wait_for("server=http://127.0.0.1:6443");
    let before = elements(host);
    for kind in ["Service", "EndpointSlice", "Node", "ServiceCIDR"] {
        let failures = format!("pointsman_watch_failures_total{{kind=\"{kind}\"}}");
        let name = failures.clone();
        eventually(&name, || {
            let text = get(host, METRICS, "/metrics").map(|reply| reply.body);
            text.is_some_and(|text| text.contains(&failures))
        });
    }
    works("an old connection without the server", &mut old);
    works("a new one", &mut open(&world.client));
    assert_eq!(health(host, "/healthz"), Some(200));
    assert_eq!(health(host, "/livez"), Some(200));

    assert_eq!(process.terminate(), Some(0));
    works("an old connection without the proxy", &mut old);
    works("a new one", &mut open(&world.client));
    let process = launch(host, &server, &[]);
    wait_for_health(host, "/livez", 200);
    process.wait_for("the watch failed");
    assert_eq!(health(host, "/healthz"), Some(503));
    assert_eq!(elements(host), before);
    works("an old connection after a restart", &mut old);
    works("a new one", &mut open(&world.client));

    for object in web("gone", 11, &[3]) {
        server.delete(&object);
    }
    for object in web("new", 12, &[4]) {
        server.put(object);
    }
    server.forget_history();
    server.come_back(host);
    wait_for_health(host, "/healthz", 200);
    in_step("what changed meanwhile", host, &server);
    let vip = mentioning(&elements(host), "10.96.0.10");
    assert_eq!(vip, mentioning(&before, "10.96.0.10"), "nothing has moved");
    works("an old connection at the end", &mut old);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn a_connection_that_dies_without_a_word_is_noticed_and_made_anew() {
    let host = Host::new();
    let server = ApiServer::start(&host, cluster(web("web", 10, &[1])));
    let process = start(&host, &server);
    in_step("the first sync", &host, &server);
    // Whatever the server has said until now is the last that comes of these connections.
    let established = host.sh("ss -Htn state established dport = :6443");
    let local = |line: &str| {
        let address = line.split_whitespace().nth(2)?;
        Some(address.rsplit(':').next()?.to_owned())
    };
    let ports: Vec<String> = established.lines().filter_map(local).collect();
    let ports = ports.join(", ");
    assert!(!ports.is_empty());
    host.sh(&format!(
        "nft 'add table inet cut
         add chain inet cut output {{ type filter hook output priority 0; }}
         add rule inet cut output tcp dport 6443 tcp sport {{ {ports} }} drop
         add rule inet cut output tcp sport 6443 tcp dport {{ {ports} }} drop'"
    ));
    for object in web("late", 11, &[2]) {
        server.put(object);
    }
    // The kernel asks for half a minute; without that the silence would last for minutes.
    let noticed = (0..90).any(|_| {
        std::thread::sleep(Duration::from_secs(1));
        mentioning(&elements(&host), "10.96.0.11") != BTreeSet::new()
    });
    assert!(noticed, "{}", process.log());
    in_step("what came meanwhile", &host, &server);
}
