//! Huge pages: whether the host uses them for shared memory, and whether they must be requested.
//!
//! ```text
//!  always, within_size, force   every new file gets them
//!  advise                       files whose writer advises the kernel, through a mapping
//!  never, deny                  no file gets them
//! ```
//!
//! For unnamed files the setting is in sysfs, for those of a tmpfs in its mount options.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{fstat, major, minor};

/// The kernel's settings for all shared memory, and for 2 MiB pages of unnamed files.
const ALL: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const OF_THIS_SIZE: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled";

/// Whether memfds get huge pages only on advice.
pub(super) fn memfds_on_advice() -> bool {
    let read = |path| fs::read_to_string(Path::new(path)).unwrap_or_default();
    memfds_advised(&read(ALL), &read(OF_THIS_SIZE))
}

/// Whether a file of a tmpfs gets huge pages only on advice.
pub(super) fn file_on_advice(file: BorrowedFd<'_>) -> bool {
    let Ok(facts) = fstat(file) else { return false };
    let device = format!("{}:{}", major(facts.st_dev), minor(facts.st_dev));
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    let all = fs::read_to_string(ALL).unwrap_or_default();
    file_advised(&all, mounted_with(&mounts, &device))
}

fn memfds_advised(all: &str, of_this_size: &str) -> bool {
    match (chosen(all), chosen(of_this_size)) {
        (Some("deny" | "force"), _) => false,
        // Kernels without settings per size use the global one.
        (setting, None | Some("inherit")) => setting == Some("advise"),
        (_, setting) => setting == Some("advise"),
    }
}

fn file_advised(all: &str, mounted: Option<&str>) -> bool {
    !matches!(chosen(all), Some("deny" | "force")) && mounted == Some("advise")
}

