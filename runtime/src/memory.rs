//! How much memory this process may use.

use std::path::{Path, PathBuf};

/// The memory limit of this process's control group, or else the machine's memory; `None` if neither is known, as on
/// systems other than Linux.
pub fn limit_bytes() -> Option<u64> {
    limit_below(Path::new("/"))
}

fn limit_below(root: &Path) -> Option<u64> {
    let machine = machine_bytes(&read(root.join("proc/meminfo"))?);
    let groups = read(root.join("proc/self/cgroup")).unwrap_or_default();
    group_limits(root, &groups).chain(machine).min()
}

/// The limits of the group and of its parents, for both versions of control groups.
fn group_limits(root: &Path, groups: &str) -> impl Iterator<Item = u64> {
    let files = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        match controllers {
            "" => Some(("sys/fs/cgroup", path, "memory.max")),
            _ if controllers.split(',').any(|name| name == "memory") => {
                Some(("sys/fs/cgroup/memory", path, "memory.limit_in_bytes"))
            }
            _ => None,
        }
    });
    let files: Vec<PathBuf> = files
        .flat_map(|(mount, path, file)| {
            let group = PathBuf::from(path.trim_start_matches('/'));
            let around: Vec<_> = group.ancestors().map(|at| root.join(mount).join(at).join(file)).collect();
            around
        })
        .collect();
    // A group without a limit says `max`, or a number larger than any machine's memory.
    files.into_iter().filter_map(|file| read(file)?.trim().parse().ok())
}

fn machine_bytes(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn read(path: PathBuf) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::TempDir::new().unwrap();
        for (path, text) in [("proc/meminfo", "MemTotal:        8000000 kB\nMemFree: 1 kB\n")].iter().chain(files) {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_smallest_limit_counts() {
        const MACHINE: u64 = 8_000_000 * 1024;
        fn limit(files: &[(&str, &str)]) -> Option<u64> {
            limit_below(machine(files).path())
        }
        assert_eq!(limit(&[]), Some(MACHINE));
        let two = ("proc/self/cgroup", "0::/pods/one\n");
        assert_eq!(limit(&[two, ("sys/fs/cgroup/pods/one/memory.max", "max\n")]), Some(MACHINE));
        assert_eq!(limit(&[two, ("sys/fs/cgroup/pods/one/memory.max", "1073741824\n")]), Some(1 << 30));
        assert_eq!(limit(&[two, ("sys/fs/cgroup/pods/memory.max", "536870912\n")]), Some(1 << 29));
        let one = ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n");
        let set = ("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "268435456\n");
        assert_eq!(limit(&[one, set]), Some(1 << 28));
        let unset = ("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit(&[one, unset]), Some(MACHINE));
        assert_eq!(limit_below(Path::new("/nonexistent")), None);
    }
}
