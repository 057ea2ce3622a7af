//! A program as a user starts it.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};

/// The limit of memory in the manifest (`deploy/base/deployment.yaml`), in bytes.
pub const MEMORY_LIMIT: usize = 256 * 1024 * 1024;

/// A running program. It is ended in order when dropped, with whatever it has started.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Running {
    /// Starts it; what it says on standard error is nobody's.
    pub fn start(program: &Path, args: &[&str]) -> Self {
        Self::spawn(Command::new(program).args(args))
    }

    /// As [`Running::start`], of a command that a test has prepared.
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_with(command, Stdio::null())
    }

    /// As [`Running::spawn`], with this as standard error. A pipe is not read.
    pub fn spawn_with(command: &mut Command, stderr: Stdio) -> Self {
        let started = command.stdout(Stdio::piped()).stderr(stderr).spawn();
        let mut child = started.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().expect("stdout is piped");
        let stdout = tokio::process::ChildStdout::from_std(stdout).expect("it can be read");
        Self { child, lines: BufReader::new(stdout).lines() }
    }

    /// Waits until it prints a line that holds a text; returns all lines up to there.
    pub async fn says(&mut self, text: &str) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(line) = self.lines.next_line().await.expect("it prints UTF-8") {
            let found = line.contains(text);
            said.push(line);
            if found {
                return said;
            }
        }
        panic!("it ended before it said {text:?}: {said:#?}");
    }

    /// Waits until it prints a line that holds a text; false if it ends before.
    pub async fn says_or_ends(&mut self, text: &str) -> bool {
        while let Some(line) = self.lines.next_line().await.expect("it prints UTF-8") {
            if line.contains(text) {
                return true;
            }
        }
        false
    }

    /// The most memory that it has had resident so far, in bytes (`VmHWM` of Linux): what a limit of its cgroup
    /// would be held against, but for page cache that the kernel can take back.
    pub fn peak_memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = peak.and_then(|text| text.trim().strip_suffix(" kB")).expect("Linux says so");
        kibibytes.parse::<usize>().expect("a number") * 1024
    }

    /// Sends it a signal, such as `STOP`.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{signal}");
    }

    /// Ends it as `kill -9` does, and waits until it has ended.
    pub fn kill(&mut self) {
        self.signal("KILL");
        let _ = self.child.wait();
    }

    /// Its pipe of standard error.
    pub fn stderr(&mut self) -> std::process::ChildStderr {
        self.child.stderr.take().expect("stderr is piped")
    }

    /// Whether it has ended, and if so, whether it was content.
    pub fn has_ended(&mut self) -> Option<bool> {
        self.child.try_wait().expect("it is ours").map(|status| status.success())
    }

    /// Asks it to end, and waits until it has ended; says whether it was content.
    pub fn stop(&mut self) -> bool {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        self.child.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may be frozen.
            self.signal("CONT");
            self.stop();
        }
    }
}

/// A port that nobody listens on: below those that the kernel hands out, so that nobody else of this process gets it
/// before it is used.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        // Below those of the control planes.
        let process = u16::try_from(std::process::id() % 700).expect("less than 700");
        AtomicU16::new(10_000 + process * 10)
    });
    let mut ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a port is free")
}

/// Runs a line in a shell, which must succeed; returns what it prints.
pub async fn shell(line: &str) -> String {
    let run = tokio::process::Command::new("bash").args(["-c", line]).output();
    let Output { status, stdout, stderr } = run.await.expect("bash runs");
    assert!(status.success(), "{line}: {status} {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("it prints UTF-8")
}
