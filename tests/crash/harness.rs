//! The crash harness: kills rollbackd with -9 while it works on a real control plane, and writes down what
//! happened. It judges nothing: that is `check.rs`, a program apart. What is expected is in `MODEL.md`.
//!
//! rollbackd is used as a program, over HTTP and signals; none of its code is in here. Everything that is started
//! dies with this process, even by `kill -9`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use fastrand::Rng;
use futures_util::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncBufReadExt as _,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "crash";
/// The last one has updateStrategy OnDelete.
const NAMES: [&str; 6] = ["agent-0", "agent-1", "agent-2", "agent-3", "agent-4", "on-delete"];
/// Pods of the last one take seconds to be ready, so that rollouts outlive rollbackd.
const IMAGES: [&str; 5] = ["img:1", "img:2", "img:3", "img:4", "img:slow"];
const CALLERS: usize = 3;

/// Points in rollbackd (`src/failpoint.rs`), each with the one at which the life before it has to end, so that
/// there is something to settle.
const POINTS: [(&str, Option<&str>); 18] = [
    ("planned", None),
    ("recorded", None),
    ("pinned-again", None),
    ("patch-sent", None),
    ("patch-answered", None),
    ("applied-recorded", None),
    ("failing", None),
    ("answer-made", None),
    ("answer-kept", None),
    ("follow-before-record", None),
    ("follow-recorded", None),
    ("settling-looked", Some("recorded")),
    ("settling-outdated", Some("recorded")),
    ("settling", Some("patch-sent")),
    ("settled", Some("patch-sent")),
    ("settling", Some("recorded")),
    ("settled", Some("patch-answered")),
    (UNSETTLED, None),
];
/// A point that is come to only when the API server stays away for long.
const UNSETTLED: &str = "unsettled-recorded";
/// rollbackd waits 10 s for the patch's answer, and 5 s to learn what came of it.
const UNTIL_UNSETTLED: Duration = Duration::from_secs(25);
/// How often a point is tried that depends on what others do in between.
const TRIES: usize = 12;

