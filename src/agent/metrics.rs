//! What the agent counts and measures (docs/semantics.md, J): syncs, changes, watches, flows.

use std::time::Duration;

use prometheus::core::{AtomicU64, GenericCounter};
use prometheus::{
    Counter, GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};

use crate::core::model::{Family, Protocol};
use crate::dataplane::Mode;
use crate::serve::registry::{Made, Metrics};
use crate::source::cluster::Kind;

/// 1 ms, doubled fourteen times: what kube-proxy measures syncs with.
fn doubling() -> Vec<f64> {
    (0..15).map(|power| 0.001 * f64::from(1 << power)).collect()
}

/// From a microsecond: what ours take.
fn fine() -> Vec<f64> {
    (0..24).map(|power| 1e-6 * f64::from(1 << power)).collect()
}

/// kube-proxy's for the time from a change to its effect.
fn programming() -> Vec<f64> {
    let seconds = (1..60)
        .chain((60..120).step_by(5))
        .chain((120..=300).step_by(30));
    [0.25, 0.5]
        .into_iter()
        .chain(seconds.map(f64::from))
        .collect()
}

/// Powers of four: operations or bytes of a transaction.
fn sizes() -> Vec<f64> {
    (0..14).map(|power| f64::from(1 << (2 * power))).collect()
}

/// The parts of a sync that took time.
#[derive(Debug, Clone, Copy)]
pub struct SyncTimes {
    /// All of it.
    pub whole: Duration,
    /// Compiling and comparing.
    pub computing: Duration,
    /// The kernel's part.
    pub kernel: Duration,
}

/// What is counted. Clones count together.
#[derive(Debug, Clone)]
#[allow(
    missing_docs,
    reason = "the names are the metrics', which have help texts"
)]
pub struct AgentMetrics {
    families: Vec<Family>,
    sync_duration: HistogramVec,
    full_sync_duration: HistogramVec,
    partial_sync_duration: HistogramVec,
    network_programming: HistogramVec,
    last_synced: GaugeVec,
    last_queued: GaugeVec,
    pub endpoint_changes_pending: IntGauge,
    pub endpoint_changes: IntCounter,
    pub service_changes_pending: IntGauge,
    pub service_changes: IntCounter,
    no_local_endpoints: IntGaugeVec,
    conntrack_duration: HistogramVec,
    conntrack_deleted: IntCounterVec,
    refused_on_loopback: IntCounterVec,
    sync_failures: IntCounterVec,
    cleanup_failures: IntCounterVec,
    elements: IntGaugeVec,
    written: Option<IntGaugeVec>,
    operations: IntCounter,
    bytes: IntCounter,
    transaction_operations: HistogramVec,
    transaction_bytes: HistogramVec,
    kernel_duration: HistogramVec,
    compile_duration: HistogramVec,
    pub contested: IntGauge,
    pub refused: IntGauge,
    pub interference: IntCounter,
    pub watch_failures: IntCounterVec,
    ejected: IntGauge,
    pub ejections: IntCounter,
    looking: Counter,
    pub warnings: IntCounterVec,
}

