//! `config`: is a configuration right, and what does it come to?

use std::path::PathBuf;

use clap::{Args, Subcommand};
use iovcache::server::Config;

use crate::common::{Failure, out, parse_bytes, parse_duration, parse_mode};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say what is wrong with a configuration, if anything.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print a configuration with all that it leaves out, as TOML.
    Show {
        /// The file; without one, the defaults.
        file: Option<PathBuf>,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.action {
        Action::Check { file } => {
            read(file)?;
            eprintln!("{} is right", file.display());
            Ok(())
        }
        Action::Show { file } => {
            let config = file.as_ref().map(read).transpose()?.unwrap_or_default();
            let text = toml::to_string(&config)
                .map_err(|error| Failure::failed(format!("cannot print it: {error}")))?;
            out(text.as_bytes())
        }
    }
}

/// The configuration in a file, its sizes and times looked at too.
pub(crate) fn read(file: &PathBuf) -> Result<Config, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| Failure::io(file.display(), error))?;
    let config = Config::parse(&text)?;
    let of_file =
        |name: &str, error: String| Failure::usage(format!("{}: {name}: {error}", file.display()));
    for (name, size) in
        [("memory", &config.memory), ("segment", &config.segment), ("disk_size", &config.disk_size)]
    {
        if let Some(size) = size {
            parse_bytes(size).map_err(|error| of_file(name, error))?;
        }
    }
    if let Some(mode) = &config.socket_mode {
        parse_mode(mode).map_err(|error| of_file("socket_mode", error))?;
    }
    for path in &config.paths {
        for (name, time) in [("timeout", &path.timeout), ("refresh", &path.refresh)] {
            let checked = time.as_ref().map_or(Ok(()), |time| parse_duration(time).map(drop));
            let name = format!("path {:?}: {name}", path.path);
            checked.map_err(|error| of_file(&name, error))?;
        }
    }
    if let Some(refresh) = &config.refresh {
        parse_duration(refresh).map_err(|error| of_file("refresh", error))?;
    }
    Ok(config)
}
