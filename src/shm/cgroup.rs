//! Memory limits of the control groups of this process (of a container or unit).
//!
//! If a group has no room for the pages of a segment, the kernel reports no error but kills a
//! process of the group. So this is checked before a segment is created.

use std::fs;
use std::io;
use std::path::Path;

/// Memory that the process needs besides its segments.
const OWN_BYTES: u64 = 32 << 20;

/// Mount point of control groups.
const ROOT: &str = "/sys/fs/cgroup";

/// The memory of one group: its limit, and the part in use that cannot be reclaimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowance {
    limit_bytes: u64,
    taken_bytes: u64,
}

/// The names used by one version of control groups.
struct CgroupNames {
    folder: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Reclaimable memory (pages of files, directory entries): the kernel reclaims it before it
    /// kills a process.
    cached: &'static [&'static str],
}

const V1: CgroupNames = CgroupNames {
    folder: "memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cached: &["total_active_file", "total_inactive_file"],
};
const V2: CgroupNames = CgroupNames {
    folder: "",
    limit: "memory.max",
    usage: "memory.current",
    cached: &["active_file", "inactive_file", "slab_reclaimable"],
};

impl CgroupNames {
    /// `None` if the group has no limit.
    fn allowance(&self, group: &Path) -> Option<Allowance> {
        let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
        let limit_bytes = number(self.limit)?;
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cached_bytes: u64 = stat
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| self.cached.contains(name))
            .filter_map(|(_, bytes)| bytes.parse::<u64>().ok())
            .sum();
        let taken_bytes = number(self.usage)?.saturating_sub(cached_bytes);
        Some(Allowance { limit_bytes, taken_bytes })
    }
}

/// The allowances of the groups in `/proc/self/cgroup` and of their ancestors. In a container the
/// groups may be named as outside of it; then its own group is at the root.
fn allowances(named: &str, root: &Path) -> Vec<Allowance> {
    let mut found = Vec::new();
    for line in named.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let names = match controllers {
            "" => V2,
            list if list.split(',').any(|name| name == "memory") => V1,
            _ => continue,
        };
        let top = root.join(names.folder);
        let group = top.join(group.trim_start_matches('/'));
        let around = group.ancestors().take_while(|folder| folder.starts_with(&top));
        found.extend(around.filter_map(|folder| names.allowance(folder)));
    }
    found
}

fn own() -> Vec<Allowance> {
    let named = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    allowances(&named, Path::new(ROOT))
}

/// Memory for segments that the control groups of this process allow in total, if they limit it;
/// the rest is for the process itself.
pub fn memory_allowed() -> Option<u64> {
    let limits = own().into_iter().map(|allowance| allowance.limit_bytes);
    // In version 1, 'no limit' is a large number.
    let limits = limits.filter(|bytes| *bytes < i64::MAX as u64 / 2);
    limits.min().map(|bytes| bytes.saturating_sub(OWN_BYTES))
}

/// Checks that there is room for a segment.
///
/// # Errors
/// Of kind `StorageFull`.
pub(super) fn check_room(bytes: u64) -> io::Result<()> {
    room_in(&own(), bytes)
}

fn room_in(allowances: &[Allowance], bytes: u64) -> io::Result<()> {
    for Allowance { limit_bytes, taken_bytes } in allowances {
        let left = limit_bytes.saturating_sub(*taken_bytes);
        if left < bytes.saturating_add(OWN_BYTES) {
            let message = format!(
                "of the {limit_bytes} bytes that its control group allows {left} are left, and \
                 {OWN_BYTES} of them are kept for the process itself"
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_limits_of_a_group_and_of_those_around_it_are_read_in_both_versions() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let stat = "anon 5\nactive_file 300\ninactive_file 150\nslab_reclaimable 50\nslab 99\n";
        let inner = [("memory.max", "5000\n"), ("memory.current", "1500\n"), ("memory.stat", stat)];
        write(&root.join("a/b"), &inner);
        write(&root.join("a"), &[("memory.max", "max\n"), ("memory.current", "9000\n")]);
        let (limit_bytes, taken_bytes) = (5000, 1000);
        let found = allowances("0::/a/b\n", root);
        assert_eq!(found, [Allowance { limit_bytes, taken_bytes }]);
        assert_eq!(allowances("0::/a\n0::/nowhere\nnonsense\n", root), []);

        let stat = "cache 1\ninactive_file 7000\ntotal_inactive_file 500\ntotal_active_file 0\n";
        let outer = [
            ("memory.limit_in_bytes", "8000\n"),
            ("memory.usage_in_bytes", "2500\n"),
            ("memory.stat", stat),
        ];
        // A container in which the name of its group does not exist.
        write(&root.join("memory"), &outer);
        let named = "4:cpu,cpuacct:/a/b\n3:memory:/docker/0123\n1:name=systemd:/a/b\n";
        let (limit_bytes, taken_bytes) = (8000, 2000);
        assert_eq!(allowances(named, root), [Allowance { limit_bytes, taken_bytes }]);
    }

    #[test]
    fn there_is_room_as_long_as_every_group_has_it_and_something_for_the_process() {
        let of = |limit, taken| Allowance { limit_bytes: limit * MIB, taken_bytes: taken * MIB };
        assert!(room_in(&[], u64::MAX).is_ok());
        let groups = [of(1000, 0), of(100, 20)];
        assert!(room_in(&groups, 48 * MIB).is_ok());
        let error = room_in(&groups, 48 * MIB + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("104857600 bytes"), "{error}");
        // Usage can exceed the limit for a moment.
        assert!(room_in(&[of(10, 20)], 0).is_err());
    }
}