/// The word in brackets: `always [advise] never`.
fn chosen(setting: &str) -> Option<&str> {
    setting.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// The mount option `huge=` of the tmpfs of this device (`0:27`). Looked up by device, since
/// another file system can be mounted over a path.
fn mounted_with<'a>(mounts: &'a str, device: &str) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        // A blank in a name is written as `\040` there.
        let (place, system) = line.split_once(" - ")?;
        let (kind, rest) = system.split_once(' ')?;
        if place.split(' ').nth(2) != Some(device) || kind != "tmpfs" {
            return None;
        }
        let (_, options) = rest.rsplit_once(' ')?;
        options.split(',').find_map(|option| option.strip_prefix("huge="))
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::os::fd::AsFd as _;
    use std::path::PathBuf;
    use std::process::Command;

    use super::super::backing::allocate;
    use super::super::mapping::{MapAccess, Mapping};
    use super::*;
    use crate::object::ObjectId;
    use crate::shm::{Backing, Block, Mappings, Pool, PoolError, PoolOptions};

    #[test]
    fn of_the_settings_of_the_kernel_the_one_in_brackets_holds() {
        let all = |word: &str| {
            let words = "always within_size advise never deny force";
            words.replace(word, &format!("[{word}]")) + "\n"
        };
        let inherit = "always [inherit] within_size advise never\n";
        for (word, advised) in [
            ("always", false),
            ("within_size", false),
            ("advise", true),
            ("never", false),
            ("deny", false),
            ("force", false),
        ] {
            assert_eq!(chosen(&all(word)), Some(word));
            assert_eq!(memfds_advised(&all(word), inherit), advised, "{word}");
            assert_eq!(memfds_advised(&all(word), ""), advised, "{word}");
            let heard = !matches!(word, "deny" | "force");
            assert_eq!(file_advised(&all(word), Some("advise")), heard, "{word}");
            assert!(!file_advised(&all(word), Some("always")) && !file_advised(&all(word), None));
        }
        let advise = "always inherit within_size [advise] never\n";
        let never = "always inherit within_size advise [never]\n";
        assert!(memfds_advised(&all("never"), advise) && !memfds_advised(&all("deny"), advise));
        assert!(!memfds_advised(&all("advise"), never));
        // A kernel without huge pages.
        assert!(!memfds_advised("", ""));
        assert_eq!(chosen("always advise"), None);
        // Such a kernel has no mount option `huge=`.
        assert!(file_advised("", Some("advise")));
    }

    #[test]
    fn how_a_tmpfs_was_mounted_is_found_by_its_device() {
        let mounts = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
30 25 0:27 / /dev/shm rw,relatime shared:3 master:1 - tmpfs tmpfs rw,size=24683656k
31 25 0:28 / /mnt/a\\040-\\040b\\134 rw - tmpfs with\\040blanks rw,huge=advise,size=4k
32 25 0:29 / /mnt/c rw - tmpfs  rw,huge=within_size
33 25 0:30 / /mnt/d rw - ext4 /dev/vda rw,huge=advise
34 25 0:2 / /mnt/e
nonsense
";
        assert_eq!(mounted_with(mounts, "0:28"), Some("advise"));
        assert_eq!(mounted_with(mounts, "0:29"), Some("within_size"));
        for device in ["0:27", "0:30", "0:2", "0:99", ""] {
            assert_eq!(mounted_with(mounts, device), None, "{device}");
        }
    }

    /// A tmpfs with huge pages on advice, visible only to the test: the test runs again in a mount
    /// namespace. `None` if it has run there, or if this is not possible here.
    fn tmpfs(test: &str, size: &str) -> Option<PathBuf> {
        const FOLDER: &str = "IOVCACHE_TEST_HUGE";
        if let Some(folder) = std::env::var_os(FOLDER) {
            return Some(folder.into());
        }
        let folder = tempfile::tempdir().unwrap();
        let mount = "mount -t tmpfs -o huge=advise,mode=0750,size=$1 none \"$2\" && shift 2";
        let confined = |script: String| {
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", &script, "sh", size]).arg(folder.path());
            command
        };
        let allowed = confined(mount.into()).output().is_ok_and(|ran| ran.status.success());
        if !allowed || chosen(&fs::read_to_string(ALL).unwrap_or_default()) == Some("deny") {
            eprintln!("SKIPPED: no tmpfs with huge pages can be mounted here (it takes root)");
            return None;
        }
        let ran = confined(format!("{mount} && exec \"$@\""))
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", &format!("shm::huge_pages::tests::{test}")])
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let [said, told] = [ran.stdout, ran.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(ran.status.success() && said.contains("1 passed"), "{}\n{said}{told}", ran.status);
        None
    }

    fn pool(folder: &Path) -> Pool {
        Pool::new(PoolOptions {
            memory_bytes: 256 << 20,
            segment_bytes: (16 << 20) + 8192,
            backing: Backing::Folder(folder.join("segments")),
            ..PoolOptions::default()
        })
        .unwrap()
    }

    fn block(pool: &Pool, bytes: usize) -> Result<Block, PoolError> {
        let mut reservation = pool.reserve(bytes as u64)?;
        reservation.payload_mut().fill(7);
        Ok(reservation.publish(ObjectId::from_bytes([1; 16])))
    }

    /// Bytes of the mapping around `place` that are mapped by huge pages.
    fn huge_bytes(place: *const u8) -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let first = line.split(' ').next().unwrap();
            if let Some((start, end)) = first.split_once('-') {
                let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
                inside = (start..end).contains(&place.addr());
            } else if inside && first == "ShmemPmdMapped:" {
                let kib = line.trim_end_matches(" kB").rsplit(' ').next().unwrap();
                return kib.parse::<u64>().unwrap() << 10;
            }
        }
        panic!("no mapping has {place:?}");
    }

    /// Number of huge pages of files that the kernel could not give, since the machine started: its
    /// free memory was in smaller pieces.
    fn refused_pages() -> Option<u64> {
        let counts = fs::read_to_string("/proc/vmstat").ok()?;
        let line = counts.lines().find_map(|line| line.strip_prefix("thp_file_fallback "))?;
        line.parse().ok()
    }

    #[test]
    fn where_huge_pages_are_given_on_advice_service_and_consumers_map_them() {
        let test = "where_huge_pages_are_given_on_advice_service_and_consumers_map_them";
        let Some(folder) = tmpfs(test, "128m") else { return };
        let refused_before = refused_pages();
        let pool = pool(&folder);
        let block = block(&pool, 12 << 20).unwrap();
        let shared = pool.segments().remove(0);
        let (size, file) = (shared.size_bytes(), shared.file().unwrap());
        let none = Mappings::default();
        let consumer = none.with(shared.kind(), shared.id(), size, pool.epoch(), file).unwrap();
        let seen = consumer.resolved(&block.meta_header()).unwrap();
        assert!(seen.iter().all(|byte| *byte == 7));
        // The maximum: the object lies after the first 4 KiB.
        let mapped = [block.payload().as_ptr(), seen.as_ptr()].map(huge_bytes);
        if mapped[0] < 16 << 20 && refused_pages() > refused_before {
            eprintln!("SKIPPED: the kernel has no free huge pages; {mapped:?} bytes have some");
        } else {
            assert_eq!(mapped[0], 16 << 20);
            assert!(mapped[1] >= 12 << 20);
        }
        // No more memory than requested.
        let facts = rustix::fs::fstat(file).unwrap();
        assert_eq!((facts.st_size as u64, facts.st_blocks as u64 * 512), (size, size));
    }

    #[test]
    fn a_full_tmpfs_with_huge_pages_says_so_and_is_no_sigbus() {
        let test = "a_full_tmpfs_with_huge_pages_says_so_and_is_no_sigbus";
        let Some(folder) = tmpfs(test, "40m") else { return };
        let free = || {
            let facts = rustix::fs::statvfs(&folder).unwrap();
            facts.f_bavail * facts.f_frsize
        };
        let before = free();
        // The room disappears after the check: the rest is filled, and no more.
        let path = folder.join("late");
        let open = || -> io::Result<File> {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)
        };
        let file = open().unwrap();
        file.set_len(64 << 20).unwrap();
        let mapping = Mapping::of_file(file.as_fd(), 64 << 20, MapAccess::ReadWrite).unwrap();
        mapping.make_huge_pages();
        assert!(free() < 2 << 20);
        let error = allocate(&file, 64 << 20).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        drop((mapping, open().unwrap()));
        assert_eq!(free(), before);
        // Two segments fit.
        let pool = pool(&folder);
        let held = [(); 2].map(|()| block(&pool, 16 << 20).unwrap());
        match block(&pool, 16 << 20) {
            Err(PoolError::Segment { error, .. }) => {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            }
            other => panic!("{other:?}"),
        }
        assert!(held.iter().all(Block::is_intact));
        drop((held, pool));
        fs::remove_dir(folder.join("segments")).unwrap();
        assert!(before - free() < 64 << 10, "{} of {before} are left", free());
    }
}
