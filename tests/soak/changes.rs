//! What happens, by chance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::api_server::{Answer, ApiServer, Kind, Phase};
use crate::cluster;
use crate::dice::Dice;
use crate::harness::{Host, NODE};
use crate::objects::{node, service_cidr};
use crate::program::Program;
use crate::traffic::Tally;

/// The pause between two steps, at most, in milliseconds.
const PAUSE: usize = 200;

/// Tampering that takes something away, or stands in the way.
const TAKING: &[&str] = &[
    "nft flush ruleset",
    "nft delete table ip pointsman",
    "nft delete table ip6 pointsman",
    "nft add table ip pointsman '{ flags dormant; }'",
    "nft add table ip6 pointsman '{ flags dormant; }'",
    "nft delete element ip pointsman service-ips '{ 10.96.0.10 . tcp . 80 }'",
    "nft flush map ip pointsman endpoints",
    "nft flush map ip6 pointsman service-ips",
    "nft flush chain ip pointsman services",
    "nft flush chain ip6 pointsman nat-postrouting",
    "nft insert rule ip6 pointsman lb drop",
    "nft flush set ip pointsman cluster-ips",
];
/// Tampering that harms nobody.
const ADDING: &[&str] = &[
    "nft add element ip pointsman service-ips '{ 10.96.9.99 . tcp . 80 : 8600:0 }'",
    "nft add element ip pointsman service-cidrs '{ 172.16.0.0/12 }'",
    "nft add chain ip pointsman mine",
    "nft add set ip6 pointsman mine '{ type ipv4_addr; }'",
    "nft add table ip theirs; nft add chain ip theirs mine; nft delete table ip theirs",
];

/// The hand that changes things.
pub struct Changes {
    dice: Dice,
    pub server: ApiServer,
    pub program: Program,
    tally: Arc<Tally>,
    is_away: bool,
    /// How often each kind of step was made.
    done: BTreeMap<&'static str, usize>,
}

impl Changes {
    pub fn new(dice: Dice, server: ApiServer, program: Program, tally: Arc<Tally>) -> Self {
        Self {
            dice,
            server,
            program,
            tally,
            is_away: false,
            done: BTreeMap::new(),
        }
    }

    /// Makes one step after the other until then; the program is restarted too, if it may be.
    pub fn until(&mut self, host: &Host, end: Instant, restarts: bool) {
        while Instant::now() < end {
            let what = self.step(host, restarts);
            *self.done.entry(what).or_default() += 1;
            self.program.review(&self.tally);
            let pause = self.dice.below(PAUSE);
            std::thread::sleep(Duration::from_millis(
                u64::try_from(pause).expect("a number"),
            ));
        }
    }

