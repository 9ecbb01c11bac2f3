//! What a person types, as a question.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::core::explain::{From, Question, To};
use crate::core::model::{ObjectKey, Protocol};

/// What cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum QuestionError {
    /// It is no source.
    #[error("{0:?} is no source: it is an address, or `host` for this node")]
    From(String),
    /// It is no destination.
    #[error(
        "{0:?} is no destination: it is NAMESPACE/SERVICE[:PORT], ADDRESS:PORT, or the number of a NodePort, each with \
         /tcp, /udp or /sctp after it if there are several"
    )]
    To(String),
    /// They cannot meet.
    #[error("the source {0} and the destination {1} are not of one IP family")]
    Families(IpAddr, IpAddr),
}

/// Reads a question.
///
/// # Errors
///
/// If it is none, with what would be.
pub(crate) fn parse(from: Option<&str>, to: &str) -> Result<Question, QuestionError> {
    let from = match from {
        None => From::Anyone,
        Some("host") => From::Host,
        Some(text) => {
            let address: Option<IpAddr> = text.parse().ok();
            let address = address.ok_or_else(|| QuestionError::From(text.to_owned()))?;
            From::Address(address.to_canonical())
        }
    };
    let to = destination(to).ok_or_else(|| QuestionError::To(to.to_owned()))?;
    if let (From::Address(source), To::Address { address, .. }) = (from, &to)
        && source.is_ipv4() != address.is_ipv4()
    {
        return Err(QuestionError::Families(source, *address));
    }
    Ok(Question { from, to })
}

fn destination(text: &str) -> Option<To> {
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, last)) => match protocol(last) {
            Some(protocol) => (rest, Some(protocol)),
            None => (text, None),
        },
        None => (text, None),
    };
    if let Ok(port) = rest.trim_start_matches(':').parse::<u16>() {
        return (port > 0).then_some(To::NodePort { port, protocol });
    }
    if let Ok(socket) = rest.parse::<SocketAddr>() {
        return (socket.port() > 0).then(|| To::Address {
            address: socket.ip().to_canonical(),
            port: socket.port(),
            protocol,
        });
    }
    let (namespace, name) = rest.split_once('/')?;
    let (name, port) = match name.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (name, None),
    };
    let is_name = |text: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        !text.is_empty() && text.chars().all(allowed)
    };
    let is_complete = is_name(namespace) && is_name(name) && port.is_none_or(is_name);
    is_complete.then(|| To::Service {
        service: ObjectKey::new(namespace, name),
        port: port.map(str::to_owned),
        protocol,
    })
}

fn protocol(text: &str) -> Option<Protocol> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_service_an_address_or_a_node_port() {
        let address = |text: &str, protocol| {
            let socket: SocketAddr = text.parse().unwrap();
            To::Address {
                address: socket.ip(),
                port: socket.port(),
                protocol,
            }
        };
        let service = |namespace: &str, name: &str, port: Option<&str>, protocol| To::Service {
            service: ObjectKey::new(namespace, name),
            port: port.map(str::to_owned),
            protocol,
        };
        let node_port = |port, protocol| To::NodePort { port, protocol };
        let cases = [
            ("shop/web", service("shop", "web", None, None)),
            ("shop/web:http", service("shop", "web", Some("http"), None)),
            (
                "shop/web:80/udp",
                service("shop", "web", Some("80"), Some(Protocol::Udp)),
            ),
            (
                "shop/web/TCP",
                service("shop", "web", None, Some(Protocol::Tcp)),
            ),
            ("10.96.0.1:80", address("10.96.0.1:80", None)),
            (
                "[fd00::1]:53/udp",
                address("[fd00::1]:53", Some(Protocol::Udp)),
            ),
            ("30080", node_port(30080, None)),
            (":30080/sctp", node_port(30080, Some(Protocol::Sctp))),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(None, text).map(|q| q.to), Ok(expected), "{text}");
        }
        for text in [
            "",
            "web",
            "/",
            "shop/",
            "10.96.0.1",
            "10.96.0.1:0",
            "70000",
            "shop/web:",
            "a b/c",
            "fd00::1:80:",
        ] {
            assert!(
                matches!(parse(None, text), Err(QuestionError::To(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_source_is_an_address_or_the_node() {
        let from = |text| parse(Some(text), "shop/web").map(|question| question.from);
        assert_eq!(from("host"), Ok(From::Host));
        assert_eq!(from("10.0.0.1"), Ok(From::Address([10, 0, 0, 1].into())));
        assert!(matches!(from("pod"), Err(QuestionError::From(_))));
        assert!(matches!(
            parse(Some("10.0.0.1"), "[fd00::1]:80"),
            Err(QuestionError::Families(..))
        ));
    }
}
