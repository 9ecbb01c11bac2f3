//! The least of HTTP/1.1: servers that say who they are and whom they saw, and a client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;

use serde_json::{Value, json};

use crate::harness::{Failure, Host, PATIENCE, Seen};

/// Serves both families on every address of a host, for as long as the demo runs.
pub fn serve(host: &Host, ports: impl IntoIterator<Item = u16>) {
    for port in ports {
        let (ready, started) = channel();
        host.spawn(move || {
            // `::` takes IPv4 as well.
            let listener = TcpListener::bind(("::", port)).expect("a free port");
            ready.send(()).expect("a maker");
            for connection in listener.incoming().flatten() {
                // A client that went away needs no answer.
                thread::spawn(move || answer(connection));
            }
        });
        started.recv().expect("a server");
    }
}

fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut head = BufReader::new(&connection);
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
    }
    let local = connection.local_addr()?;
    let body = json!({
        "endpoint": SocketAddr::new(local.ip().to_canonical(), local.port()),
        "source": connection.peer_addr()?.ip().to_canonical(),
    })
    .to_string();
    write!(
        connection,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A GET request over a connection of its own, from the current namespace.
pub fn get(target: SocketAddr) -> Result<Seen, Failure> {
    let mut connection = TcpStream::connect_timeout(&target, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes())?;
    let mut response = String::new();
    connection.read_to_string(&mut response)?;
    seen(&response).ok_or(Failure::Other(std::io::ErrorKind::InvalidData))
}

fn seen(response: &str) -> Option<Seen> {
    let (head, body) = response.split_once("\r\n\r\n")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return None;
    }
    let body: Value = serde_json::from_str(body).ok()?;
    Some(Seen {
        endpoint: body["endpoint"].as_str()?.parse().ok()?,
        source: body["source"].as_str()?.parse().ok()?,
    })
}
