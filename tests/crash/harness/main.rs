//! The crash harness: kills rollbackd with -9 while it works on a real control plane, and writes down what
//! happened. It judges nothing: that is `check`, a program apart. What is expected is in `MODEL.md`.
//!
//! rollbackd is used as a program, over HTTP and signals; none of its code is in here. Everything that is started
//! dies with this process, even by `kill -9`.
//!
//! `killer` kills, `faults` is what else happens; `callers` ask for rollbacks, `others` change DaemonSets,
//! `witness` sees what is stored.

mod callers;
mod cluster;
mod faults;
mod killer;
mod others;
mod postgres;
mod replicas;
mod versions;
mod witness;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use fastrand::Rng;
use kube::Client;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use self::{
    callers::Keyed,
    cluster::Cluster,
    faults::Fault,
    killer::{Killer, POINTS},
    postgres::Postgres,
};

const NAMESPACE: &str = "crash";
/// The last one has updateStrategy OnDelete.
const NAMES: [&str; 6] = ["agent-0", "agent-1", "agent-2", "agent-3", "agent-4", "on-delete"];
/// Those whose manifest is applied, server-side.
const APPLIED: [&str; 3] = ["agent-3", "agent-4", "on-delete"];
/// Pods of the last one take seconds to be ready, so that rollouts outlive rollbackd.
const IMAGES: [&str; 5] = ["img:1", "img:2", "img:3", "img:4", "img:slow"];
const CALLERS: usize = 3;

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
    /// Store of rollbackd: a PostgreSQL server of the harness's own, which it stops, kills and freezes, too
    #[arg(long, conflicts_with = "store")]
    postgres: bool,
    /// How many run side by side; more than one needs PostgreSQL [default: 3 on --postgres, else 1]
    #[arg(long)]
    replicas: Option<usize>,
    /// How often somebody stands still, or a server is away [default: a quarter of --kills on --postgres, else 0]
    #[arg(long)]
    faults: Option<usize>,
    /// A rollbackd of the next version, which joins half way
    #[arg(long)]
    next: Option<PathBuf>,
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
    let copy = |next: &PathBuf| {
        let copy = history.join("rollbackd-next");
        std::fs::copy(next, &copy).context("--next").map(|_| copy)
    };
    let next = args.next.as_ref().map(copy).transpose()?;
    let cluster = Cluster::start(&history)?;
    let client = cluster.client().await?;
    let postgres = args.postgres.then(Postgres::start).transpose()?;
    let store = match (&postgres, &args.store) {
        (Some(postgres), _) => postgres.url.clone(),
        (None, Some(store)) => store.clone(),
        (None, None) => format!("sqlite:{}", history.join("rollbackd.db").display()),
    };
    let replicas = args.replicas.unwrap_or(if args.postgres { 3 } else { 1 });
    let due = args.faults.unwrap_or(if args.postgres { args.kills / 4 } else { 0 });
    let kinds = faults::ALL.iter().filter(|fault| args.postgres || !fault.needs_postgres());
    let mut rng = Rng::with_seed(seed);
    let mut kinds: Vec<Fault> = kinds.copied().collect();
    rng.shuffle(&mut kinds);
    let faults: Vec<Fault> = kinds.into_iter().cycle().take(due).collect();
    let harness = Arc::new(Harness {
        http: reqwest::Client::builder().timeout(Duration::from_secs(20)).build()?,
        ports: free_ports().take(replicas).collect(),
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
        next,
        mixed: AtomicBool::default(),
        asleep: (0..replicas).map(|_| AtomicBool::default()).collect(),
        started: AtomicUsize::default(),
        claims: Record::create(&history, "claims.ndjson")?,
        quiet: tokio::sync::RwLock::default(),
    });
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    harness.prepare().await?;
    tasks.spawn(harness.clone().watch(cluster.etcd()?, stop.clone()));
    let traffic = CancellationToken::new();
    let mut killer = Killer {
        lives: Vec::new(),
        kills: BTreeMap::new(),
        faults: BTreeMap::new(),
        api_server_killed: Vec::new(),
        deadline: Instant::now() + Duration::from_secs(args.seconds),
        rng: rng.fork(),
        cluster: &cluster,
        postgres: postgres.as_ref(),
        harness: harness.clone(),
    };
    for replica in 0..replicas {
        killer.lives.push(harness.live(replica, None)?);
    }
    killer.ready().await?;
    for _ in 0..CALLERS + replicas - 1 {
        tasks.spawn(harness.clone().call(rng.fork(), traffic.clone()));
    }
    tasks.spawn(harness.clone().meddle(rng.fork(), traffic.clone()));
    killer.kill(args.kills, args.rounds, &faults).await?;
    traffic.cancel();
    let kills = killer.kills.clone();
    let total: usize = kills.values().sum();
    println!("crash: {total} kills in {} s, waiting for what is open", started.elapsed().as_secs());

    harness.settled().await?;
    harness.returned().await?;
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
    let too_new = match postgres {
        Some(_) => versions::refuse(&harness.store, &harness.program, &harness.kubeconfig).await?,
        None => Value::Null,
    };
    let told = json!({
        "seed": seed, "seconds": started.elapsed().as_secs(), "replicas": replicas, "kills": kills,
        "faults": killer.faults, "faultKinds": faults.iter().map(|fault| fault.name()).collect::<Vec<_>>(),
        "apiServerKilled": killer.api_server_killed, "tooNew": too_new,
        "points": POINTS.map(|(name, _)| name), "rounds": args.rounds,
        "store": harness.store.split(':').next(),
    });
    std::fs::write(history.join("harness.json"), told.to_string())?;
    println!("crash: the history is in {}", history.display());
    Ok(())
}

