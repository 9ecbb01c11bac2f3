//! Health-check servers as their table changes. Numbers at the front of test names are those of
//! `docs/semantics.md`.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// Servers on loopback, and what has been told of those that could not be had.
struct Site {
    tables: watch::Sender<Table>,
    failures: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Site {
    fn new() -> Self {
        let (tables, table) = watch::channel(Table::default());
        let failures: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = Arc::clone(&failures);
        let failed = move |service: &ObjectKey, _: &str| {
            told.lock().unwrap().push(service.to_string());
        };
        let task = tokio::spawn(serve(
            table,
            Places::Own,
            Arc::new(|| true),
            Box::new(failed),
        ));
        Self {
            tables,
            failures,
            task,
        }
    }

    /// These Services are to be served on this port.
    fn wants(&self, services: &[&str], port: u16) {
        self.tables.send_replace(Table {
            checks: services
                .iter()
                .map(|name| (ObjectKey::new("default", *name), check(port)))
                .collect(),
            addresses: PerFamily {
                v4: Addresses::Some(vec![Ipv4Addr::LOCALHOST.into()]),
                v6: Addresses::Some(Vec::new()),
            },
        });
    }

    fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }
}

fn check(port: u16) -> HealthCheck {
    HealthCheck {
        port,
        local_endpoints: PerFamily {
            v4: Some(1),
            v6: None,
        },
    }
}

/// A port of loopback that nobody has.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// Asks on a connection that stays open. `None` if it does not.
async fn ask(stream: &mut TcpStream) -> Option<String> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .ok()?;
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.ok()?;
    (length > 0).then(|| String::from_utf8_lossy(&answer[..length]).into_owned())
}

async fn connect(port: u16) -> TcpStream {
    loop {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
            return stream;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_connection_that_is_kept_alive_ends_with_its_service() {
    let site = Site::new();
    let port = free_port().await;
    site.wants(&["web"], port);
    let mut stream = connect(port).await;
    let answer = ask(&mut stream).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(ask(&mut stream).await.is_some(), "it is kept alive");
    site.wants(&[], port);
    let mut rest = Vec::new();
    assert_eq!(
        stream.read_to_end(&mut rest).await.unwrap_or(0),
        0,
        "closed"
    );
    assert!(
        TcpStream::connect(("127.0.0.1", port)).await.is_err(),
        "nobody listens"
    );
}

#[tokio::test]
async fn a_port_that_goes_from_one_service_to_another_is_never_in_its_own_way() {
    let site = Site::new();
    let port = free_port().await;
    for round in 0..20 {
        let name = if round % 2 == 0 { "a" } else { "b" };
        site.wants(&[name], port);
        loop {
            let mut stream = connect(port).await;
            let answer = ask(&mut stream).await.unwrap_or_default();
            if answer.contains(&format!("\"name\": \"{name}\"")) {
                break;
            }
        }
    }
    assert_eq!(site.failures(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn i8_a_port_that_is_taken_is_told_once_and_tried_again_by_timer() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let site = Site::new();
    // A sync has come each time.
    for _ in 0..5 {
        site.wants(&["web"], port);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(4 * RETRY).await;
    assert_eq!(site.failures(), ["default/web"]);
    drop(taken);
    // No further table comes.
    tokio::time::sleep(2 * RETRY).await;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(ask(&mut stream).await.is_some());
    site.wants(&[], port);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let _taken = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    site.wants(&["web"], port);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(site.failures(), ["default/web"; 2], "it has changed again");
}

#[tokio::test]
async fn servers_end_when_nobody_can_tell_them_anything_any_more() {
    let site = Site::new();
    let port = free_port().await;
    site.wants(&["web"], port);
    let mut stream = connect(port).await;
    assert!(ask(&mut stream).await.is_some());
    drop(site.tables);
    site.task.await.unwrap();
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn half_sent_requests_leave_room_for_whole_ones() {
    let site = Site::new();
    let port = free_port().await;
    site.wants(&["web"], port);
    let mut idle = vec![connect(port).await];
    for _ in 0..600 {
        let mut stream = connect(port).await;
        stream.write_all(b"GET / HT").await.unwrap();
        idle.push(stream);
    }
    let mut stream = connect(port).await;
    assert!(ask(&mut stream).await.is_some());
    let mut oldest = idle.remove(0);
    let mut rest = Vec::new();
    assert_eq!(
        oldest.read_to_end(&mut rest).await.unwrap_or(0),
        0,
        "closed"
    );
}