impl AgentMetrics {
    /// All at zero.
    ///
    /// # Errors
    ///
    /// If there is a metric of one of the names already.
    pub fn new(r: &Metrics, families: &[Family], mode: Mode) -> Made<Self> {
        let f = &["ip_family"];
        let iptables = mode == Mode::Iptables;
        let metrics = Self {
            sync_duration: r.histogram(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds",
                f,
                doubling(),
            )?,
            full_sync_duration: r.histogram(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                f,
                doubling(),
            )?,
            partial_sync_duration: r.histogram(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
                f,
                doubling(),
            )?,
            network_programming: r.histogram(
                "kubeproxy_network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                f,
                programming(),
            )?,
            last_synced: r.float_gauges(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                f,
            )?,
            last_queued: r.float_gauges(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
                f,
            )?,
            endpoint_changes_pending: r.gauge(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Pending proxy rules Endpoint changes",
            )?,
            endpoint_changes: r.counter(
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "Cumulative proxy rules Endpoint changes",
            )?,
            service_changes_pending: r.gauge(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Pending proxy rules Service changes",
            )?,
            service_changes: r.counter(
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "Cumulative proxy rules Service changes",
            )?,
            no_local_endpoints: r.gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Number of services with a Local traffic policy and no endpoints",
                &["ip_family", "traffic_policy"],
            )?,
            conntrack_duration: r.histogram(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency latency in seconds",
                f,
                doubling(),
            )?,
            conntrack_deleted: r.counters(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                "Cumulative conntrack flows deleted by conntrack reconciler",
                f,
            )?,
            refused_on_loopback: r.counters(
                "kubeproxy_nftables_localhost_nodeport_rejected_packets_total",
                "Number of packets rejected on localhost NodePorts. UDP and SCTP are always rejected",
                &["ip_family", "protocol"],
            )?,
            sync_failures: if iptables {
                r.counters(
                    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
                    "Cumulative proxy iptables restore failures",
                    f,
                )?
            } else {
                r.counters(
                    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                    "Cumulative proxy nftables sync failures",
                    f,
                )?
            },
            cleanup_failures: if iptables {
                r.counters(
                    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
                    "Cumulative proxy iptables partial restore failures",
                    f,
                )?
            } else {
                r.counters(
                    "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
                    "Cumulative proxy nftables cleanup failures",
                    f,
                )?
            },
            elements: if iptables {
                r.gauges(
                    "kubeproxy_sync_proxy_rules_iptables_total",
                    "Total number of iptables rules owned by kube-proxy",
                    &["ip_family", "table"],
                )?
            } else {
                r.gauges(
                    "pointsman_elements",
                    "Elements of our nftables sets and maps",
                    &["ip_family", "set"],
                )?
            },
            written: if iptables {
                Some(r.gauges(
                    "kubeproxy_sync_proxy_rules_iptables_last",
                    "Number of iptables rules written by kube-proxy in last sync",
                    &["ip_family", "table"],
                )?)
            } else {
                None
            },
            operations: r.counter("pointsman_operations_total", "Element operations committed")?,
            bytes: r.counter(
                "pointsman_netlink_sent_bytes_total",
                "Bytes of committed transactions",
            )?,
            transaction_operations: r.histogram(
                "pointsman_transaction_operations",
                "Element operations of a transaction",
                &[],
                sizes(),
            )?,
            transaction_bytes: r.histogram(
                "pointsman_transaction_size_bytes",
                "Bytes of a transaction",
                &[],
                sizes(),
            )?,
            kernel_duration: r.histogram(
                "pointsman_transaction_kernel_duration_seconds",
                "Time that the kernel took for a transaction",
                &[],
                fine(),
            )?,
            compile_duration: r.histogram(
                "pointsman_compile_duration_seconds",
                "Time that compiling and comparing took before a transaction",
                &[],
                fine(),
            )?,
            contested: r.gauge(
                "pointsman_contested_destinations",
                "Addresses and ports that more than one Service claims",
            )?,
            refused: r.gauge(
                "pointsman_refused_services",
                "Services that are left out because the kernel refuses them",
            )?,
            interference: r.counter(
                "pointsman_interference_total",
                "Changes of our tables by others that were put right",
            )?,
            watch_failures: r.counters(
                "pointsman_watch_failures_total",
                "Watches that failed and were tried again",
                &["kind"],
            )?,
            ejected: r.gauge(
                "pointsman_ejected_endpoints",
                "Endpoints that are passed over because they do not answer",
            )?,
            ejections: r.counter(
                "pointsman_endpoint_ejections_total",
                "Times that an endpoint was found not to answer",
            )?,
            looking: r.float_counter(
                "pointsman_connection_looks_seconds_total",
                "Time that looking at connections took, for algorithms and ejection",
            )?,
            warnings: r.counters(
                "pointsman_warnings_total",
                "Fields of objects that could not be used",
                &["field"],
            )?,
            families: families.to_vec(),
        };
        // What has not happened yet is 0, not absent.
        for kind in Kind::ALL {
            let _ = metrics.watch_failures.with_label_values(&[kind.name()]);
        }
        for family in families {
            let family = family.name();
            for histogram in [
                &metrics.sync_duration,
                &metrics.full_sync_duration,
                &metrics.partial_sync_duration,
                &metrics.network_programming,
                &metrics.conntrack_duration,
            ] {
                let _ = histogram.with_label_values(&[family]);
            }
            for counter in [
                &metrics.conntrack_deleted,
                &metrics.sync_failures,
                &metrics.cleanup_failures,
            ] {
                let _ = counter.with_label_values(&[family]);
            }
            for gauge in [&metrics.last_synced, &metrics.last_queued] {
                let _ = gauge.with_label_values(&[family]);
            }
            for policy in ["internal", "external"] {
                let _ = metrics
                    .no_local_endpoints
                    .with_label_values(&[family, policy]);
            }
        }
        Ok(metrics)
    }

    /// So many more packets to a `NodePort` on loopback were refused.
    pub fn refused_on_loopback(&self, family: Family, protocol: Protocol, by: u64) {
        let labels = [family.name(), &protocol.to_string().to_uppercase()];
        self.refused_on_loopback
            .with_label_values(&labels)
            .inc_by(by);
    }

    /// A sync waits to happen.
    pub fn queued(&self) {
        for family in &self.families {
            self.last_queued
                .with_label_values(&[family.name()])
                .set(now());
        }
    }

    /// A sync succeeded.
    pub fn synced(&self, full: bool, times: SyncTimes, operations: usize, bytes: usize) {
        let seconds = times.whole.as_secs_f64();
        let kind = if full {
            &self.full_sync_duration
        } else {
            &self.partial_sync_duration
        };
        for family in &self.families {
            // Both families share one transaction.
            let family = &[family.name()];
            self.sync_duration
                .with_label_values(family)
                .observe(seconds);
            kind.with_label_values(family).observe(seconds);
            self.last_synced.with_label_values(family).set(now());
        }
        let none: &[&str] = &[];
        self.compile_duration
            .with_label_values(none)
            .observe(times.computing.as_secs_f64());
        if operations > 0 {
            self.kernel_duration
                .with_label_values(none)
                .observe(times.kernel.as_secs_f64());
            #[allow(clippy::cast_precision_loss, reason = "no transaction is that large")]
            {
                self.transaction_operations
                    .with_label_values(none)
                    .observe(operations as f64);
                self.transaction_bytes
                    .with_label_values(none)
                    .observe(bytes as f64);
            }
        }
        add(&self.operations, operations);
        add(&self.bytes, bytes);
    }

    /// A sync of these families failed.
    pub fn sync_failed(&self, families: &[Family]) {
        for family in self
            .families
            .iter()
            .filter(|family| families.contains(family))
        {
            self.sync_failures.with_label_values(&[family.name()]).inc();
        }
    }

    /// Unused chains could not be taken away.
    pub fn cleanup_failed(&self) {
        for family in &self.families {
            self.cleanup_failures
                .with_label_values(&[family.name()])
                .inc();
        }
    }

    /// A change of endpoints has taken effect so long after it happened.
    pub fn programmed(&self, family: Family, after: Duration) {
        self.network_programming
            .with_label_values(&[family.name()])
            .observe(after.as_secs_f64());
    }

    /// Stale flows were looked for.
    pub fn conntrack_cleaned(&self, family: Family, took: Duration, deleted: usize) {
        let family = &[family.name()];
        self.conntrack_duration
            .with_label_values(family)
            .observe(took.as_secs_f64());
        self.conntrack_deleted
            .with_label_values(family)
            .inc_by(u64::try_from(deleted).unwrap_or(u64::MAX));
    }

    /// A look at connections is over.
    pub fn looked(&self, took: Duration) {
        self.looking.inc_by(took.as_secs_f64());
    }

    /// So many endpoints are passed over.
    pub fn ejected(&self, endpoints: usize) {
        self.ejected
            .set(i64::try_from(endpoints).unwrap_or(i64::MAX));
    }

    /// Service ports whose policy is Local and which have no endpoint here.
    pub fn set_no_local_endpoints(&self, family: Family, policy: &str, count: u32) {
        self.no_local_endpoints
            .with_label_values(&[family.name(), policy])
            .set(count.into());
    }

    /// How many elements a set holds, or rules a table.
    pub fn set_elements(&self, family: Family, set: &str, count: usize) {
        self.elements
            .with_label_values(&[family.name(), set])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many rules of a table were written last.
    pub fn set_written(&self, family: Family, table: &str, count: usize) {
        if let Some(written) = &self.written {
            written
                .with_label_values(&[family.name(), table])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

fn add(counter: &GenericCounter<AtomicU64>, by: usize) {
    counter.inc_by(u64::try_from(by).unwrap_or(u64::MAX));
}

fn now() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}
