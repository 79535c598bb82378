//! The floor: plain shared memory, and a hash map from key to offset.
#![allow(unsafe_code, reason = "plain pointers are what a floor is")]

use std::collections::HashMap;
use std::hint::black_box;
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::work::{Left, SMALL_BYTES, Took, VERSIONS, Work, at_random, median, touch};

/// A mapping of a whole memfd.
struct Mapped {
    first: *mut u8,
    length: usize,
}

impl Mapped {
    fn new(fd: impl std::os::fd::AsFd, length: usize, rights: ProtFlags) -> Result<Self, Left> {
        let place = std::ptr::null_mut();
        // SAFETY: a new mapping at an address that the kernel chooses, so it replaces none.
        let first = unsafe { mmap(place, length, rights, MapFlags::SHARED, fd, 0) }?;
        Ok(Self { first: first.cast(), length })
    }

    fn bytes(&self, at: usize, count: usize) -> &[u8] {
        assert!(at + count <= self.length);
        // SAFETY: within the mapping, which lives as long as self; no write overlaps a read.
        let first = unsafe { self.first.add(at) };
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(first, count) }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length);
        // SAFETY: within the mapping.
        let to = unsafe { self.first.add(at) };
        // SAFETY: as above; `bytes` lies elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no borrow of it is left.
        let _ = unsafe { munmap(self.first.cast(), self.length) };
    }
}

pub(crate) fn measure(work: &Work) -> Result<Took, Left> {
    let small = work.keys * SMALL_BYTES;
    let large = work.large * work.large_bytes;
    let length = small + large + work.stored * work.stored_bytes;
    let fd = memfd_create("peers-floor", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, length as u64)?;
    let mut writer = Mapped::new(fd.as_fd(), length, ProtFlags::READ | ProtFlags::WRITE)?;
    let reader = Mapped::new(fd.as_fd(), length, ProtFlags::READ)?;
    let mut places: HashMap<String, (usize, usize)> = HashMap::new();
    let mut next = 0;
    let objects = (0..work.keys).map(|n| (format!("small/{n}"), SMALL_BYTES));
    let objects = objects.chain((0..work.large).map(|n| (format!("large/{n}"), work.large_bytes)));
    for (name, bytes) in objects {
        writer.write(next, &vec![7; bytes]);
        places.insert(name, (next, bytes));
        next += bytes;
    }
    let names = |kind: &str, count: usize| -> Vec<String> {
        (0..count).map(|n| format!("{kind}/{n}")).collect()
    };
    let read = |names: &[String]| {
        let place = |name: &String| {
            let (at, count) = places[name];
            touch(reader.bytes(at, count))
        };
        names.iter().map(place).sum::<u64>()
    };
    let (small, large) = (names("small", work.keys), names("large", work.large));
    let look_up = median(work.rounds, || Ok(read(&small)))?;
    let get = median(work.rounds, || Ok(read(&large)))?;
    let (bytes, names) = (vec![9; work.stored_bytes], names("stored", work.stored));
    let store = median(work.rounds, || {
        for (n, name) in names.iter().enumerate() {
            let at = next + n * bytes.len();
            writer.write(at, &bytes);
            places.insert(name.clone(), (at, bytes.len()));
        }
        Ok(places.len() as u64)
    })?;
    Ok(Took {
        few: Some(one_at_a_time(work, 1, work.few)?),
        many: Some(one_at_a_time(work, work.many / VERSIONS, VERSIONS)?),
        look_up: Some(look_up),
        get: Some(get),
        store: Some(store),
    })
}

/// Looks up objects by their times in sorted vectors of private memory, one for each path.
fn one_at_a_time(work: &Work, paths: usize, versions: usize) -> Result<Duration, Left> {
    let starts: Vec<i64> = (0..versions as i64).collect();
    let object = |_| Box::new([7_u8; SMALL_BYTES]);
    let objects = || (0..versions).map(object).collect::<Vec<_>>();
    let timelines: Vec<_> = (0..paths).map(|_| (starts.clone(), objects())).collect();
    median(work.rounds, || {
        let byte = |key: usize| {
            let (starts, objects) = &timelines[key / versions];
            let at = black_box((key % versions) as i64);
            let place = starts.partition_point(|start| *start <= at) - 1;
            u64::from(objects[place][0])
        };
        Ok(at_random(paths * versions).map(byte).sum())
    })
}
