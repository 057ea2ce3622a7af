//! The disk under SQLite fails: full, broken, read-only, or with what is on it damaged. The real binary runs over a
//! C library whose calls fail when a test says so (`tests/faults/disk.c`).

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use serde_json::{Value, json};

use crate::support::{
    api::{Answer, Api},
    program::{Running, free_port},
    wait::until,
};

const AGENT: &str = "/daemonsets/monitoring/node-exporter";

/// Built once for all tests.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/disk.c");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{}.so", std::process::id()));
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    assert!(compiler.status().expect("cc runs").success(), "{compiler:?}");
    library
});

/// A folder on a disk that fails when it is told to.
struct Disk {
    folder: tempfile::TempDir,
    /// Says how; elsewhere, so that it can be written.
    control: tempfile::NamedTempFile,
}

impl Disk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), control: tempfile::NamedTempFile::new().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("rollbackd.db")
    }

    fn fails(&self, how: &str) {
        std::fs::write(self.control.path(), how).unwrap();
    }

    fn works(&self) {
        self.fails("");
    }

    /// The fault is one that passes by itself.
    fn has_failed_once(&self) -> bool {
        std::fs::read(self.control.path()).unwrap().is_empty()
    }

    fn store(&self) -> String {
        format!("sqlite:{}", self.file().display())
    }

    /// The sandbox, which is the service over a simulated cluster, on this disk.
    fn command(&self, port: u16) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollbackd"));
        let listen = format!("127.0.0.1:{port}");
        command.args(["sandbox", "--speed", "10", "--listen", &listen, "--store", &self.store()]);
        command.env("LD_PRELOAD", LIBRARY.as_path());
        command.env("FAULTY_FOLDER", self.folder.path()).env("FAULTY_HOW", self.control.path());
        command
    }

    async fn start(&self) -> (Running, Api) {
        let port = free_port();
        let mut running = Running::spawn(&mut self.command(port));
        running.says("Ctrl-C").await;
        (running, Api::new(format!("127.0.0.1:{port}").parse().unwrap()))
    }

    /// Lets it start, which must fail with one line; returns that.
    fn fails_to_start(&self) -> String {
        let Output { status, stdout, stderr } =
            self.command(free_port()).stdin(Stdio::null()).output().expect("the binary runs");
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{stderr}");
        let stdout = String::from_utf8(stdout).unwrap();
        assert!(!stdout.contains("panic") && !stdout.contains("Ctrl-C"), "{stdout}");
        // Beside what it logs.
        let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with('{')).collect();
        assert_eq!(lines.len(), 1, "{stderr}");
        assert!(lines[0].starts_with(&format!("error: --store {}: ", self.store())), "{stderr}");
        lines[0].to_owned()
    }

    /// `rollbackd audit verify`: its code and what it says. What it reads with works.
    fn verify(&self) -> (i32, String) {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_rollbackd"));
        let output = verify.args(["audit", "verify", "--store", &self.store()]).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }
}

async fn roll_back(api: &Api) -> Answer {
    api.post(&format!("{AGENT}/rollback"), &json!({"reason": "it crashes"})).await
}

/// What a rollback changes: the generation and the live template, as rollbackd reads them from the cluster.
async fn live(api: &Api) -> (Value, Value) {
    let agent = api.get(AGENT).await.expect(200);
    assert!(agent["generation"].is_i64(), "{agent}");
    (agent["generation"].clone(), agent["images"].clone())
}

