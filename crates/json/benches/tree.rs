//! What a tree costs beside `serde_json`'s, in one run: reading with dropping, copying with dropping, writing.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

const ROUNDS: u32 = 2_000;
const REPEATS: usize = 20;

/// The fastest of several rounds: what disturbs a round only makes it slower.
fn fastest(mut work: impl FnMut()) -> Duration {
    let round = |work: &mut dyn FnMut()| {
        let begun = Instant::now();
        (0..ROUNDS).for_each(|_| work());
        begun.elapsed() / ROUNDS
    };
    (0..REPEATS).map(|_| round(&mut work)).min().unwrap_or_default()
}

fn measure<T: DeserializeOwned + Serialize + Clone>(text: &[u8]) -> [Duration; 3] {
    let read = || serde_json::from_slice::<T>(text).unwrap_or_else(|error| panic!("{error}"));
    let tree = read();
    [
        fastest(|| drop(black_box(read()))),
        fastest(|| drop(black_box(tree.clone()))),
        fastest(|| drop(black_box(serde_json::to_vec(&tree)))),
    ]
}

fn main() {
    let pod = include_bytes!("pod.json");
    let (ours, theirs) = (measure::<orlop_json::Value>(pod), measure::<serde_json::Value>(pod));
    println!("a pod of {} bytes   orlop-json   serde_json   ratio", pod.len());
    for ((what, ours), theirs) in ["read", "copy", "write"].iter().zip(ours).zip(theirs) {
        println!(
            "{what:<20} {ours:>10.2?} {theirs:>12.2?} {:>7.2}",
            ours.as_secs_f64() / theirs.as_secs_f64()
        );
    }
}
