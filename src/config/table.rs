//! kube-proxy's flags in one table: what each is called, what it takes, and which field of the
//! configuration it sets. All that is known of a flag is known from here.

use super::component_config::{FORMATS, LOCAL_MODES, MODES};

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// Any text; what to call it.
    Text(&'static str),
    /// One of some words.
    OneOf(&'static str, &'static [&'static str]),
    /// `true` or `false`, as Go reads them; without a value, `true`.
    Bool,
    /// A whole number.
    Number,
    /// A number that need not be whole.
    Float,
    /// How much to log, from 0.
    Level,
    /// A time as Go writes it.
    Duration,
    /// Texts with commas between; what to call them.
    List(&'static str),
    /// `NAME=true` and `NAME=false` with commas between.
    Gates,
    /// A port that an address gets which has none.
    Port,
}

/// A flag.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) takes: Takes,
    /// The fields that it sets, with dots in between; none for what is accepted and nothing more.
    pub(super) fields: &'static [&'static str],
    pub(super) heading: &'static str,
    pub(super) help: &'static str,
    /// It is accepted for kube-proxy's sake, and has no effect.
    pub(super) idle: bool,
    /// It counts even where a configuration file has its field.
    pub(super) wins: bool,
}

const NODE: &str = "Cluster and node";
const TRAFFIC: &str = "Traffic";
const CONNTRACK: &str = "Conntrack";
const SERVED: &str = "Health, metrics and logs";

const fn flag(
    heading: &'static str,
    name: &'static str,
    takes: Takes,
    fields: &'static [&'static str],
    help: &'static str,
) -> Flag {
    Flag {
        name,
        takes,
        fields,
        heading,
        help,
        idle: false,
        wins: false,
    }
}

/// One that is accepted and has no effect.
const fn idle(flag: Flag) -> Flag {
    Flag { idle: true, ..flag }
}

/// One that counts even where there is a configuration file.
const fn wins(flag: Flag) -> Flag {
    Flag { wins: true, ..flag }
}

use Takes::{Bool, Duration, Float, Gates, Level, List, Number, OneOf, Port, Text};

const NO_IPVS: &str = "Accepted for kube-proxy's sake: there is no IPVS here";
const ACCEPTED: &str = "Accepted for kube-proxy's sake";

