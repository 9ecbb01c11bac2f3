//! The program, through all its lives.

use crate::api_server::ApiServer;
use crate::harness::{CLUSTER_CIDR, Host, METRICS, Pointsman, get};
use crate::traffic::Tally;

/// Flags that decide what is programmed. Node ports are those of some addresses, which come and go.
pub const FLAGS: [&str; 2] = ["--nodeport-addresses", "192.0.2.0/24,2001:db8:2::/64"];

/// What the program takes at a time.
pub struct Figures {
    pub process: u32,
    pub resident: u64,
    pub descriptors: usize,
    pub threads: u64,
}

/// Who runs now, and what those before have come to.
pub struct Program {
    process: Option<Pointsman>,
    /// How much of its log was looked at.
    seen: usize,
    /// The syncs of those that are gone, and of all in the end.
    pub syncs: u64,
    pub explained: usize,
    pub faults: Vec<String>,
}

impl Program {
    /// Starts it and waits for its first sync.
    pub fn start(node: &Host, server: &ApiServer) -> Self {
        let process = launch(node, server);
        process.wait_for("synced");
        Self {
            process: Some(process),
            seen: 0,
            syncs: 0,
            explained: 0,
            faults: Vec::new(),
        }
    }

    fn process(&self) -> &Pointsman {
        self.process.as_ref().expect("a process")
    }

    /// Whether it is past its first sync: before that it repairs nothing.
    pub fn has_begun(&self) -> bool {
        self.process().log().contains("synced")
    }

    /// Ends it, asked or not, and starts it again.
    pub fn restart(&mut self, node: &Host, server: &ApiServer, asked: bool, tally: &Tally) {
        self.count_syncs(node);
        self.review(tally);
        let process = self.process.take().expect("a process");
        if asked {
            let code = process.terminate();
            if code != Some(0) {
                self.faults
                    .push(format!("asked to end, it ended with {code:?}"));
            }
        } else {
            drop(process);
        }
        self.process = Some(launch(node, server));
        self.seen = 0;
    }

    /// Looks for errors in what it has logged since it was last looked at.
    pub fn review(&mut self, tally: &Tally) {
        let log = self.process().log();
        let whole = log.rfind('\n').map_or(0, |end| end + 1);
        let new = &log[self.seen.min(whole)..whole];
        let is_excused = tally.is_excused(std::time::Instant::now());
        for line in new.lines() {
            let is_error = line.contains("ERROR") || line.contains("panicked");
            if is_error && is_excused {
                self.explained += 1;
            } else if is_error {
                self.faults.push(line.to_owned());
            }
        }
        self.seen = whole;
    }

    pub fn count_syncs(&mut self, node: &Host) {
        let name = "kubeproxy_sync_proxy_rules_duration_seconds_count";
        let text = get(node, METRICS, "/metrics").map(|reply| reply.body);
        let of_line = |line: &str| {
            line.starts_with(name)
                .then(|| line.rsplit(' ').next()?.parse::<f64>().ok())?
        };
        let counted: f64 = text
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(of_line)
            .sum();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let counted = counted as u64;
        self.syncs += counted;
    }

    pub fn figures(&self) -> Figures {
        let process = self.process().id();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.expect("a number")
        };
        let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).expect("a process");
        Figures {
            process,
            resident: field("VmRSS:"),
            descriptors: descriptors.count(),
            threads: field("Threads:"),
        }
    }
}

fn launch(node: &Host, server: &ApiServer) -> Pointsman {
    let kubeconfig = server.kubeconfig();
    let kubeconfig = kubeconfig.to_str().expect("a path");
    let arguments = ["--kubeconfig", kubeconfig, "--cluster-cidr", CLUSTER_CIDR];
    Pointsman::launch(node, &[&arguments[..], &FLAGS].concat())
}