/// Ports that nobody listens on, below those that the kernel hands out: a replica comes back to its own after each
/// kill.
fn free_ports() -> impl Iterator<Item = u16> {
    let process = u16::try_from(std::process::id() % 1000).expect("less than 1000");
    (10_000 + process * 10..32_768).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
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
    /// A program of the next version.
    next: Option<PathBuf>,
    /// Whether it has joined.
    mixed: AtomicBool,
    /// Replicas that stand still.
    asleep: Vec<AtomicBool>,
    /// How many processes were started.
    started: AtomicUsize,
    /// Who has taken up whose rollback, and who has left it.
    claims: Record,
    /// Held to write while nobody else may change anything.
    quiet: tokio::sync::RwLock<()>,
}

impl Harness {
    /// All rollbacks, newest first.
    async fn rollbacks(&self) -> anyhow::Result<Vec<Value>> {
        let (mut all, mut next) = (Vec::new(), None);
        loop {
            let after: Option<String> = next.take();
            let mut page = self.page(&[("limit", Some("500")), ("continue", after.as_deref())]).await?;
            let items = page["items"].take();
            all.extend(items.as_array().into_iter().flatten().cloned());
            match page["continue"].as_str() {
                Some(token) => next = Some(token.to_owned()),
                None => return Ok(all),
            }
        }
    }

    /// A page of rollbacks; the last fault may not be over yet.
    async fn page(&self, query: &[(&str, Option<&str>)]) -> anyhow::Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let url = format!("http://127.0.0.1:{}/rollbacks", self.ports[0]);
            let answer = self.http.get(url).query(query).send().await;
            match answer.and_then(reqwest::Response::error_for_status) {
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(300)).await,
                answer => return Ok(answer?.json().await?),
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
                let page = self.page(&[("limit", Some("1")), ("state", Some(state))]).await?;
                left += page["items"].as_array().map_or(0, Vec::len);
            }
            if left == 0 {
                return Ok(());
            }
            sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    }

    /// Waits until no rollback has field ownership to return. If one has in the end, the checker names it.
    async fn returned(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        // It looks every five seconds.
        sleep(Duration::from_secs(6)).await;
        while Instant::now() < deadline {
            let url = format!("http://127.0.0.1:{}/metrics", self.ports[0]);
            let metrics = self.http.get(url).send().await?.text().await?;
            let line = metrics.lines().find(|line| line.starts_with("rollbackd_ownership_returns_pending"));
            if line.context("rollbackd_ownership_returns_pending")?.ends_with(" 0") {
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }
}