    fn step(&mut self, host: &Host, restarts: bool) -> &'static str {
        let number = 1 + self.dice.below(cluster::OTHERS);
        let is_disturbed = self.tally.is_excused(Instant::now());
        match self.dice.below(200) {
            0..50 => self.change_service(number),
            50..110 => self.change_slices(number),
            110..130 => self.delete(number),
            130..136 => self.change_node(),
            136..142 => self.change_ranges(),
            142..152 => self.change_interface(host),
            152..164 => self.disturb_watches(),
            164..168 => self.misbehave(),
            168..174 => self.come_or_go(host),
            // What was tampered with is repaired by who runs; who starts repairs once the server answers.
            174..178 if restarts && !is_disturbed => self.restart(host),
            178..186 if self.program.has_begun() => self.tamper(host),
            _ => "pauses",
        }
    }

    fn change_service(&mut self, number: usize) -> &'static str {
        let service = cluster::any_service(&mut self.dice, number);
        self.server.put(service);
        "Services made or changed"
    }

    fn change_slices(&mut self, number: usize) -> &'static str {
        let name = cluster::name(number);
        let before = self.of(&name, "EndpointSlice");
        let services = self.of(&name, "Service");
        let protocol = services
            .first()
            .and_then(|service| service["spec"]["ports"][0]["protocol"].as_str());
        let after = cluster::any_slices(&mut self.dice, number, protocol.unwrap_or("TCP"));
        let is_kept = |old: &Value| {
            after
                .iter()
                .any(|new| new["metadata"]["name"] == old["metadata"]["name"])
        };
        for old in before.iter().filter(|old| !is_kept(old)) {
            self.server.delete(old);
        }
        for slice in after {
            self.server.put(slice);
        }
        "Services scaled"
    }

    /// Deletes a Service, its slices, or both.
    fn delete(&mut self, number: usize) -> &'static str {
        let name = cluster::name(number);
        let kinds: &[&str] = match self.dice.below(4) {
            0 => &["Service"],
            1 => &["EndpointSlice"],
            _ => &["EndpointSlice", "Service"],
        };
        for kind in kinds {
            for object in self.of(&name, kind) {
                self.server.delete(&object);
            }
        }
        "Services or slices deleted"
    }

    /// The objects of one kind that belong to a Service.
    fn of(&self, service: &str, kind: &str) -> Vec<Value> {
        let mut objects = self.server.objects();
        objects.retain(|object| {
            let metadata = &object["metadata"];
            let owner = &metadata["labels"]["kubernetes.io/service-name"];
            object["kind"] == kind && (owner == service || metadata["name"] == service)
        });
        objects
    }

    fn change_node(&mut self) -> &'static str {
        if self.dice.percent(20) && !self.of(NODE, "Node").is_empty() {
            self.server.delete(&node());
        } else {
            let node = cluster::any_node(&mut self.dice);
            self.server.put(node);
        }
        "Node changes"
    }

    fn change_ranges(&mut self) -> &'static str {
        let ranges = cluster::any_cidr(&mut self.dice);
        let name = &ranges["metadata"]["name"];
        if self
            .server
            .objects()
            .iter()
            .any(|object| object["metadata"]["name"] == *name)
        {
            self.server.delete(&ranges);
        } else {
            self.server.put(ranges);
        }
        "ServiceCIDR changes"
    }

    fn change_interface(&mut self, host: &Host) -> &'static str {
        let last = 50 + self.dice.below(5);
        let address = self.dice.pick(&["192.0.2.", "2001:db8:2::"]);
        let length = if address.contains(':') { 128 } else { 32 };
        let what = format!("{address}{last}/{length} dev client0");
        host.sh(&format!(
            "ip addr del {what} 2>/dev/null || ip addr add {what} nodad"
        ));
        "interface addresses come or gone"
    }

    fn disturb_watches(&mut self) -> &'static str {
        let kind = self.dice.pick(&Kind::ALL);
        match self.dice.below(5) {
            0 => self.server.cut(kind),
            1 => self.server.end(kind),
            2 => self.server.say_gone(kind),
            3 => self.server.bookmark(kind),
            _ => {
                let number = 1 + self.dice.below(cluster::OTHERS);
                let service = cluster::any_service(&mut self.dice, number);
                self.server.lose(|server| {
                    server.put(service.clone());
                });
                self.server.end_in_the_middle(&service);
                self.server.say_gone(Kind::Services);
            }
        }
        "watches disturbed"
    }

    fn misbehave(&mut self) -> &'static str {
        let answers = [
            Answer::Refuse(500),
            Answer::Refuse(410),
            Answer::TooMany(1),
            Answer::Garbage,
            Answer::Break(3),
        ];
        let (kind, answer) = (self.dice.pick(&Kind::ALL), self.dice.pick(&answers));
        for phase in [Phase::List, Phase::Watch] {
            self.server.misbehave(kind, phase, answer, 1);
        }
        self.server.cut(kind);
        "bad answers"
    }

    fn come_or_go(&mut self, host: &Host) -> &'static str {
        if self.is_away {
            if self.dice.percent(50) {
                self.server.forget_history();
            }
            self.server.come_back(host);
        } else {
            self.server.go_away();
        }
        self.is_away = !self.is_away;
        "API server gone or back"
    }

    fn restart(&mut self, host: &Host) -> &'static str {
        let asked = self.dice.percent(50);
        self.program.restart(host, &self.server, asked, &self.tally);
        if asked {
            "restarts (SIGTERM)"
        } else {
            "restarts (SIGKILL)"
        }
    }

    fn tamper(&mut self, host: &Host) -> &'static str {
        if self.dice.percent(40) {
            host.try_sh(self.dice.pick(ADDING));
            return "tampering that adds";
        }
        let command = self.dice.pick(TAKING);
        self.tally.excusing(|| {
            // What it would take away may be gone since the last one.
            host.try_sh(command);
        });
        "tampering that takes away"
    }

    /// Ends what is under way: the server is there and answers well, and the windows of tampering close.
    pub fn settle(&mut self, host: &Host) {
        if self.is_away {
            self.come_or_go(host);
        }
        self.server.behave();
        // One that is gone leaves its addresses behind with those who knew it, and a dry run does not.
        if self.of(NODE, "Node").is_empty() {
            self.server.put(node());
        }
        while self.tally.is_excused(Instant::now()) {
            std::thread::sleep(Duration::from_millis(100));
        }
        self.program.review(&self.tally);
    }

    /// Deletes all that chance has made.
    pub fn clear(&mut self) {
        for number in 1..=cluster::OTHERS {
            for kind in ["EndpointSlice", "Service"] {
                for object in self.of(&cluster::name(number), kind) {
                    self.server.delete(&object);
                }
            }
        }
        self.server.put(node());
        self.server.put(service_cidr());
    }

    /// What was done, and by whom.
    pub fn finish(
        mut self,
        host: &Host,
        faults: &mut Vec<String>,
    ) -> (BTreeMap<&'static str, usize>, Program) {
        self.program.count_syncs(host);
        self.program.review(&self.tally);
        faults.append(&mut self.program.faults);
        (self.done, self.program)
    }
}
