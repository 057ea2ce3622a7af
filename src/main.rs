//! The command `rollbackd`.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};
use rollbackd::{
    config::{Cli, Command},
    http::openapi,
    server, telemetry,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Openapi => {
            print!("{}", openapi::document());
            ExitCode::SUCCESS
        }
        Command::Serve(args) => {
            if let Err(problem) = args.check() {
                Cli::command().error(ErrorKind::ValueValidation, problem).exit();
            }
            telemetry::start_logging();
            match run(args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

#[tokio::main]
async fn run(args: rollbackd::config::ServeArgs) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopping = stop.clone();
    tokio::spawn(async move {
        for asked in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked > 0 {
                std::process::exit(1);
            }
            stopping.cancel();
        }
    });
    server::serve(args, stop).await
}
