//! The README: its first command starts everything, and each of its `curl` lines prints what stands below it.

use std::{
    net::TcpListener,
    path::Path,
    process::{Output, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
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
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut everything = Command::new(root().join("tests/try"))
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("bash runs tests/try");
    let mut lines = BufReader::new(everything.stdout.take().unwrap()).lines();
    loop {
        let line = lines.next_line().await.unwrap().expect("tests/try ended before it was ready");
        if line.contains("Ctrl-C ends it") {
            break;
        }
    }
    let examples = examples();
    assert!(examples.len() >= 7, "the README has lost its examples");
    for Example { command, promised } in examples {
        let command = command.replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
        let Output { status, stdout, .. } =
            Command::new("bash").args(["-c", &command]).output().await.expect("bash runs");
        let printed = String::from_utf8(stdout).unwrap();
        // A JSON answer ends without a newline, a block of the README with one.
        let printed = if printed.ends_with('\n') { printed } else { printed + "\n" };
        assert!(status.success(), "{command}: {status}");
        assert!(keeps(&promised, &printed), "{command}\npromised:\n{promised}\nprinted:\n{printed}");
    }

    let pid = everything.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    everything.wait().await.expect("tests/try ends");
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "rollbackd outlived tests/try");
}
