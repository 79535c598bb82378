//! SIGHUP: the configuration, the keys, the certificates and the filter of the log are read again.
//!
//! ```text
//!  SIGHUP ─▶ read everything ─┬─ a fault: nothing changes ────────────────────────┬─▶ log, metrics,
//!            check it as at   │                                                   │   /readyz,
//!            the start        └─ log, keys, listed users, TLS: in force ──────────┘   status
//!                                other keys that changed: named, old values stay
//! ```

use std::path::Path;

use iovcache::server::{Access, Config, Exposure, Reloads, ServeOptions, Tls};
use tokio::signal::unix::Signal;

use super::access::AccessFiles;
use super::assemble;
use crate::failure::Failure;
use crate::log::LogFilter;
use crate::settings::CommandLine;

/// The parts of a running service that SIGHUP replaces, and what they are checked against.
pub(super) struct Reloader {
    given: CommandLine,
    started_with: Config,
    access: Access,
    tls: Option<Tls>,
    exposure: Exposure,
    reloads: Reloads,
}

/// Everything that is read again, valid as a whole.
struct NewState {
    config: Config,
    filter: LogFilter,
    access: Access,
    tls: Option<Tls>,
}

impl Reloader {
    pub(super) fn new(
        given: CommandLine,
        started_with: Config,
        options: &ServeOptions,
        exposure: Exposure,
    ) -> Self {
        let ServeOptions { access, tls, reloads, .. } = options.clone();
        Self { given, started_with, access, tls, exposure, reloads }
    }

    /// Reads everything again on each SIGHUP. Signals that arrive meanwhile count as one.
    pub(super) async fn run(self, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            let (given, started_with) = (self.given.clone(), self.started_with.clone());
            // Reading files may block.
            let read = tokio::task::spawn_blocking(move || read(&given, &started_with)).await;
            let read = read.unwrap_or_else(|error| Err(Failure::failed(error)));
            match read.and_then(|new| self.apply(new)) {
                Ok(restart) => self.tell_applied(restart),
                Err(failure) => {
                    tracing::error!("SIGHUP changes nothing: {failure}");
                    self.reloads.refused(failure.to_string());
                }
            }
        }
    }

    /// Puts `new` in force, as a whole or not at all. Gives the keys that take effect after a
    /// restart.
    fn apply(&self, new: NewState) -> Result<Vec<String>, Failure> {
        let NewState { config, filter, access, tls } = new;
        let mut restart = restart_keys(&self.started_with, &config);
        // Without its keys the service would be open to every client: a line that is missing in a
        // file must not do that.
        let access = match self.access.has_keys() && !access.has_keys() {
            true => {
                restart.push("tokens".to_owned());
                access.with_keys_of(&self.access)
            }
            false => access,
        };
        if !self.started_with.insecure {
            self.exposure.check(&access, self.started_with.ccdb_server.writable)?;
        }
        filter.apply()?;
        self.access.replace(&access);
        match (&self.tls, &tls) {
            (Some(tls), Some(new)) => tls.replace(new),
            (None, None) => {}
            // TLS cannot be turned on or off while clients are connected.
            _ => restart.extend(differences("tls", &self.started_with.tls, &config.tls)),
        }
        Ok(restart)
    }

    fn tell_applied(&self, restart: Vec<String>) {
        tracing::info!("keys, listed users, certificates and the filter of the log are read again");
        if !restart.is_empty() {
            let keys = restart.join(", ");
            tracing::warn!(keys, "the configuration has changes that take effect after a restart");
        }
        self.reloads.applied(restart);
    }
}

/// Reads everything, and checks it as at the start.
fn read(given: &CommandLine, started_with: &Config) -> Result<NewState, Failure> {
    let config = match given.file() {
        Some(file) if !can_be_read_again(file) => {
            let file = crate::input::name(file);
            tracing::warn!(file, "the configuration is no regular file and is not read again");
            started_with.clone()
        }
        _ => given.settings()?.config,
    };
    assemble::check_sources(&config)?;
    let tls = &config.tls;
    let files = [&config.tokens, &tls.certificate, &tls.key, &tls.client_ca];
    if let Some(file) = files.into_iter().flatten().find(|file| !can_be_read_again(file)) {
        let file = file.display();
        return Err(Failure::failed(format!(
            "{file}: not a regular file, which is read only once"
        )));
    }
    let filter = LogFilter::parse(&config.log)?;
    let files = AccessFiles(&config);
    let (access, tls) = (files.access()?, files.tls()?);
    Ok(NewState { config, filter, access, tls })
}

/// Whether a file can be read a second time: a pipe (`<(…)` of a shell) is empty then, or blocks.
/// A file that is missing counts, because reading it gives a better error.
fn can_be_read_again(file: &Path) -> bool {
    file.as_os_str() != "-" && std::fs::metadata(file).map_or(true, |found| found.is_file())
}

/// Keys that SIGHUP reads again. Those of `tls` are compared apart.
const READ_AGAIN: [&str; 5] = ["log", "tokens", "allow_uids", "allow_gids", "tls"];