/// Kills rollbackd again and again on a real control plane, and writes down what happened
#[derive(Debug, Parser)]
struct Args {
    /// How often it is killed at least; at each fail point it is killed whatever that takes
    #[arg(long, default_value_t = 40)]
    kills: usize,
    /// How often it is killed at each fail point
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Chooses everything that is chosen here; what the machine does in between stays its own
    #[arg(long)]
    seed: Option<u64>,
    /// Store of rollbackd, with nothing in it [default: SQLite, in the history]
    #[arg(long)]
    store: Option<String>,
    /// How many run side by side; more than one needs PostgreSQL
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// Seconds after which nobody is killed any more
    #[arg(long, default_value_t = 7200)]
    seconds: u64,
    /// rollbackd, built with the feature fail-points
    #[arg(long)]
    rollbackd: PathBuf,
    /// Directory of the history; emptied
    #[arg(long)]
    history: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let interrupted = async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    };
    tokio::select! {
        done = run(args) => done,
        interrupted = interrupted => {
            interrupted?;
            bail!("interrupted")
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("crash: seed {seed}");
    let _ = std::fs::remove_dir_all(&args.history);
    std::fs::create_dir_all(&args.history)?;
    let history = args.history.canonicalize()?;
    // A build that goes on beside us must not change what we run.
    let program = history.join("rollbackd");
    std::fs::copy(&args.rollbackd, &program).context("--rollbackd")?;
    let cluster = Cluster::start(&history)?;
    let client = cluster.client().await?;
    let store =
        args.store.clone().unwrap_or_else(|| format!("sqlite:{}", history.join("rollbackd.db").display()));
    let harness = Arc::new(Harness {
        http: reqwest::Client::builder().timeout(Duration::from_secs(20)).build()?,
        ports: (0..args.replicas).map(|_| free_port()).collect::<Result<_, _>>()?,
        told: Record::create(&history, "told.ndjson")?,
        printed: Record::create(&history, "printed.ndjson")?,
        seen: Record::create(&history, "seen.ndjson")?,
        logged: Record::create(&history, "rollbackd.log")?,
        ids: Mutex::default(),
        keys: Mutex::default(),
        program,
        store,
        kubeconfig: cluster.state.join("admin.kubeconfig"),
        kubectl: cluster.state.join("bin/kubectl"),
        client,
        frozen: tokio::sync::RwLock::default(),
    });
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    harness.prepare().await?;
    tasks.spawn(harness.clone().watch(harness.resource_version().await?, stop.clone()));
    let mut rng = Rng::with_seed(seed);
    let traffic = CancellationToken::new();
    let mut killer = Killer {
        lives: Vec::new(),
        kills: BTreeMap::new(),
        deadline: Instant::now() + Duration::from_secs(args.seconds),
        rng: rng.fork(),
        cluster: &cluster,
        harness: harness.clone(),
    };
    for replica in 0..args.replicas {
        killer.lives.push(harness.live(replica, None)?);
    }
    killer.ready().await?;
    for _ in 0..CALLERS {
        tasks.spawn(harness.clone().call(rng.fork(), traffic.clone()));
    }
    tasks.spawn(harness.clone().meddle(rng.fork(), traffic.clone()));
    killer.kill(args.kills, args.rounds).await?;
    traffic.cancel();
    let kills = killer.kills.clone();
    let total: usize = kills.values().sum();
    println!("crash: {total} kills in {} s, waiting for what is open", started.elapsed().as_secs());

    harness.settled().await?;
    let all = harness.rollbacks().await?;
    let file = Record::create(&history, "rollbacks.ndjson")?;
    all.iter().for_each(|rollback| file.line(rollback));
    sleep(Duration::from_millis(500)).await;
    for life in &mut killer.lives {
        life.terminate().await?;
    }
    stop.cancel();
    while tasks.join_next().await.transpose()?.transpose()?.is_some() {}
    let export = File::create(history.join("export.ndjson"))?;
    let exported = tokio::process::Command::new(&harness.program)
        .args(["audit", "export", "--store", &harness.store])
        .stdout(export)
        .stderr(Stdio::null())
        .status();
    ensure!(exported.await?.success(), "rollbackd audit export failed");
    let told = json!({
        "seed": seed, "seconds": started.elapsed().as_secs(), "replicas": args.replicas, "kills": kills,
        "points": POINTS.map(|(name, _)| name), "rounds": args.rounds,
        "store": harness.store.split(':').next(),
    });
    std::fs::write(history.join("harness.json"), told.to_string())?;
    println!("crash: the history is in {}", history.display());
    Ok(())
}

fn free_port() -> std::io::Result<u16> {
    TcpListener::bind("127.0.0.1:0")?.local_addr().map(|address| address.port())
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// A file of one JSON value a line.
struct Record(Mutex<File>);

impl Record {
    fn create(folder: &Path, name: &str) -> anyhow::Result<Self> {
        Ok(Self(Mutex::new(File::create(folder.join(name))?)))
    }

    fn line(&self, text: impl std::fmt::Display) {
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        writeln!(file, "{text}").expect("the history can be written");
    }
}

/// The control plane. Its supervisor ends it when our end of its input is closed.
struct Cluster {
    state: PathBuf,
    _stdin: ChildStdin,
    supervisor: Child,
}

/// Every write to a DaemonSet's spec or metadata: when it came, what it was, what came of it.
const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted]
omitManagedFields: true
rules:
- level: RequestResponse
  verbs: [create, update, patch, delete]
  resources: [{group: apps, resources: [daemonsets]}]
  namespaces: [crash]
- level: None
";

impl Cluster {
    fn start(history: &Path) -> anyhow::Result<Self> {
        let policy = history.join("audit-policy.yaml");
        std::fs::write(&policy, POLICY)?;
        let flags = format!(
            "--audit-policy-file={} --audit-log-path={} --audit-log-mode=blocking-strict --audit-log-maxsize=100000",
            policy.display(),
            history.join("api-server.ndjson").display(),
        );
        let state = history.join("controlplane");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controlplane/supervise");
        let mut supervisor = std::process::Command::new(script)
            .args(["--nodes", "2", "--state"])
            .arg(&state)
            .env("APISERVER_FLAGS", flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("tests/controlplane/supervise")?;
        let stdin = supervisor.stdin.take().context("its input")?;
        let stdout = supervisor.stdout.take().context("its output")?;
        let ready = BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line == "ready");
        ensure!(ready, "the control plane did not start");
        Ok(Self { state, _stdin: stdin, supervisor })
    }

    async fn client(&self) -> anyhow::Result<Client> {
        let file = Kubeconfig::read_from(self.state.join("admin.kubeconfig"))?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }

    /// Sends a signal to the API server.
    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = std::fs::read_to_string(self.state.join("kube-apiserver.pid"))?;
        let sent = std::process::Command::new("kill").args([&format!("-{signal}"), pid.trim()]).status()?;
        ensure!(sent.success(), "kill -{signal} of the API server");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // In order: it ends what it has started. A frozen API server is ended by -9.
        let pid = self.supervisor.id().to_string();
        let _ = std::process::Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.supervisor.wait();
    }
}