fn store_errors(metrics: &str) -> u64 {
    let count = metrics.lines().find_map(|line| line.strip_prefix("rollbackd_store_errors_total "));
    count.and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// A rollback is refused for want of a record, with what to do meanwhile.
fn is_unavailable(answer: &Answer) {
    let problem = answer.problem(503, "store-unavailable");
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    let command = problem["command"].as_str().unwrap_or_default();
    assert!(
        command.starts_with("kubectl rollout undo daemonset/node-exporter --namespace=monitoring"),
        "{problem}"
    );
    assert!(problem["detail"].as_str().unwrap().ends_with("nothing was changed"), "{problem}");
}

/// Waits until the disk is used again, by a rollback that is made.
async fn recovers(api: &Api, how: &str) -> String {
    let made = until(&format!("a rollback after {how}"), async || {
        let answer = roll_back(api).await;
        if answer.status == 202 { Ok(answer) } else { Err(answer) }
    })
    .await;
    made.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_cannot_be_written_is_not_done_and_it_recovers_by_itself() {
    let disk = Disk::new();
    let (mut running, api) = disk.start().await;
    let mut made = vec![recovers(&api, "the start").await];
    for how in ["ENOSPC", "short", "EIO", "EROFS", "fsync"] {
        let stream = api.events(&format!("{AGENT}/status")).await;
        let (before, errors) = (live(&api).await, store_errors(&api.get("/metrics").await.text));
        disk.fails(how);
        is_unavailable(&roll_back(&api).await);
        is_unavailable(&api.post(&format!("{AGENT}/rollback"), &json!({"dryRun": true})).await);
        assert_eq!(live(&api).await, before, "{how}");

        // What needs no record goes on, and so does what can be read of the record.
        let ended = stream.into_all().await;
        assert_eq!(ended.last().map(|event| event.name.as_str()), Some("complete"), "{how}");
        api.get(&format!("{AGENT}/revisions")).await.expect(200);
        api.get(&format!("/rollbacks/{}", made[0])).await.expect(200);
        api.get("/audit").await.expect(200);
        assert_eq!(api.get("/readyz").await.text, "ok", "{how}");
        until("the store to be called degraded", async || {
            let ready = api.get("/readyz?verbose").await;
            let what = if how == "ENOSPC" { ": the disk is full\n" } else { ": " };
            let said = ready.text.contains(&format!("store degraded: no rollback can be recorded{what}"));
            if ready.status == 200 && said { Ok(()) } else { Err(ready) }
        })
        .await;
        assert!(store_errors(&api.get("/metrics").await.text) >= errors + 2, "{how}");

        disk.works();
        made.push(recovers(&api, how).await);
        until("the store to be called ok", async || {
            let ready = api.get("/readyz?verbose").await;
            if ready.text.contains("[+]store ok") { Ok(()) } else { Err(ready.text) }
        })
        .await;
        let (code, said) = disk.verify();
        assert_eq!(code, 0, "{how}: {said}");
    }
    // None stays open: what ended while nothing could be written is on record now.
    for id in &made {
        api.rollback_in(id, &["succeeded", "superseded"]).await;
    }

    let kept = api.get("/audit/head").await.expect(200);
    running.kill();
    let (_running, api) = disk.start().await;
    for id in &made {
        api.get(&format!("/rollbacks/{id}")).await.expect(200);
    }
    assert!(api.get("/audit/head").await.expect(200)["sequence"].as_i64() >= kept["sequence"].as_i64());
    let (code, said) = disk.verify();
    assert_eq!(code, 0, "{said}");
}

/// After a failed `fsync` nobody knows what is on the disk; it may work the next time, and lie.
#[tokio::test]
async fn a_record_that_failed_once_to_become_durable_is_no_record() {
    for killed in [false, true] {
        let disk = Disk::new();
        let (mut running, mut api) = disk.start().await;
        let first = recovers(&api, "the start").await;
        api.rollback_in(&first, &["succeeded"]).await;
        let before = live(&api).await;
        disk.fails("fsync-once");
        is_unavailable(&roll_back(&api).await);
        assert!(disk.has_failed_once());
        assert_eq!(live(&api).await, before);
        if killed {
            // What was written of it may be found by the next process, which finds out that it was not made.
            running.kill();
            (running, api) = disk.start().await;
        }
        let second = recovers(&api, "the fault").await;
        for id in [&first, &second] {
            api.get(&format!("/rollbacks/{id}")).await.expect(200);
        }
        until("every rollback to have its end", async || {
            let all = api.get("/rollbacks").await.expect(200)["items"].clone();
            let open = all.as_array().unwrap().iter().any(|one| one["endedAt"].is_null());
            if open { Err(all) } else { Ok(()) }
        })
        .await;
        let (code, said) = disk.verify();
        assert_eq!(code, 0, "{said}");
        running.kill();
        let (code, said) = disk.verify();
        assert_eq!(code, 0, "{said}");
    }
}

#[tokio::test]
async fn a_disk_that_fails_at_the_start_is_told_in_one_line() {
    // What SQLite calls it when it opens what is there is not what it calls it when it writes.
    for (how, why, again) in [
        ("ENOSPC", "full", "I/O error"),
        ("EIO", "I/O error", "I/O error"),
        ("EROFS", "Read-only file system", "Read-only file system"),
    ] {
        // A new store.
        let disk = Disk::new();
        disk.fails(how);
        let line = disk.fails_to_start();
        assert!(line.contains(why), "{how}: {line}");
        // Nothing half-made is left in the way.
        disk.works();
        let (mut running, api) = disk.start().await;
        recovers(&api, how).await;
        // One with a record, as a crash leaves it.
        running.kill();
        disk.fails(how);
        let line = disk.fails_to_start();
        assert!(line.contains(again), "{how}: {line}");
        disk.works();
        let (code, said) = disk.verify();
        assert_eq!(code, 0, "{how}: {said}");
        let (_running, api) = disk.start().await;
        recovers(&api, how).await;
    }
}

/// Overwrites a part of a file.
fn damage(file: &Path, from: u64, length: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&vec![0xa5; length], from).unwrap();
}

/// A store at rest with some rollbacks.
async fn used() -> Disk {
    let disk = Disk::new();
    let (mut running, api) = disk.start().await;
    for _ in 0..3 {
        let id = recovers(&api, "the start").await;
        api.rollback_in(&id, &["succeeded", "superseded"]).await;
    }
    assert!(running.stop(), "it stops in order");
    disk
}

#[tokio::test]
async fn a_file_whose_head_is_damaged_is_told_in_one_line() {
    let disk = used().await;
    damage(&disk.file(), 0, 100);
    let line = disk.fails_to_start();
    assert!(line.contains("file is not a database"), "{line}");
    let (code, said) = disk.verify();
    assert!(code == 1 && said.contains("file is not a database"), "{code} {said}");
}

#[tokio::test]
async fn a_file_that_is_damaged_anywhere_makes_no_rollback_without_record() {
    let whole = used().await;
    let length = std::fs::metadata(whole.file()).unwrap().len();
    const PAGE: u64 = 4096;
    let mut found = Vec::new();
    for page in 1..length / PAGE {
        let disk = Disk::new();
        std::fs::copy(whole.file(), disk.file()).unwrap();
        damage(&disk.file(), page * PAGE, PAGE as usize);
        let port = free_port();
        let mut running = Running::spawn(&mut disk.command(port));
        let (code, said) = disk.verify();
        assert!(code == 0 || !said.is_empty(), "{said}");
        if !running.says_or_ends("Ctrl-C").await {
            found.push((page, "it does not start"));
            assert!(!running.stop(), "it has ended with an error");
            disk.fails_to_start();
            continue;
        }
        let api = Api::new(format!("127.0.0.1:{port}").parse().unwrap());
        let before = live(&api).await;
        let answer = roll_back(&api).await;
        if answer.status == 202 {
            // Then it is on record, and can be read.
            let id = answer.json()["id"].as_str().unwrap().to_owned();
            let entries = api.get("/audit?limit=10").await;
            if entries.status == 200 {
                assert!(entries.text.contains(&id), "{entries:?}");
            }
            found.push((page, "a rollback was made"));
        } else {
            is_unavailable(&answer);
            assert_eq!(live(&api).await, before);
            found.push((page, "a rollback was refused"));
        }
        // Nothing has panicked: it serves, and stops in order.
        api.get(AGENT).await.expect(200);
        assert!(running.stop(), "it stops in order");
    }
    // Each way out was met, or the test tests less than it says.
    for way in ["it does not start", "a rollback was refused"] {
        assert!(found.iter().any(|(_, met)| *met == way), "{way}: {found:?}");
    }
}

#[tokio::test]
async fn a_second_process_is_refused_by_whatever_link_it_names_the_file() {
    let disk = Disk::new();
    // The first makes the file through a link that leads to none yet.
    let (target, link) = (disk.folder.path().join("target.db"), disk.folder.path().join("link.db"));
    std::os::unix::fs::symlink(&target, disk.file()).unwrap();
    let (_running, _) = disk.start().await;
    std::os::unix::fs::symlink(&target, &link).unwrap();
    for file in [disk.file(), target, link] {
        let store = format!("sqlite:{}", file.display());
        let mut second = Command::new(env!("CARGO_BIN_EXE_rollbackd"));
        let output = second.args(["sandbox", "--listen", "127.0.0.1:0", "--store", &store]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let line = format!("error: --store {store}: another process uses it");
        assert!(output.status.code() == Some(1) && said.lines().any(|it| it == line), "{said}");
    }
}