/// The keys that differ and are not read again, each with its section.
fn restart_keys(old: &Config, new: &Config) -> Vec<String> {
    let all = differences("", old, new);
    let section = |key: &str| key.split(['.', '[']).next().unwrap_or_default().to_owned();
    all.into_iter().filter(|key| !READ_AGAIN.contains(&section(key).as_str())).collect()
}

/// The keys below `above` whose values differ, sorted.
fn differences(
    above: &str,
    old: &impl serde::Serialize,
    new: &impl serde::Serialize,
) -> Vec<String> {
    let mut keys = Vec::new();
    match (toml::Value::try_from(old), toml::Value::try_from(new)) {
        (Ok(old), Ok(new)) => differing(above, Some(&old), Some(&new), &mut keys),
        // No configuration that was read has a value that TOML cannot hold.
        _ => keys.push(above.to_owned()),
    }
    keys
}

fn differing(
    key: &str,
    old: Option<&toml::Value>,
    new: Option<&toml::Value>,
    keys: &mut Vec<String>,
) {
    use toml::Value::{Array, Table};
    match (old, new) {
        (Some(Table(old)), Some(Table(new))) => {
            let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                differing(&below, old.get(name), new.get(name), keys);
            }
        }
        (Some(Array(old)), Some(Array(new)))
            if old.len() == new.len() && old.iter().chain(new).all(toml::Value::is_table) =>
        {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                differing(&format!("{key}[{index}]"), Some(old), Some(new), keys);
            }
        }
        (old, new) if old != new => keys.push(key.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;
    use iovcache::Clock;
    use iovcache::cache::PeerPolicy;
    use iovcache::server::Keys;

    use super::*;

    #[test]
    fn every_key_that_needs_a_restart_is_named_with_its_section() {
        let parse = |text: &str| Config::parse(text).unwrap();
        let old = parse(
            "memory = \"1GiB\"\nlog = \"warn\"\n[[source]]\nurl = \"memory:\"\n[ccdb]\nretries = 1\n\
             [tables.a]\nx = \"A/B\"\n",
        );
        let new = parse(
            "memory = \"2GiB\"\nlog = \"info\"\nallow_uids = [7]\nquota_requests = 3\n\
             [[source]]\nurl = \"memory:\"\npaths = [\"A\"]\n[ccdb]\nretries = 2\n\
             [tables.a]\nx = \"A/C\"\n",
        );
        let right = ["ccdb.retries", "memory", "quota_requests", "source[0].paths", "tables.a.x"];
        assert_eq!(restart_keys(&old, &new), right);
        assert_eq!(restart_keys(&old, &old), Vec::<String>::new());
        let more = parse("[[source]]\nurl = \"memory:\"\n[[source]]\nurl = \"memory:\"\n");
        assert!(restart_keys(&old, &more).contains(&"source".to_owned()));
    }

    fn access(keys: &str) -> Access {
        Access::new(PeerPolicy::default(), Keys::parse(keys).unwrap(), Clock::system())
    }

    fn reloader(keys: &str, exposure: Exposure) -> Reloader {
        let started_with = Config::parse("[[source]]\nurl = \"memory:\"").unwrap();
        let command = crate::program();
        let matches = command.get_matches_from(["iovcache", "serve", "--source", "memory:"]);
        let program = crate::Program::from_arg_matches(&matches).unwrap();
        let crate::Command::Serve(arguments) = &program.command else { panic!("{program:?}") };
        let matches = matches.subcommand().unwrap().1;
        Reloader {
            given: CommandLine::new(arguments, &program.log, matches).unwrap(),
            started_with,
            access: access(keys),
            tls: None,
            exposure,
            reloads: Reloads::default(),
        }
    }

    /// A state with these keys and an unchanged configuration.
    fn new_state(reloader: &Reloader, keys: &str) -> NewState {
        NewState {
            config: reloader.started_with.clone(),
            filter: LogFilter::parse("warn").unwrap(),
            access: access(keys),
            tls: None,
        }
    }

    const KEYS: &str = "[[certificate]]\nname = \"a.example\"\nrole = \"read\"\n";

    #[test]
    fn keys_that_would_leave_an_address_unprotected_are_refused() {
        let far = "192.0.2.1:8084".parse().ok();
        let reloader = reloader("", Exposure::new(None, false, far));
        let failure = reloader.apply(new_state(&reloader, KEYS)).unwrap_err();
        let told = failure.to_string();
        assert!(told.starts_with("[IOV-6020] 192.0.2.1:8084 can be reached"), "{told}");
        assert!(!reloader.access.has_keys());
        assert_eq!(reloader.apply(new_state(&reloader, "")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn keys_can_be_added_and_changed_and_not_removed() {
        let reloader = reloader("", Exposure::new(None, false, None));
        assert_eq!(reloader.apply(new_state(&reloader, KEYS)).unwrap(), Vec::<String>::new());
        assert!(reloader.access.has_keys());
        assert_eq!(reloader.apply(new_state(&reloader, "")).unwrap(), ["tokens"]);
        assert!(reloader.access.has_keys());
    }

    #[test]
    fn only_regular_files_are_read_a_second_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(can_be_read_again(&file) && can_be_read_again(&folder.path().join("missing")));
        assert!(!can_be_read_again(Path::new("-")) && !can_be_read_again(Path::new("/dev/null")));
    }
}