/// One process of rollbackd, from its start to its kill.
struct Life {
    replica: usize,
    child: tokio::process::Child,
    /// How many of its fail points it came to.
    reached: watch::Receiver<usize>,
}

impl Life {
    async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.start_kill().ok();
        self.child.wait().await?;
        Ok(())
    }

    async fn terminate(&mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("it has died by itself")?.to_string();
        std::process::Command::new("kill").args(["-TERM", &pid]).status()?;
        let ended =
            timeout(Duration::from_secs(40), self.child.wait()).await.context("it does not stop")??;
        ensure!(ended.success(), "it stopped with {ended}");
        Ok(())
    }
}

/// A request that was sent with a key.
#[derive(Clone)]
struct Keyed {
    key: String,
    name: &'static str,
    body: Value,
}

struct Harness {
    http: reqwest::Client,
    ports: Vec<u16>,
    /// What callers were told.
    told: Record,
    /// The audit lines on rollbackd's standard output.
    printed: Record,
    /// What was stored, by a watch of our own.
    seen: Record,
    logged: Record,
    ids: Mutex<Vec<String>>,
    keys: Mutex<Vec<Keyed>>,
    program: PathBuf,
    store: String,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    client: Client,
    /// Held to write while the API server is frozen.
    frozen: tokio::sync::RwLock<()>,
}

impl Harness {
    fn daemonsets(&self) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn prepare(&self) -> anyhow::Result<()> {
        let namespace: Value = json!({"metadata": {"name": NAMESPACE}});
        let namespace = serde_json::from_value(namespace)?;
        Api::<k8s_openapi::api::core::v1::Namespace>::all(self.client.clone())
            .create(&PostParams::default(), &namespace)
            .await?;
        for name in NAMES {
            self.create(name, "img:1").await?;
        }
        for image in ["img:2", "img:3"] {
            sleep(Duration::from_millis(700)).await;
            for name in NAMES {
                self.set_image(name, image).await?;
            }
        }
        sleep(Duration::from_millis(700)).await;
        Ok(())
    }

