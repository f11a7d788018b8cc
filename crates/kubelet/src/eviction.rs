//! When a node counts as short of memory or disk (`evictionHard` of `KubeletConfiguration`). So far the node says so in
//! its conditions and takes no new pods; running pods are not evicted yet.

use std::str::FromStr;

use orlop_api::Quantity;

/// A bound on what is left of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threshold {
    /// Percent of the whole.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

impl Threshold {
    /// Whether `free` of `total` bytes is less than the bound.
    pub fn is_crossed(self, total: u64, free: u64) -> bool {
        match self {
            // Dividing first keeps every file system's size from overflowing; a hundredth is exact enough.
            Self::Percent(percent) => free < total / 100 * u64::from(percent),
            Self::Bytes(bytes) => free < bytes,
        }
    }
}

/// The bounds of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionHard {
    /// `memory.available`.
    pub memory_available: Threshold,
    /// `nodefs.available`: the file system of the kubelet's root directory.
    pub nodefs_available: Threshold,
}

impl Default for EvictionHard {
    /// Upstream's defaults.
    fn default() -> Self {
        Self { memory_available: Threshold::Bytes(100 << 20), nodefs_available: Threshold::Percent(10) }
    }
}

impl FromStr for EvictionHard {
    type Err = String;

    /// Parses the form of upstream's flag, `memory.available<100Mi,nodefs.available<10%`. What is not named keeps its
    /// default.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (signal, bound) =
                part.split_once('<').ok_or_else(|| format!("{part:?} is not SIGNAL<BOUND"))?;
            let bound = threshold(bound)
                .ok_or_else(|| format!("{bound:?} is neither a percentage nor a quantity"))?;
            match signal {
                "memory.available" => all.memory_available = bound,
                "nodefs.available" => all.nodefs_available = bound,
                _ => {
                    return Err(format!(
                        "signal {signal:?} is not built: memory.available and nodefs.available are"
                    ));
                }
            }
        }
        Ok(all)
    }
}

fn threshold(text: &str) -> Option<Threshold> {
    if let Some(percent) = text.strip_suffix('%') {
        return percent.parse().ok().filter(|percent| *percent <= 100).map(Threshold::Percent);
    }
    let bytes = Quantity::parse(text).ok()?.value();
    u64::try_from(bytes).ok().map(Threshold::Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_read() {
        let check = |text: &str, memory: Threshold, nodefs: Threshold| {
            let expected = EvictionHard { memory_available: memory, nodefs_available: nodefs };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        };
        let (memory, nodefs) = (Threshold::Bytes(100 << 20), Threshold::Percent(10));
        check("", memory, nodefs);
        check("nodefs.available<5%", memory, Threshold::Percent(5));
        check(
            "memory.available<1Gi,nodefs.available<500M",
            Threshold::Bytes(1 << 30),
            Threshold::Bytes(500_000_000),
        );
        for wrong in [
            "nodefs.available",
            "nodefs.available<x",
            "nodefs.available<101%",
            "nodefs.available<-1",
            "pid.available<5%",
        ] {
            assert!(wrong.parse::<EvictionHard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bound_is_crossed_below_it() {
        let check = |bound: Threshold, total, free, expected| {
            assert_eq!(bound.is_crossed(total, free), expected, "{bound:?} {total} {free}");
        };
        check(Threshold::Percent(10), 1000, 100, false);
        check(Threshold::Percent(10), 1000, 99, true);
        check(Threshold::Percent(0), 1000, 0, false);
        check(Threshold::Percent(100), u64::MAX, 0, true);
        check(Threshold::Bytes(5), 1000, 5, false);
        check(Threshold::Bytes(5), 1000, 4, true);
    }
}
