//! The command `rollbackd`.

use std::{
    fs::File,
    io::{self, BufReader, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use clap::{CommandFactory, Parser, error::ErrorKind};
use rollbackd::{
    audit,
    config::{AuditCommand, Cli, Command, ExportArgs, VerifyArgs},
    http::openapi,
    server, telemetry,
    verifier::{AnchorPlace, Checks, verify_export, verify_store},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Openapi => {
            // Whoever reads only the beginning has what they wanted.
            match io::stdout().write_all(openapi::document().as_bytes()) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
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
        Command::Audit(AuditCommand::Verify(args)) => exit(verify(args)),
        Command::Audit(AuditCommand::Export(args)) => exit(export(args)),
    }
}

fn run<S: Future<Output = anyhow::Result<()>>>(serve: impl FnOnce(CancellationToken) -> S) -> ExitCode {
    telemetry::start_logging();
    exit(until_signalled(serve))
}

fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => {
            telemetry::print_last(None);
            ExitCode::SUCCESS
        }
        Err(error) => {
            telemetry::print_last(Some(&format!("error: {}", telemetry::causes(&*error))));
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

#[tokio::main(flavor = "current_thread")]
async fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    let VerifyArgs { store, file, anchor, retention } = args;
    let checks = Checks { anchor, retention, known_triggers: store.known_triggers.clone() };
    let (what, report) = match file {
        Some(file) if file == Path::new("-") => {
            ("standard input".to_owned(), verify_export(io::stdin().lock(), &checks)?)
        }
        Some(file) => {
            let what = file.display().to_string();
            let lines = File::open(file).with_context(|| format!("--file {what}"))?;
            let report = verify_export(BufReader::new(lines), &checks);
            (what.clone(), report.with_context(|| format!("--file {what}"))?)
        }
        None => {
            let store = store.url()?;
            let report = verify_store(store.secret(), &checks).await;
            (store.to_string(), report.with_context(|| format!("--store {store}"))?)
        }
    };
    let mut told = io::stdout().lock();
    for finding in &report.findings {
        writeln!(told, "{finding}").context("standard output")?;
    }
    let untold = report.found - report.findings.len() as u64;
    if untold > 0 {
        writeln!(told, "and {untold} more").context("standard output")?;
    }
    if !report.is_whole() {
        let findings = if report.found == 1 { "finding" } else { "findings" };
        anyhow::bail!("{what} is not what was written ({} {findings})", report.found);
    }
    let (sequence, hash) = report.head;
    writeln!(told, "whole: {} entries, head {sequence} {hash}", report.entries).context("standard output")?;
    if let Some(last) = report.cut {
        writeln!(told, "entries 1 to {last} were cut off, as its last audit.cut says")
            .context("standard output")?;
    }
    if let Some(AnchorPlace::Pruned(last)) = report.anchor {
        writeln!(
            told,
            "the anchor is entry {last}, which was pruned: it says where the audit begins, and nothing of what is in it"
        )
        .context("standard output")?;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn export(args: ExportArgs) -> anyhow::Result<()> {
    let store = args.store.url()?;
    let head = audit::export(&store, io::stdout().lock()).await;
    let head = head.with_context(|| format!("--store {store}"))?;
    eprintln!("head {} {}", head.sequence, head.hash);
    Ok(())
}