    async fn create(&self, name: &str, image: &str) -> anyhow::Result<()> {
        let strategy = match name {
            "on-delete" => json!({"type": "OnDelete"}),
            _ => json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}}),
        };
        let daemonset = json!({
            "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "updateStrategy": strategy,
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "main", "image": image}]},
                },
            },
        });
        self.daemonsets().create(&PostParams::default(), &serde_json::from_value(daemonset)?).await?;
        // A revision as another Kubernetes wrote it, without the defaults: where its image runs, a rollback to
        // it is sent and changes nothing. The controller adopts it.
        let old = json!({
            "metadata": {"generateName": format!("{name}-old-"), "labels": {"app": name}},
            "revision": 1,
            "data": {"spec": {"template": {
                "$patch": "replace",
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": "img:1"}]},
            }}},
        });
        Api::<ControllerRevision>::namespaced(self.client.clone(), NAMESPACE)
            .create(&PostParams::default(), &serde_json::from_value(old)?)
            .await?;
        Ok(())
    }

    async fn set_image(&self, name: &str, image: &str) -> anyhow::Result<()> {
        let patch =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": image}]}}}});
        self.patch(name, "kubectl-set", &patch).await
    }

    async fn patch(&self, name: &str, manager: &str, patch: &Value) -> anyhow::Result<()> {
        let params = PatchParams { field_manager: Some(manager.into()), ..PatchParams::default() };
        self.daemonsets().patch(name, &params, &Patch::Strategic(patch)).await?;
        Ok(())
    }

    async fn resource_version(&self) -> anyhow::Result<String> {
        let list = self.daemonsets().list(&Default::default()).await?;
        for daemonset in &list.items {
            self.saw("ADDED", &serde_json::to_value(daemonset)?);
        }
        list.metadata.resource_version.context("a list has a version")
    }

    fn saw(&self, change: &str, object: &Value) {
        let metadata = &object["metadata"];
        let managers: Vec<Value> = metadata["managedFields"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|entry| entry["subresource"].is_null())
            .map(|entry| json!({"manager": entry["manager"], "time": entry["time"]}))
            .collect();
        self.seen.line(json!({
            "change": change, "name": metadata["name"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "generation": metadata["generation"],
            "rollback": metadata["annotations"]["rollbackd.dev/rollback"],
            "image": object["spec"]["template"]["spec"]["containers"][0]["image"],
            "template": object["spec"]["template"].to_string(),
            "managers": managers, "status": object["status"],
        }));
    }

    /// Records every version of every DaemonSet.
    async fn watch(self: Arc<Self>, from: String, stop: CancellationToken) -> anyhow::Result<()> {
        let mut from = from;
        while !stop.is_cancelled() {
            let path = format!(
                "/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets?watch=true&allowWatchBookmarks=true&timeoutSeconds=290&resourceVersion={from}"
            );
            let request = http::Request::get(path).body(Vec::new())?;
            let Some(opened) = stop.run_until_cancelled(self.client.request_stream(request)).await else {
                break;
            };
            let mut lines = opened?.lines();
            while let Some(line) = stop.run_until_cancelled(lines.try_next()).await {
                // A frozen API server may break the stream; the next one begins where this one ended.
                let Ok(Some(line)) = line else { break };
                let event: Value = serde_json::from_str(&line)?;
                let (change, object) = (event["type"].as_str().unwrap_or_default(), &event["object"]);
                ensure!(change != "ERROR", "the watch of the harness has a gap: {object}");
                from = object["metadata"]["resourceVersion"].as_str().context("a version")?.to_owned();
                if change != "BOOKMARK" {
                    self.saw(change, object);
                }
            }
        }
        Ok(())
    }

    fn live(self: &Arc<Self>, replica: usize, point: Option<&str>) -> anyhow::Result<Life> {
        let listen = format!("127.0.0.1:{}", self.ports[replica]);
        let mut command = tokio::process::Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args([
                "serve",
                "--auth",
                "none",
                "--drain-delay",
                "0s",
                "--store",
                &self.store,
                "--listen",
                &listen,
            ])
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(point) = point {
            command.env("ROLLBACKD_FAIL_POINT", point);
        }
        let mut child = command.spawn().context("setpriv (util-linux)")?;
        let (report, reached) = watch::channel(0);
        let stderr = child.stderr.take().context("standard error")?;
        let stdout = child.stdout.take().context("standard output")?;
        let harness = self.clone();
        tokio::spawn(async move {
            let mut lines = tokio::io::BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.starts_with("fail point ") {
                    report.send_modify(|reached| *reached += 1);
                }
                harness.logged.line(line);
            }
        });
        let harness = self.clone();
        tokio::spawn(async move {
            let mut lines = tokio::io::BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // The kill may have cut the last one.
                if serde_json::from_str::<Value>(&line).is_ok_and(|line| line["log"] == "audit") {
                    harness.printed.line(line);
                }
            }
        });
        Ok(Life { replica, child, reached })
    }

    fn url(&self, rng: &mut Rng, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.ports[rng.usize(..self.ports.len())])
    }

    // --- callers -----------------------------------------------------------------------------------

    async fn call(self: Arc<Self>, mut rng: Rng, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            if rng.u8(..100) < 25 {
                self.ask(&mut rng).await;
            } else {
                self.roll_back(&mut rng).await;
            }
            sleep(Duration::from_millis(rng.u64(..60))).await;
        }
        Ok(())
    }

    /// Asks what became of a rollback.
    async fn ask(&self, rng: &mut Rng) {
        let id = {
            let ids = self.ids.lock().expect("no panic");
            let newest = &ids[ids.len().saturating_sub(20)..];
            if newest.is_empty() {
                return;
            }
            newest[rng.usize(..newest.len())].clone()
        };
        let url = self.url(rng, &format!("/rollbacks/{id}"));
        let sent = now();
        if let Ok(answer) = self.http.get(url).send().await {
            let status = answer.status().as_u16();
            if let Ok(answer) = answer.json::<Value>().await {
                self.told
                    .line(json!({"ask": id, "sent": sent, "at": now(), "status": status, "answer": answer}));
            }
        }
    }

    async fn revision(&self, rng: &mut Rng, name: &str) -> Option<Value> {
        let url = self.url(rng, &format!("/daemonsets/{NAMESPACE}/{name}/revisions"));
        let list: Value = self.http.get(url).send().await.ok()?.json().await.ok()?;
        let items = list["items"].as_array().filter(|items| !items.is_empty())?;
        let item = &items[rng.usize(..items.len())];
        Some(if rng.bool() { item["revision"].clone() } else { item["controllerRevision"].clone() })
    }

    async fn roll_back(&self, rng: &mut Rng) {
        let again = {
            let keys = self.keys.lock().expect("no panic");
            let newest = &keys[keys.len().saturating_sub(8)..];
            let repeat = !newest.is_empty() && rng.u8(..100) < 20;
            repeat.then(|| newest[rng.usize(..newest.len())].clone())
        };
        let request_id = format!("crash-{:016x}", rng.u64(..));
        let (name, key, body) = match again {
            Some(Keyed { key, name, body }) => (name, Some(key), body),
            None => {
                let name = NAMES[rng.usize(..NAMES.len())];
                let mut body = json!({"reason": request_id});
                if rng.u8(..100) < 45
                    && let Some(revision) = self.revision(rng, name).await
                {
                    body["toRevision"] = revision;
                }
                if rng.u8(..100) < 8 {
                    body["dryRun"] = true.into();
                }
                if rng.u8(..100) < 4 {
                    body["expectedRevision"] = rng.u8(1..9).into();
                }
                let key = rng.bool().then(|| format!("key-{request_id}"));
                if let Some(key) = &key {
                    let keyed = Keyed { key: key.clone(), name, body: body.clone() };
                    self.keys.lock().expect("no panic").push(keyed);
                }
                (name, key, body)
            }
        };
        let url = self.url(rng, &format!("/daemonsets/{NAMESPACE}/{name}/rollback"));
        let mut request = self.http.post(url).header("x-request-id", &request_id).json(&body);
        if let Some(key) = &key {
            request = request.header("idempotency-key", format!("\"{key}\""));
        }
        if rng.u8(..100) < 15 {
            request = request.header("prefer", format!("wait={}", rng.u8(1..3)));
        }
        let patience = match rng.u8(..100) {
            ..15 => Duration::from_millis(rng.u64(1..40)),
            _ => Duration::from_secs(20),
        };
        let mut line =
            json!({"requestId": request_id, "daemonset": name, "key": key, "body": body, "sent": now()});
        let answer = async {
            let answer = request.send().await?;
            let replayed = answer.headers().contains_key("idempotent-replayed");
            Ok::<_, reqwest::Error>((answer.status().as_u16(), replayed, answer.json::<Value>().await?))
        };
        match timeout(patience, answer).await {
            Err(_) => line["lost"] = "the caller went away".into(),
            Ok(Err(error)) => line["lost"] = error.to_string().into(),
            Ok(Ok((status, replayed, answer))) => {
                if let (200 | 202, Some(id), None) = (status, answer["id"].as_str(), answer.get("dryRun")) {
                    self.ids.lock().expect("no panic").push(id.to_owned());
                }
                line["status"] = status.into();
                line["replayed"] = replayed.into();
                line["answer"] = answer;
            }
        }
        line["at"] = now().into();
        let down = line["status"].is_null();
        self.told.line(line);
        if down {
            sleep(Duration::from_millis(20)).await;
        }
    }

    // --- somebody else -----------------------------------------------------------------------------

    async fn meddle(self: Arc<Self>, mut rng: Rng, stop: CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            self.disturb(&mut rng).await;
            let pause = sleep(Duration::from_millis(rng.u64(200..900)));
            stop.run_until_cancelled(pause).await;
        }
        Ok(())
    }

    /// Changes a DaemonSet behind rollbackd's back. What fails because somebody else was there first is no
    /// matter.
    async fn disturb(&self, rng: &mut Rng) {
        let _thawed = self.frozen.read().await;
        let name = NAMES[rng.usize(..NAMES.len())];
        let image = IMAGES[rng.usize(..IMAGES.len())];
        let done = async {
            match rng.u8(..100) {
                ..20 => {
                    let mut command = tokio::process::Command::new(&self.kubectl);
                    command.args(["rollout", "undo", &format!("daemonset/{name}"), "-n", NAMESPACE]);
                    command.arg("--kubeconfig").arg(&self.kubeconfig).kill_on_drop(true);
                    command.stdout(Stdio::null()).stderr(Stdio::null()).status().await?;
                }
                20..55 => self.set_image(name, image).await?,
                55..70 => {
                    let percent = format!("{}%", rng.u8(50..=100));
                    let patch =
                        json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": percent}}}});
                    self.patch(name, "kubectl-patch", &patch).await?;
                }
                70..80 => {
                    let patch =
                        json!({"metadata": {"annotations": {"example.com/n": rng.u32(..).to_string()}}});
                    self.patch(name, "kubectl-annotate", &patch).await?;
                }
                80..92 => {
                    // `kubectl replace` of a manifest that knows nothing of our annotation.
                    let mut daemonset = self.daemonsets().get(name).await?;
                    daemonset.metadata.annotations = None;
                    daemonset.metadata.managed_fields = None;
                    daemonset.metadata.resource_version = None;
                    if rng.bool()
                        && let Some(spec) =
                            daemonset.spec.as_mut().and_then(|spec| spec.template.spec.as_mut())
                    {
                        spec.containers[0].image = Some(image.to_owned());
                    }
                    let params =
                        PostParams { field_manager: Some("kubectl-replace".into()), ..PostParams::default() };
                    self.daemonsets().replace(name, &params, &daemonset).await?;
                }
                _ => {
                    self.daemonsets().delete(name, &DeleteParams::background()).await?;
                    sleep(Duration::from_millis(rng.u64(..120))).await;
                    self.create(name, "img:1").await?;
                    sleep(Duration::from_millis(300)).await;
                    self.set_image(name, "img:2").await?;
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        let _ = timeout(Duration::from_secs(20), done).await;
    }

    // --- the end -----------------------------------------------------------------------------------

    /// All rollbacks, newest first.
    async fn rollbacks(&self) -> anyhow::Result<Vec<Value>> {
        let (mut all, mut next) = (Vec::new(), None);
        loop {
            let mut request =
                self.http.get(format!("http://127.0.0.1:{}/rollbacks?limit=500", self.ports[0]));
            if let Some(next) = &next {
                request = request.query(&[("continue", next)]);
            }
            let mut page: Value = request.send().await?.error_for_status()?.json().await?;
            let items = page["items"].take();
            all.extend(items.as_array().into_iter().flatten().cloned());
            match page["continue"].as_str() {
                Some(token) => next = Some(token.to_owned()),
                None => return Ok(all),
            }
        }
    }

    /// Waits until no rollback is open. If one stays open, the checker names it.
    async fn settled(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(90);
        while Instant::now() < deadline {
            let open = ["requested", "unsettled", "progressing", "stalled"];
            let mut left = 0;
            for state in open {
                let url = format!("http://127.0.0.1:{}/rollbacks?limit=1&state={state}", self.ports[0]);
                let page: Value = self.http.get(url).send().await?.error_for_status()?.json().await?;
                left += page["items"].as_array().map_or(0, Vec::len);
            }
            if left == 0 {
                return Ok(());
            }
            sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    }
}

/// Who kills.
struct Killer<'a> {
    lives: Vec<Life>,
    kills: BTreeMap<String, usize>,
    deadline: Instant,
    rng: Rng,
    cluster: &'a Cluster,
    harness: Arc<Harness>,
}

impl Killer<'_> {
    async fn kill(&mut self, kills: usize, rounds: usize) -> anyhow::Result<()> {
        // The points are spread over the kills, so that they meet all kinds of histories.
        let mut points: Vec<usize> = (0..rounds).flat_map(|_| 0..POINTS.len()).collect();
        self.rng.shuffle(&mut points);
        let (due, mut told) = (points.len(), 0);
        loop {
            let done = self.kills.values().sum::<usize>();
            if (points.is_empty() && done >= kills) || Instant::now() > self.deadline {
                return Ok(());
            }
            // Evenly, as far as they go.
            if (due - points.len()) * kills <= done * due && !points.is_empty() {
                let (name, before) = POINTS[points.pop().expect("not empty")];
                self.at_point(name, before).await?;
            } else {
                self.at_random().await?;
            }
            if done / 100 > told {
                told = done / 100;
                println!("crash: {done} of {kills} kills");
            }
        }
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        for life in &mut self.lives {
            let url = format!("http://127.0.0.1:{}/readyz", self.harness.ports[life.replica]);
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                if let Ok(answer) = self.harness.http.get(&url).timeout(Duration::from_secs(2)).send().await
                    && answer.status().is_success()
                {
                    break;
                }
                let ended = life.child.try_wait()?;
                // At a point that comes early.
                if *life.reached.borrow() > 0 {
                    break;
                }
                ensure!(ended.is_none(), "rollbackd ended by itself: {ended:?}; see rollbackd.log");
                ensure!(Instant::now() < deadline, "rollbackd does not get ready; see rollbackd.log");
                sleep(Duration::from_millis(8)).await;
            }
        }
        Ok(())
    }

    /// Kills a replica now, and starts it again on the same store.
    async fn again(&mut self, replica: usize, point: Option<&str>, why: &str) -> anyhow::Result<()> {
        let life = &mut self.lives[replica];
        let alive = life.child.try_wait()?.is_none();
        ensure!(alive || *life.reached.borrow() > 0, "rollbackd ended by itself; see rollbackd.log");
        life.kill().await?;
        *self.kills.entry(why.to_owned()).or_default() += 1;
        if self.rng.u8(..100) < 35 {
            self.harness.clone().disturb(&mut self.rng).await;
        }
        self.lives[replica] = self.harness.live(replica, point)?;
        Ok(())
    }

    async fn pause(&mut self, millis: u64) {
        sleep(Duration::from_millis(self.rng.u64(..=millis))).await;
    }

    async fn at_random(&mut self) -> anyhow::Result<()> {
        let replica = self.rng.usize(..self.lives.len());
        match self.rng.u8(..100) {
            // Before it is ready.
            ..10 => {
                self.pause(150).await;
                self.again(replica, None, "at random").await?;
                self.pause(200).await;
                self.again(replica, None, "while starting").await?;
            }
            // With the API server frozen around it.
            10..24 => {
                self.pause(300).await;
                let harness = self.harness.clone();
                let frozen = harness.frozen.write().await;
                self.cluster.signal("STOP")?;
                self.pause(60).await;
                let killed = async {
                    self.lives[replica].kill().await?;
                    self.lives[replica] = harness.live(replica, None)?;
                    self.pause(400).await;
                    Ok::<_, anyhow::Error>(())
                };
                let killed = killed.await;
                self.cluster.signal("CONT")?;
                drop(frozen);
                killed?;
                *self.kills.entry("API server frozen".into()).or_default() += 1;
            }
            // With a patch in the frozen API server's hands, or on the way to them.
            24..36 => {
                self.again(replica, Some("recorded,2,hold,25"), "at random").await?;
                self.ready().await?;
                let mut reached = self.lives[replica].reached.clone();
                let came =
                    timeout(Duration::from_secs(2), reached.wait_for(|reached| *reached > 0)).await.is_ok();
                // Some get through to the handler before the freeze, some stay in the socket.
                let head_start = self.rng.u64(..40);
                sleep(Duration::from_millis(head_start)).await;
                let harness = self.harness.clone();
                let frozen = harness.frozen.write().await;
                self.cluster.signal("STOP")?;
                sleep(Duration::from_millis(30)).await;
                let killed = async {
                    self.lives[replica].kill().await?;
                    self.lives[replica] = harness.live(replica, None)?;
                    self.pause(300).await;
                    Ok::<_, anyhow::Error>(())
                };
                let killed = killed.await;
                self.cluster.signal("CONT")?;
                drop(frozen);
                killed?;
                let why = if came { "patch to a frozen API server" } else { "API server frozen" };
                *self.kills.entry(why.into()).or_default() += 1;
            }
            _ => {
                self.pause(350).await;
                self.again(replica, None, "at random").await?;
            }
        }
        self.ready().await
    }

    /// Lets it die at a point; where the point is in settling, after a life that left something to settle.
    async fn at_point(&mut self, name: &str, before: Option<&str>) -> anyhow::Result<()> {
        if name == UNSETTLED {
            return self.unsettled().await;
        }
        for _ in 0..TRIES {
            let replica = self.rng.usize(..self.lives.len());
            if let Some(before) = before {
                let point = self.armed(before);
                self.again(replica, Some(&point), "at random").await?;
                self.ready().await?;
                if !self.dies(replica).await {
                    continue;
                }
                let point = self.armed(name);
                self.again(replica, Some(&point), before).await?;
            } else {
                let point = self.armed(name);
                self.again(replica, Some(&point), "at random").await?;
            }
            self.ready().await?;
            if self.dies(replica).await {
                self.again(replica, None, name).await?;
                return self.ready().await;
            }
        }
        // The checker says so, too.
        println!("crash: {name} was not come to");
        let replica = 0;
        self.again(replica, None, "at random").await?;
        self.ready().await
    }

    /// A point, on one of its first passes, with a way to die.
    fn armed(&mut self, name: &str) -> String {
        let rare = name.starts_with("settl") || name.starts_with("pinned") || name == "failing";
        let pass = if rare { 1 } else { self.rng.u8(1..=3) };
        let action = if self.rng.bool() { "die" } else { "freeze" };
        let millis = if name == "patch-sent" { self.rng.u64(..8) } else { 0 };
        format!("{name},{pass},{action},{millis}")
    }

    /// Waits until it has come to its point.
    async fn dies(&mut self, replica: usize) -> bool {
        let came = self.comes_to(replica, 1, Duration::from_secs(3)).await;
        if came {
            // For one that dies by itself.
            sleep(Duration::from_millis(5)).await;
        }
        came
    }

    async fn comes_to(&self, replica: usize, points: usize, patience: Duration) -> bool {
        let mut reached = self.lives[replica].reached.clone();
        // The sender goes when it has died.
        let _ =
            timeout(patience, async { reached.wait_for(|reached| *reached >= points).await.is_ok() }).await;
        *reached.borrow() >= points
    }

    /// The API server is frozen when the patch comes, and stays so until rollbackd has said that it does not
    /// know.
    async fn unsettled(&mut self) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            let replica = self.rng.usize(..self.lives.len());
            let points = format!("recorded,1,hold,60;{UNSETTLED}");
            self.again(replica, Some(&points), "at random").await?;
            self.ready().await?;
            if !self.comes_to(replica, 1, Duration::from_secs(3)).await {
                continue;
            }
            let harness = self.harness.clone();
            let frozen = harness.frozen.write().await;
            self.cluster.signal("STOP")?;
            let came = self.comes_to(replica, 2, UNTIL_UNSETTLED).await;
            let killed = async {
                sleep(Duration::from_millis(5)).await;
                self.lives[replica].kill().await?;
                self.lives[replica] = harness.live(replica, None)?;
                self.pause(300).await;
                Ok::<_, anyhow::Error>(())
            };
            let killed = killed.await;
            self.cluster.signal("CONT")?;
            drop(frozen);
            killed?;
            let why = if came { UNSETTLED } else { "API server frozen" };
            *self.kills.entry(why.into()).or_default() += 1;
            self.ready().await?;
            if came {
                return Ok(());
            }
        }
        println!("crash: {UNSETTLED} was not come to");
        Ok(())
    }
}
