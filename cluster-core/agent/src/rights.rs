//! Whether the agent may make network namespaces and bridges.

/// The rights that it takes (`man 7 capabilities`): for bridges and addresses, and for namespaces and mounts.
const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// The rights that this process lacks, for people; empty if there are enough.
pub(crate) fn lacking() -> String {
    missing_in(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn missing_in(status: &str) -> String {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let missing = NEEDED.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name);
    missing.collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_from_the_effective_ones() {
        assert_eq!(missing_in("CapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\n"), "");
        assert_eq!(missing_in("CapEff:\t0000000000001000\n"), "CAP_SYS_ADMIN");
        assert_eq!(missing_in(""), "CAP_NET_ADMIN and CAP_SYS_ADMIN");
    }
}
