//! The README: its commands start everything (in the sandbox, or on the real control plane), and each of its
//! `curl` lines prints what stands below it.

use std::{net::TcpListener, path::Path};

use crate::support::{
    controlplane::kubernetes,
    program::{Running, free_port, shell},
};

/// A command of the README and the output that it promises, in which `…` stands for anything.
struct Example {
    command: String,
    promised: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn examples() -> Vec<Example> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = readme.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks
        .map(|block| {
            let (command, promised) = block.split_once('\n').unwrap();
            let command = command.strip_prefix("$ ").expect("a block begins with a command").to_owned();
            Example { command, promised: promised.to_owned() }
        })
        .collect()
}

fn keeps(promised: &str, printed: &str) -> bool {
    let mut parts = promised.split('…');
    let Some(mut rest) = printed.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        let found =
            if last && rest.ends_with(part) { Some(rest.len() - part.len()) } else { rest.find(part) };
        let Some(at) = found else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

#[test]
fn what_the_readme_promises_is_compared_to_the_end() {
    assert!(keeps("a…c", "abbc") && keeps("a", "a") && keeps("…c…", "abcd") && keeps("a…a", "a a a"));
    assert!(!keeps("a…c", "abcd") && !keeps("a", "ab") && !keeps("a…x…c", "abc"));
}

#[tokio::test]
async fn the_readme_works_as_printed() {
    let port = free_port();
    let (program, args): (_, &[&str]) = match kubernetes() {
        Some(_) => (root().join("tests/try"), &[]),
        None => (env!("CARGO_BIN_EXE_rollbackd").into(), &["sandbox", "--speed", "4"]),
    };
    let listen = ["--listen", &format!("127.0.0.1:{port}")];
    let mut everything = Running::start(&program, &[args, &listen].concat());
    everything.says("Ctrl-C ends it").await;
    let examples = examples();
    assert!(examples.len() >= 8, "the README has lost its examples");
    for Example { command, promised } in examples {
        let command = command.replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
        let printed = shell(&command).await;
        // A JSON answer ends without a newline, a block of the README with one.
        let printed = if printed.ends_with('\n') { printed } else { printed + "\n" };
        assert!(keeps(&promised, &printed), "{command}\npromised:\n{promised}\nprinted:\n{printed}");
    }
    everything.stop();
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "rollbackd outlived it");
}
