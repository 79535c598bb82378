//! `completions` and `man`: generated from the definition of the commands.

use std::path::PathBuf;

use crate::common::out;
use crate::failure::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArguments {
    /// The shell.
    shell: clap_complete::Shell,
}

pub(crate) fn completions(arguments: &CompletionsArguments) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::program(), "iovcache", &mut text);
    out(&text)
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManArguments {
    /// Write a page for each command into this folder, e.g. iovcache-serve.1, instead of one page
    /// to stdout.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn man(arguments: &ManArguments) -> Result<(), Failure> {
    if let Some(folder) = &arguments.output {
        let command = crate::program().disable_help_subcommand(true);
        return clap_mangen::generate_to(command, folder)
            .map_err(|error| Failure::io(folder.display(), error));
    }
    let mut text = Vec::new();
    let command = crate::program().disable_help_subcommand(true);
    let render = |command: clap::Command, text: &mut Vec<u8>| {
        clap_mangen::Man::new(command)
            .render(text)
            .map_err(|error| Failure::io("cannot write the manual", error))
    };
    render(command.clone(), &mut text)?;
    for sub in command.get_subcommands() {
        let name = format!("iovcache-{}", sub.get_name());
        render(sub.clone().name(name), &mut text)?;
    }
    out(&text)
}
