//! The command `rollbackd`.

use std::{io::Write, process::ExitCode};

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
            // Whoever reads only the beginning has what they wanted.
            match std::io::stdout().write_all(openapi::document().as_bytes()) {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    eprintln!("error: standard output: {error}");
                    ExitCode::FAILURE
                }
                _ => ExitCode::SUCCESS,
            }
        }
        Command::Serve(args) => {
            if let Err(problem) = args.check() {
                Cli::command().error(ErrorKind::ValueValidation, problem).exit();
            }
            run(|stop| server::serve(args, stop))
        }
        Command::Sandbox(args) => run(|stop| server::serve_sandbox(args, stop)),
    }
}

fn run<S: Future<Output = anyhow::Result<()>>>(serve: impl FnOnce(CancellationToken) -> S) -> ExitCode {
    telemetry::start_logging();
    match until_signalled(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", telemetry::causes(&*error));
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn until_signalled<S: Future<Output = anyhow::Result<()>>>(
    serve: impl FnOnce(CancellationToken) -> S,
) -> anyhow::Result<()> {
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
    serve(stop).await
}