/// All of them, as `--help` lists them.
#[rustfmt::skip]
pub(super) const FLAGS: &[Flag] = &[
    flag(NODE, "kubeconfig", Text("PATH"), &["clientConnection.kubeconfig"],
        "How to reach the API server; without it, as a pod does"),
    wins(flag(NODE, "hostname-override", Text("NAME"), &["hostnameOverride"],
        "This node's name, if it is not the host's name")),
    flag(NODE, "cluster-cidr", Text("CIDR[,CIDR]"), &["clusterCIDR"],
        "The range of the cluster's pods, of which traffic is not masqueraded; for dual stack, one of each \
         family with a comma between"),
    flag(NODE, "detect-local-mode", OneOf("MODE", LOCAL_MODES), &["detectLocalMode"],
        "How to recognise this cluster's pods [default: ClusterCIDR]"),
    flag(NODE, "pod-bridge-interface", Text("NAME"), &["detectLocal.bridgeInterface"],
        "The bridge that pods are behind, for --detect-local-mode=BridgeInterface"),
    flag(NODE, "pod-interface-name-prefix", Text("PREFIX"), &["detectLocal.interfaceNamePrefix"],
        "How the names of pods' interfaces begin, for --detect-local-mode=InterfaceNamePrefix"),
    flag(NODE, "bind-address", Text("IP"), &["bindAddress"],
        "This node's address of its family, instead of the Node object's [default: 0.0.0.0]"),
    flag(NODE, "feature-gates", Gates, &["featureGates"],
        "kube-proxy's feature gates; AllowServiceExternalIPs=false makes externalIPs count for nothing"),
    idle(flag(NODE, "config-sync-period", Duration, &["configSyncPeriod"],
        "Accepted for kube-proxy's sake: watches need no resync [default: 15m]")),
    idle(flag(NODE, "kube-api-qps", Float, &["clientConnection.qps"],
        "Accepted for kube-proxy's sake: a few watches need no limit [default: 5]")),
    idle(flag(NODE, "kube-api-burst", Number, &["clientConnection.burst"],
        "Accepted for kube-proxy's sake [default: 10]")),
    flag(NODE, "kube-api-content-type", Text("TYPE"), &["clientConnection.contentType"],
        "In which form the API server is asked for objects, if it can: application/vnd.kubernetes.protobuf or \
         application/json [default: application/vnd.kubernetes.protobuf]"),

    flag(TRAFFIC, "proxy-mode", OneOf("MODE", MODES), &["mode"],
        "What is programmed: nftables, or iptables by the variant that the node uses; for ipvs it is nftables. \
         With all but nftables NodePorts are accepted on every address, as with kube-proxy [default: nftables, \
         or iptables where the kernel has no nf_tables]"),
    flag(TRAFFIC, "masquerade-all", Bool, &["iptables.masqueradeAll", "nftables.masqueradeAll"],
        "Masquerade all traffic to ClusterIPs"),
    flag(TRAFFIC, "nodeport-addresses", List("primary|localhost|all|CIDR,..."), &["nodePortAddresses"],
        "Where NodePorts are accepted: any of primary (the node's own address of each family), localhost \
         (TCP alone, through a proxy), all (but loopback) and CIDRs; without primary, a family without a CIDR \
         accepts them on every address [default: primary]"),
    flag(TRAFFIC, "iptables-sync-period", Duration, &["iptables.syncPeriod", "nftables.syncPeriod"],
        "The longest pause between retries of a failed sync [default: 30s]"),
    flag(TRAFFIC, "iptables-min-sync-period", Duration, &["iptables.minSyncPeriod", "nftables.minSyncPeriod"],
        "The shortest time between two syncs [default: none]"),
    flag(TRAFFIC, "iptables-masquerade-bit", Number, &["iptables.masqueradeBit"],
        "The bit of the packet mark that asks for masquerading, in iptables mode [default: 14]"),
    flag(TRAFFIC, "iptables-localhost-nodeports", Bool, &["iptables.localhostNodePorts"],
        "Whether iptables mode leads NodePorts on 127.0.0.1 to their endpoints, if NodePorts are accepted there: \
         it sets route_localnet [default: true]"),
    idle(flag(TRAFFIC, "ipvs-sync-period", Duration, &["ipvs.syncPeriod"], NO_IPVS)),
    idle(flag(TRAFFIC, "ipvs-min-sync-period", Duration, &["ipvs.minSyncPeriod"], NO_IPVS)),
    flag(TRAFFIC, "ipvs-scheduler", Text("NAME"), &["ipvs.scheduler"],
        "Which endpoint a new connection goes to, with --proxy-mode=ipvs: see --algorithm [default: rr]"),
    idle(flag(TRAFFIC, "ipvs-exclude-cidrs", List("CIDR,..."), &["ipvs.excludeCIDRs"], NO_IPVS)),
    idle(flag(TRAFFIC, "ipvs-strict-arp", Bool, &["ipvs.strictARP"], NO_IPVS)),
    idle(flag(TRAFFIC, "ipvs-tcp-timeout", Duration, &["ipvs.tcpTimeout"], NO_IPVS)),
    idle(flag(TRAFFIC, "ipvs-tcpfin-timeout", Duration, &["ipvs.tcpFinTimeout"], NO_IPVS)),
    idle(flag(TRAFFIC, "ipvs-udp-timeout", Duration, &["ipvs.udpTimeout"], NO_IPVS)),

    flag(CONNTRACK, "conntrack-max-per-core", Number, &["conntrack.maxPerCore"],
        "Connections to track per processor; 0 leaves the host's limit alone [default: 32768]"),
    flag(CONNTRACK, "conntrack-min", Number, &["conntrack.min"],
        "Connections to track at the least, however few the processors [default: 131072]"),
    flag(CONNTRACK, "conntrack-tcp-timeout-established", Duration, &["conntrack.tcpEstablishedTimeout"],
        "How long an idle TCP connection is tracked; 0 leaves the host's time alone [default: 24h]"),
    flag(CONNTRACK, "conntrack-tcp-timeout-close-wait", Duration, &["conntrack.tcpCloseWaitTimeout"],
        "How long a TCP connection in CLOSE_WAIT is tracked; 0 leaves the host's time alone [default: 1h]"),
    flag(CONNTRACK, "conntrack-tcp-be-liberal", Bool, &["conntrack.tcpBeLiberal"],
        "Let TCP packets outside the window through"),
    flag(CONNTRACK, "conntrack-udp-timeout", Duration, &["conntrack.udpTimeout"],
        "How long a UDP flow without an answer is tracked; 0 leaves the host's time alone [default: 0s]"),
    flag(CONNTRACK, "conntrack-udp-timeout-stream", Duration, &["conntrack.udpStreamTimeout"],
        "How long a UDP flow with an answer is tracked; 0 leaves the host's time alone [default: 0s]"),

    flag(SERVED, "healthz-bind-address", Text("IP:PORT"), &["healthzBindAddress"],
        "Where /healthz and /livez are served [default: 0.0.0.0:10256]"),
    flag(SERVED, "healthz-port", Port, &["healthzBindAddress"],
        "0 turns /healthz and /livez off (deprecated)"),
    flag(SERVED, "metrics-bind-address", Text("IP:PORT"), &["metricsBindAddress"],
        "Where /metrics is served [default: 127.0.0.1:10249]"),
    flag(SERVED, "metrics-port", Port, &["metricsBindAddress"],
        "The port of /metrics, if --metrics-bind-address has none (deprecated)"),
    flag(SERVED, "bind-address-hard-fail", Bool, &["bindAddressHardFail"],
        "End if those addresses cannot be had, instead of trying again"),
    flag(SERVED, "oom-score-adj", Number, &["oomScoreAdj"],
        "This process's oom_score_adj [default: -999]"),
    wins(flag(SERVED, "v", Level, &["logging.verbosity"],
        "How much to log: 0 for what matters, 4 for every sync, 6 for everything [default: 0]")),
    wins(flag(SERVED, "logging-format", OneOf("FORMAT", FORMATS), &["logging.format"],
        "How to log [default: text]")),
    idle(flag(SERVED, "profiling", Bool, &["enableProfiling"],
        "Accepted for kube-proxy's sake: there is no profiling endpoint")),
    idle(flag(SERVED, "show-hidden-metrics-for-version", Text("VERSION"), &["showHiddenMetricsForVersion"],
        "Accepted for kube-proxy's sake: no metric is hidden")),
    idle(flag(SERVED, "vmodule", List("PATTERN=LEVEL,..."), &[], ACCEPTED)),
    idle(flag(SERVED, "log-flush-frequency", Duration, &[], ACCEPTED)),
    idle(flag(SERVED, "log-text-split-stream", Bool, &[], ACCEPTED)),
    idle(flag(SERVED, "log-text-info-buffer-size", Text("SIZE"), &[], ACCEPTED)),
    idle(flag(SERVED, "log-json-split-stream", Bool, &[], ACCEPTED)),
    idle(flag(SERVED, "log-json-info-buffer-size", Text("SIZE"), &[], ACCEPTED)),
    idle(flag(SERVED, "boot-id-file", Text("PATH"), &[], ACCEPTED)),
    idle(flag(SERVED, "machine-id-file", Text("PATH"), &[], ACCEPTED)),
];

/// The flag that sets a field.
pub(super) fn flag_of(field: &str) -> Option<&'static str> {
    // An index, as in nodePortAddresses[1], is part of the same flag.
    let field = field.split('[').next().unwrap_or(field);
    let flag = FLAGS.iter().find(|flag| flag.fields.contains(&field));
    flag.map(|flag| flag.name)
}
