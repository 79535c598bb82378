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
mod keys;
mod log;
mod ls;
mod priority;
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

use std::io::Write as _;
use std::pin::Pin;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use iovcache::escape::{escape, must_escape};

use crate::failure::Failure;
use crate::priority::Priority;
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
    /// Run the service. If an option is given twice, the last one counts.
    #[command(args_override_self = true)]
    Serve(Box<serve::Arguments>),
    /// Put one version of an object into a repository folder.
    Put(put::Arguments),
    /// Put all objects of a manifest into a repository folder.
    Import(import::Arguments),
    /// Rebuild the index of a repository, or check it.
    Index(index::Arguments),
    /// Copy versions from a source into a repository.
    Copy(Box<copy::Arguments>),
    /// Request a table and print it.
    Table(Box<table::Arguments>),
    /// Write the bytes of an object to stdout (also: get).
    #[command(alias = "get")]
    Cat(cat::Arguments),
    /// List the paths that a service knows.
    Ls(ls::Arguments),
    /// Show which version of a path is valid when.
    Timeline(timeline::Arguments),
    /// Show the state of a service: memory, timeframes, sessions, sources.
    Status(status::Arguments),
    /// Show repository, service and consumers at work, without any file or server.
    Demo(demo::Arguments),
    /// Measure a service under load: latency, throughput, cost, and whether every byte is correct.
    Bench(Box<bench::Arguments>),
    /// Check the files of a repository folder or of a disk tier's folder.
    Verify(verify::Arguments),
    /// Make a token that gives a client access, and its entry for `serve --tokens`.
    Token(token::Arguments),
    /// Check a configuration, or print the effective one.
    Config(config::Arguments),
    /// Write the completion script of a shell to stdout.
    Completions(generate::CompletionsArguments),
    /// Write the manual page to stdout.
    Man(generate::ManArguments),
}

impl Command {
    /// The priority of the command's threads.
    fn priority(&self) -> Priority {
        match self {
            Self::Import(arguments) => arguments.priority,
            Self::Copy(arguments) => arguments.priority,
            _ => Priority::Normal,
        }
    }
}

/// The commands with all of their options.
pub(crate) fn program() -> clap::Command {
    settings::without_empty_variables(program_with_variables())
}

/// Like [`program`], with the variables that are empty, too.
fn program_with_variables() -> clap::Command {
    let command = Program::command()
        .mut_arg("log", settings::in_environment)
        .mut_arg("log_format", settings::in_environment)
        .mut_subcommand("serve", settings::document_options)
        .mut_subcommand("config", |config| {
            config.mut_subcommand("show", settings::document_options)
        });
    with_earlier_names(command)
}

/// Keeps `--key` as an alias of `--cert-key`, its earlier name, except in commands where `--key`
/// names a key of columns.
fn with_earlier_names(mut command: clap::Command) -> clap::Command {
    let has_key = |one: &&clap::Command| one.get_arguments().any(|arg| arg.get_id() == "key");
    let named = command.get_subcommands().filter(has_key).map(|one| one.get_name().to_owned());
    let named: Vec<String> = named.filter(|name| name != "table").collect();
    for name in named {
        command = command.mut_subcommand(name, |one| one.mut_arg("key", |arg| arg.alias("key")));
    }
    command
}

/// Exits as clap does, with the control characters of the arguments escaped. Help that cannot be
/// written is a failure.
fn refuse(error: &clap::Error) -> ! {
    if !error.use_stderr() {
        match error.print().and_then(|()| std::io::stdout().flush()) {
            Ok(()) => std::process::exit(0),
            Err(error) => Failure::stdout(error).exit(),
        }
    }
    let mut text = error.render().to_string();
    let variable = settings::variable_at_fault(&program(), error);
    if let Some(variable) = &variable {
        text = format!(
            "{}\n(the value comes from the environment variable {variable})",
            text.trim_end()
        );
    }
    if variable.is_some() || text.lines().any(|line| line.chars().any(must_escape)) {
        text.lines().for_each(|line| stderr::say(&escape(line)));
        std::process::exit(error.exit_code());
    }
    error.exit()
}

async fn run(
    command: Command,
    log: &serve::LogArguments,
    matches: &ArgMatches,
) -> Result<(), Failure> {
    match command {
        Command::Serve(arguments) => serve::run(&CommandLine::new(&arguments, log, matches)?).await,
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
        Command::Config(arguments) => config::run(arguments, log, matches),
        Command::Completions(arguments) => generate::completions(&arguments),
        Command::Man(arguments) => generate::man(&arguments),
    }
}

fn main() -> ExitCode {
    let matches = program().try_get_matches().unwrap_or_else(|error| refuse(&error));
    let program = Program::from_arg_matches(&matches).unwrap_or_else(|error| refuse(&error));
    let Program { log: to_log, command } = program;
    // A service logs as its configuration says, which is read later.
    let begun = match command {
        Command::Serve(_) => Ok(()),
        _ => log::begin(&to_log.filter(), to_log.format()),
    };
    if let Err(failure) = begun {
        return failure.tell();
    }
    for (name, meant) in settings::misspelled_variables(&program_with_variables()) {
        let name = escape(&name).into_owned();
        stderr::say(&format!("note: no option reads the variable {name}; did you mean {meant}?"));
    }
    if let Command::Serve(_) = command {
        time::say_unit_hint();
    }
    let matches = matches.subcommand().map_or(&matches, |(_, matches)| matches);
    // Before there are other threads: they get the priority of this one.
    command.priority().begin();
    let runtime = match threads::runtime(matches!(command, Command::Serve(_))) {
        Ok(runtime) => runtime,
        Err(failure) => return failure.tell(),
    };
    // `block_on` has three places that poll its future; of a concrete type, all commands would be
    // compiled into each.
    let work: Pin<Box<dyn Future<Output = _> + '_>> = Box::pin(async {
        threads::outlive_file_limits();
        run(command, &to_log, matches).await
    });
    let done = runtime.block_on(work);
    let status = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    };
    time::say_unit_hint();
    log::end();
    // A blocking read of a dead disk must not delay the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    status
}
