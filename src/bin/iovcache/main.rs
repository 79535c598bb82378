//! The program `iovcache`: one file per command.
//!
//! Data goes to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 usage, 3 not
//! found, 4 unavailable, 5 not allowed.

mod bench;
mod cat;
mod common;
mod config;
mod copy;
mod demo;
mod failure;
mod generate;
mod hints;
mod import;
mod index;
mod input;
mod log;
mod ls;
mod put;
mod serve;
mod settings;
mod status;
mod stderr;
mod table;
mod text_chart;
mod threads;
mod time;
mod timeline;
mod token;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use iovcache::escape::{escape, must_escape};

use crate::settings::CommandLine;

/// Keeps condition objects in shared memory for the time in which they are valid, and answers
/// Arrow Flight requests with tables of their MetaHeaders.
#[derive(Debug, Parser)]
#[command(name = "iovcache", version, propagate_version = true)]
pub(crate) struct Program {
    #[command(flatten)]
    log: serve::LogArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service. Of an option that is given twice the last counts.
    #[command(args_override_self = true)]
    Serve(Box<serve::Arguments>),
    /// Put one version of an object into a repository folder.
    Put(put::Arguments),
    /// Put all objects of a manifest into a repository folder.
    Import(import::Arguments),
    /// Make the index of a repository folder anew, or check it.
    Index(index::Arguments),
    /// Copy versions from a source into a repository.
    Copy(Box<copy::Arguments>),
    /// Ask for a table and print it.
    Table(Box<table::Arguments>),
    /// Write the bytes of an object to stdout (also: get).
    #[command(alias = "get")]
    Cat(cat::Arguments),
    /// List the paths that a service knows.
    Ls(ls::Arguments),
    /// Show which version of a path is valid when.
    Timeline(timeline::Arguments),
    /// Show what a service does: memory, timeframes, sessions, sources.
    Status(status::Arguments),
    /// Show all of it at work, without any file or server.
    Demo(demo::Arguments),
    /// Measure a service under load: latency, throughput, cost, and whether every byte is right.
    Bench(Box<bench::Arguments>),
    /// Check what lies in a repository folder, or in that of a disk tier.
    Verify(verify::Arguments),
    /// Make a token that lets a client in, and its entry for `serve --tokens`.
    Token(token::Arguments),
    /// Check a configuration, or show what it comes to.
    Config(config::Arguments),
    /// Write the completions of a shell to stdout.
    Completions(generate::CompletionsArguments),
    /// Write the manual page to stdout.
    Man(generate::ManArguments),
}

/// The commands with all of their options.
pub(crate) fn program() -> clap::Command {
    let command = Program::command()
        .mut_arg("log", settings::in_environment)
        .mut_arg("log_format", settings::in_environment)
        .mut_subcommand("serve", settings::document_options)
        .mut_subcommand("config", |config| {
            config.mut_subcommand("show", settings::document_options)
        });
    settings::without_empty_variables(command)
}

/// Ends as clap does, but shows no control characters of the arguments.
fn refuse(error: &clap::Error) -> ! {
    let mut text = error.render().to_string();
    let variable = settings::variable_at_fault(&program(), error);
    if let Some(variable) = &variable {
        text = format!("{}\n(the value stands in the environment, in {variable})", text.trim_end());
    }
    if variable.is_some() || text.lines().any(|line| line.chars().any(must_escape)) {
        text.lines().for_each(|line| stderr::say(&escape(line)));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

fn main() -> ExitCode {
    let matches = program().try_get_matches().unwrap_or_else(|error| refuse(&error));
    let program = Program::from_arg_matches(&matches).unwrap_or_else(|error| refuse(&error));
    let Program { log: to_log, command } = program;
    // A service logs as its configuration says, which is yet to be read.
    let begun = match command {
        Command::Serve(_) => Ok(()),
        _ => log::begin(&to_log.filter(), to_log.format()),
    };
    if let Err(failure) = begun {
        return failure.tell();
    }
    let matches = matches.subcommand().map_or(&matches, |(_, matches)| matches);
    let runtime = match threads::runtime(matches!(command, Command::Serve(_))) {
        Ok(runtime) => runtime,
        Err(failure) => return failure.tell(),
    };
    let done = runtime.block_on(async {
        threads::outlive_file_limits();
        match command {
            Command::Serve(arguments) => {
                serve::run(&CommandLine::new(&arguments, &to_log, matches)?).await
            }
            Command::Put(arguments) => put::run(arguments).await,
            Command::Import(arguments) => import::run(arguments).await,
            Command::Index(arguments) => index::run(arguments).await,
            Command::Copy(arguments) => copy::run(*arguments).await,
            Command::Table(arguments) => table::run(*arguments).await,
            Command::Cat(arguments) => cat::run(arguments).await,
            Command::Ls(arguments) => ls::run(arguments).await,
            Command::Timeline(arguments) => timeline::run(arguments).await,
            Command::Status(arguments) => status::run(arguments).await,
            Command::Demo(arguments) => demo::run(arguments).await,
            Command::Bench(arguments) => bench::run(*arguments).await,
            Command::Verify(arguments) => verify::run(&arguments),
            Command::Token(arguments) => token::run(&arguments),
            Command::Config(arguments) => config::run(arguments, &to_log, matches),
            Command::Completions(arguments) => generate::completions(&arguments),
            Command::Man(arguments) => generate::man(&arguments),
        }
    });
    let status = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    };
    log::end();
    // A blocking read of a dead disk must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    status
}
