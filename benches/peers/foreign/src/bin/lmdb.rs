//! LMDB: written once, reopened, and read in one transaction.

use heed::types::{Bytes, Str};
use heed::{Database, Env, EnvFlags, EnvOpenOptions};
use iovcache_peers::{Failure, SMALL_BYTES, Work, at_random, median, touch};

type Objects = Database<Str, Bytes>;

fn open(work: &Work) -> Result<(Env, Objects), Failure> {
    let bytes = work.large * (work.large_bytes + 8192) + work.stored * (work.stored_bytes + 8192);
    let bytes = (bytes * 2 + work.many * 256 + (256 << 20)).next_multiple_of(4096);
    let mut options = EnvOpenOptions::new();
    options.map_size(bytes);
    // SAFETY: only LMDB uses the files, and durability is not required.
    let options = unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP) };
    // SAFETY: the folder belongs to this run, and it is opened once at a time.
    let env = unsafe { options.open(&work.folder) }?;
    let mut write = env.write_txn()?;
    let objects = env.create_database(&mut write, None)?;
    write.commit()?;
    Ok((env, objects))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut work = Work::of_arguments(&arguments)?;
    // In memory, like the other peers.
    if std::path::Path::new("/dev/shm").is_dir() {
        work.folder = format!("/dev/shm/iovcache-peers-{}", std::process::id()).into();
        std::fs::create_dir_all(&work.folder)?;
    }
    let measured = measure(&work);
    if work.folder.starts_with("/dev/shm") {
        let _ = std::fs::remove_dir_all(&work.folder);
    }
    println!("{}", measured?);
    Ok(())
}

fn measure(work: &Work) -> Result<String, Failure> {
    let key = |kind: &str, n: usize| format!("{kind}/{n}");
    let (env, objects) = open(work)?;
    let mut write = env.write_txn()?;
    for n in 0..work.keys.max(work.few) {
        objects.put(&mut write, &key("small", n), &[7; SMALL_BYTES])?;
    }
    for n in 0..work.large {
        objects.put(&mut write, &key("large", n), &vec![7; work.large_bytes])?;
    }
    for n in 0..work.many {
        objects.put(&mut write, &key("many", n), &[7; SMALL_BYTES])?;
    }
    write.commit()?;
    env.prepare_for_closing().wait();
    let (env, objects) = open(work)?;
    let names = |kind: &str, count| (0..count).map(|n| key(kind, n)).collect::<Vec<_>>();
    let read = |names: &[String]| {
        let read = env.read_txn()?;
        let one = |name: &String| {
            let bytes = objects.get(&read, name)?.ok_or("an object is not there")?;
            Ok(touch(bytes))
        };
        names.iter().map(one).sum::<Result<u64, Failure>>()
    };
    // A transaction for each look-up: as long as it lasts, the bytes stay.
    let one_at_a_time = |kind: &str, count: usize| {
        let names = names(kind, count);
        median(work.rounds, || {
            let byte = |n: usize| {
                let read = env.read_txn()?;
                let bytes = objects.get(&read, &names[n])?.ok_or("an object is not there")?;
                Ok(u64::from(bytes[0]))
            };
            at_random(count).map(byte).sum::<Result<u64, Failure>>()
        })
    };
    let (few, many) = (one_at_a_time("small", work.few)?, one_at_a_time("many", work.many)?);
    let (small, large) = (names("small", work.keys), names("large", work.large));
    let look_up = median(work.rounds, || read(&small))?;
    let get = median(work.rounds, || read(&large))?;
    let (stored, bytes) = (names("stored", work.stored), vec![9; work.stored_bytes]);
    let store = median(work.rounds, || {
        let mut write = env.write_txn()?;
        for name in &stored {
            objects.put(&mut write, name, &bytes)?;
        }
        write.commit()?;
        Ok(1)
    })?;
    Ok(format!("{few} {many} {look_up} {get} {store}"))
}
