//! What compiling, comparing and encoding cost, held against committed figures: allocations, and
//! instructions as callgrind counts them. Time is noisy; these are not.
//!
//! One endpoint of a Service costs no more than twice as much in a Service of any size, and what a
//! hostile author writes costs in proportion to what he has written.
//!
//! A change that costs more than the figures allow fails here; one that costs much less does too,
//! so that the figures stay tight. `UPDATE_COSTS=1 cargo test --test costs` writes new ones, and
//! the commit says why. The instructions are those of the test build: what counts is the change.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics is a test that fails"
)]

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

mod large;
mod stages;
mod wide;

use stages::Stage;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Figures by stage.
type Figures = BTreeMap<String, u64>;

fn allocations() -> Figures {
    let _profiler = dhat::Profiler::builder().testing().build();
    let mut figures = Figures::new();
    let mut before = dhat::HeapStats::get().total_blocks;
    stages::walk(Stage::Remove, |stage| {
        let now = dhat::HeapStats::get().total_blocks;
        if stage != Stage::Input {
            figures.insert(format!("{} allocations", stage.name()), now - before);
        }
        // What is noted here is not the stage's.
        before = dhat::HeapStats::get().total_blocks;
    });
    figures
}

/// The instructions of this program with these arguments.
fn instructions_of(arguments: &[&str]) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("the path of this executable"))
        .args(arguments)
        .output()
        .expect("valgrind, which `make setup` installs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let collected = text
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .and_then(|(_, number)| number.trim().parse().ok());
    collected.unwrap_or_else(|| panic!("no count in: {text}"))
}

/// The same of several, as many at once as there are processors: what is counted does not depend on what else runs.
fn instructions_of_each<const N: usize>(arguments: &[[&str; N]]) -> Vec<u64> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let work = || {
        let mine = std::iter::from_fn(|| {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let arguments = arguments.get(at)?;
            Some((at, instructions_of(arguments)))
        });
        mine.collect::<Vec<_>>()
    };
    let mut counted: Vec<(usize, u64)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(work)).collect();
        let ended = workers.into_iter();
        ended
            .flat_map(|worker| worker.join().expect("counts"))
            .collect()
    });
    counted.sort_unstable();
    counted.into_iter().map(|(_, count)| count).collect()
}

fn instructions() -> Figures {
    let walks = Stage::ALL.map(|stage| [WALK, stage.name()]);
    let until = instructions_of_each(&walks);
    let each = until.windows(2).zip(Stage::ALL.into_iter().skip(1));
    each.map(|(both, stage)| {
        let mine = both[1].saturating_sub(both[0]);
        (format!("{} instructions", stage.name()), mine)
    })
    .collect()
}

/// The instructions for one endpoint, by the size of its Service.
fn instructions_by_size() -> Vec<(u32, u64)> {
    let (none, replaced) = ("0".to_owned(), large::REPLACED.to_string());
    let sizes = large::SIZES.map(|size| size.to_string());
    let changes: Vec<[&str; 3]> = sizes
        .iter()
        .flat_map(|size| [&none, &replaced].map(|times| [LARGE, size.as_str(), times.as_str()]))
        .collect();
    let counted = instructions_of_each(&changes);
    let each = counted.chunks(2).zip(large::SIZES);
    each.map(|(both, size)| (size, (both[1] - both[0]) / u64::from(large::REPLACED)))
        .collect()
}

/// The argument that makes this program go through the stages, and nothing else.
const WALK: &str = "--walk";
/// The argument that makes it change a large Service.
const LARGE: &str = "--large";
/// The argument that makes it load a Service that is wide.
const WIDE: &str = "--wide";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [WALK, name] => {
            let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name);
            stages::walk(stage.expect("one of the stages"), |_| ());
            return;
        }
        [LARGE, endpoints, times] => {
            let number = |text: &str| text.parse().expect("a number");
            large::replace(number(endpoints), number(times));
            return;
        }
        [WIDE, shape, size] => {
            wide::load(shape, size.parse().expect("a number"));
            return;
        }
        _ => {}
    }
    println!("compiling, comparing and encoding cost what they did");
    check();
    println!("what is wide costs in proportion");
    check_wide();
    println!("ok");
}

/// Four times as much is four times the work, and a little for what is sorted.
fn check_wide() {
    let sizes = wide::SHAPES.map(|(_, size, _)| [1, size, 4 * size].map(|size| size.to_string()));
    let loads: Vec<[&str; 3]> = (wide::SHAPES.iter().zip(&sizes))
        .flat_map(|((shape, ..), sizes)| sizes.each_ref().map(|size| [WIDE, shape, size.as_str()]))
        .collect();
    let counted = instructions_of_each(&loads);
    for ((shape, size, _), counted) in wide::SHAPES.into_iter().zip(counted.chunks(3)) {
        let [little, much] = [1, 2].map(|of| counted[of].saturating_sub(counted[0]));
        println!("{shape}: {little}, {much}");
        assert!(
            much <= 6 * little,
            "{shape}: {little} instructions for {size}, {much} for four times as much"
        );
    }
}

fn check() {
    let mut found = allocations();
    found.append(&mut instructions());
    let by_size = instructions_by_size();
    let smallest = by_size[0].1;
    for (size, each) in by_size {
        assert!(
            each <= 2 * smallest,
            "an endpoint of a Service of {size} takes {each} instructions, of a small one {smallest}"
        );
        found.insert(format!("one of {size} endpoints instructions"), each);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/costs.json");
    if std::env::var_os("UPDATE_COSTS").is_some() {
        let text = serde_json::to_string_pretty(&found).expect("JSON") + "\n";
        std::fs::write(&path, text).expect("the file of the figures");
        return;
    }
    let text = std::fs::read_to_string(&path).expect("the file of the figures");
    let committed: Figures = serde_json::from_str(&text).expect("figures");
    let mut wrong = Vec::new();
    for (what, now) in &found {
        let was = committed.get(what).copied().unwrap_or(0);
        // Hash tables are seeded alike, but instructions depend a little on the machine's C library.
        let percent = if what.ends_with("allocations") { 2 } else { 10 };
        if now.abs_diff(was) * 100 > was * percent {
            wrong.push(format!("{what}: {was} committed, {now} found"));
        }
    }
    assert_eq!(found.len(), committed.len(), "figures for every stage");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
