//! What others ask this process, and what it tells them: health, metrics, health checks of Services,
//! NodePorts on loopback, events in the cluster.

pub mod admin;
pub mod events;
pub mod health;
pub mod health_checks;
pub mod http;
pub mod local_socket;
pub mod loopback;
pub mod registry;
