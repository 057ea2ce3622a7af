//! The log: nothing waits for it, and callers without a token can't fill it.

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
};

use crate::support::{
    api::Api,
    program::{Running, free_port},
    wait::until,
};

/// The program over a simulated cluster, with a pipe as standard error, and its API.
async fn program(log: &str) -> (Running, Api) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollbackd"));
    command.args(["sandbox", "--listen", &address.to_string()]).env("RUST_LOG", log);
    let mut program = Running::spawn_with(&mut command, Stdio::piped());
    program.says("Ctrl-C ends it").await;
    (program, Api::new(address))
}

#[tokio::test]
async fn a_pipe_of_standard_error_that_is_never_read_holds_nothing_up() {
    let (mut program, api) = program("info").await;
    // Far more than the 64 KiB of a pipe.
    for _ in 0..1000 {
        api.get("/daemonsets").await.expect(200);
    }
    program.signal("TERM");
    let content = until("the program to end", async || program.has_ended().ok_or(())).await;
    assert!(content, "it ends in order");
    let mut written = String::new();
    program.stderr().read_to_string(&mut written).unwrap();
    assert!(written.len() < 128 * 1024, "the pipe was not full: {} bytes", written.len());
}

#[tokio::test]
async fn refused_requests_of_one_address_fill_no_log() {
    let (mut program, api) = program("info").await;
    let mut stderr = program.stderr();
    let reading = std::thread::spawn(move || {
        let mut written = String::new();
        stderr.read_to_string(&mut written).map(|_| written)
    });
    let long = "a".repeat(6000);
    for _ in 0..900 {
        let answer = api.get(&format!("/{long}")).await;
        let problem = answer.problem(404, "unknown-path");
        assert_eq!(problem["instance"], format!("/{}…", &long[..252]));
        assert!(answer.text.len() < 1200, "{answer:?}");
    }
    api.get("/daemonsets").await.expect(200);
    assert!(program.stop());
    let written = reading.join().unwrap().unwrap();
    let count = |text: &str| written.lines().filter(|line| line.contains(text)).count();
    assert_eq!((count("\"status\":404"), count("\"status\":200")), (10, 1), "{written}");
    assert!(written.len() < 20_000, "{} bytes", written.len());
    assert_eq!(count("stopped"), 1, "the last line is written");
}
