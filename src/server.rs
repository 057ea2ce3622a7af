//! The composition root: builds every room, serves, and stops in order.

use std::{
    io::{IsTerminal, Write},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::extract::connect_info::IntoMakeServiceWithConnectInfo;
use axum_server::Handle;
use hyper_util::rt::TokioTimer;
use jiff::{SignedDuration, Timestamp};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::{Head, Store, StoreUrl},
    auth::{Admission, Audiences, Authority, Pace, Reviews, Share},
    config::{Anonymous, AuthMode, SandboxArgs, ServeArgs, StoreArgs},
    http::{
        self, App, Limits, MAX_HEADER, Open, Writes,
        connections::{ConnectionLimits, Connections},
        refusals::Refusals,
        streams::{StreamLimits, Streams},
        tls::{Acceptor, Certificate, Files},
    },
    kubernetes::{
        Cache, Events, Live, Reader, Reviewer, Scope,
        clock::Agreement,
        connect,
        liveness::{Health, Liveness, ProbePace},
        watch::{Budgets, Watched},
    },
    rollbacks::{Parts, Patience, Quota, Rollbacks},
    sandbox::{self, Sandbox, Unsimulated},
    telemetry::{AuditLog, Metrics, causes},
};

/// For a client to send its request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For answers that are under way when the server stops. With the default `--drain-delay` it fits into
/// the 30 s that Kubernetes gives a pod.
const FINISH: Duration = Duration::from_secs(20);
/// Between two lines of the log that tell the audit's head, if it has moved.
const HEAD_PERIOD: Duration = Duration::from_secs(3600);
/// Between two looks at the file with the store's password.
const PASSWORD_PERIOD: Duration = Duration::from_secs(10);
/// Until the clocks are compared again that decide what is old.
const PRUNE_RETRY: Duration = Duration::from_secs(10);
/// For the last lines of the audit to be written.
const LAST_LINES: Duration = Duration::from_secs(2);
/// For the store to be left in order.
const PARTING: Duration = Duration::from_secs(4);
/// For the last bytes of answers to leave.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// Of an address' share of reviews, so many seconds' worth can be used at once.
const ADDRESS_BURST: u32 = 10;
/// The same of a user's: more than one request asks about.
const USER_BURST: u32 = 60;

/// Times that tests make shorter.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Deadline of every request to the API server.
    pub api: Duration,
    /// Between two probes of the API server.
    pub probe: Duration,
    /// Between two looks at the files of the certificate.
    pub certificate: Duration,
    pub reviews: Pace,
    pub patience: Patience,
    /// Between two looks for entries that need not be kept any more.
    pub prune: Duration,
    /// Between two looks at the store's tables, and between two while they are not what they should be.
    pub schema_check: [Duration; 2],
    /// In which audit entries about requests that changed nothing are counted.
    pub audit_window: Duration,
    /// Between two looks for rollbacks that the cluster shows and the store lacks. Where several rollbackds with a
    /// record each share a cluster, none of them has all: `None` is for those.
    pub unrecorded: Option<Duration>,
    pub limits: Limits,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            api: Duration::from_secs(10),
            probe: Duration::from_secs(5),
            certificate: Duration::from_secs(10),
            reviews: Pace::default(),
            patience: Patience::default(),
            prune: Duration::from_secs(3600),
            schema_check: [Duration::from_secs(3600), Duration::from_secs(60)],
            audit_window: Duration::from_secs(600),
            unrecorded: Some(Duration::from_secs(3600)),
            limits: Limits::default(),
        }
    }
}

/// Runs `rollbackd serve` until `stop` is cancelled.
///
/// # Errors
/// What kept it from starting.
pub async fn serve(args: ServeArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let client = connect::client(args.kubeconfig.as_deref()).await?;
    let address = args.address();
    let listener = TcpListener::bind(address).await.with_context(|| format!("--listen {address}"))?;
    let log = AuditLog::start();
    let server = Server::start(args, client, Timing::default(), Some(log.clone())).await?;
    let ran = server.run(listener, stop).await;
    log.flush();
    ran
}

/// Runs `rollbackd sandbox` until `stop` is cancelled.
///
/// # Errors
/// What kept it from starting.
pub async fn serve_sandbox(args: SandboxArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("--listen {}", args.listen))?;
    let address = listener.local_addr()?;
    let sandbox = Sandbox::with_story(args.nodes.into(), args.speed);
    let client = kube::Client::new(sandbox.router(Unsimulated::default()), "default");
    let time = tokio::spawn(sandbox.run());
    let server = Server::start(args.service(), client, Timing::default(), None).await?;
    server.app.cache.ready().await;
    let mut stdout = std::io::stdout();
    // It serves also whom it can't greet.
    let _ = stdout.write_all(sandbox::welcome(address, stdout.is_terminal()).as_bytes());
    let ran = server.run(listener, stop).await;
    time.abort();
    ran
}

/// All rooms, ready to serve.
pub struct Server {
    app: App,
    store: Store,
    tasks: TaskTracker,
    draining: CancellationToken,
    stop: CancellationToken,
    drain_delay: Duration,
    connections: Connections,
    certificate: Option<Certificate>,
    certificate_period: Duration,
}

impl Server {
    /// Opens the store, starts the watches and takes up what was left open.
    ///
    /// # Errors
    /// When the store can't be opened or read, or the certificate can't be used.
    pub async fn start(
        args: ServeArgs,
        client: kube::Client,
        timing: Timing,
        audit_log: Option<AuditLog>,
    ) -> anyhow::Result<Self> {
        let ServeArgs {
            listen: _,
            tls_cert,
            tls_key,
            kubeconfig: _,
            store,
            audit_retention,
            audit_limit_per_caller,
            audit_limit,
            auth,
            audience,
            accept_api_server_audience,
            refused_groups,
            anonymous,
            cors_origins,
            trusted_proxies,
            namespaces,
            cluster_name,
            stall_after,
            require_reason,
            field_ownership,
            read_only,
            drain_delay,
            limits,
            index_memory,
            template_memory,
        } = args;
        let certificate = match tls_cert.zip(tls_key) {
            Some((cert, key)) => Some(Certificate::load(Files { cert, key }).await?),
            None => None,
        };
        let metrics = Metrics::new();
        let (tasks, stop, draining) =
            (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let (at, url) = (store.clone(), store.url()?);
        let store =
            Store::open(&url, metrics.clone(), audit_log).await.with_context(|| format!("--store {url}"))?;
        if let Some(mut writer) = store.log_writer() {
            let writing = async move { writer.run().await };
            tasks.spawn(stop.clone().run_until_cancelled_owned(writing));
        }
        let checking = SchemaCheck { store: store.clone(), known: at.known_triggers.clone() };
        let altered = checking.look().await;
        let keeping = checking.keep(timing.schema_check, altered);
        tasks.spawn(stop.clone().run_until_cancelled_owned(keeping));
        let scope = Scope::of(namespaces);
        let liveness = Arc::new(Liveness::new(scope.watches_per_kind()));
        let live = Live::new(client, liveness.clone(), timing.api);
        let watched = Watched {
            scope,
            stall_after,
            budgets: Budgets { index: index_memory, templates: template_memory },
        };
        let cache = Arc::new(Cache::start(live.client(), watched, liveness, &tasks, &stop));
        let reader = Reader::new(cache.clone(), live.clone());
        let health = Arc::new(Health::default());
        let pace = ProbePace { period: timing.probe, stale_after: timing.limits.stale_after };
        let probing = health.clone().keep(live.clone(), cache.clone(), metrics.clone(), pace);
        tasks.spawn(stop.clone().run_until_cancelled_owned(probing));
        let authority = match auth {
            AuthMode::None => Authority::None,
            AuthMode::Sandbox => Authority::Sandbox,
            AuthMode::Kubernetes => {
                let audiences = Audiences { own: audience, api_server: accept_api_server_audience };
                let admission = Admission {
                    audiences,
                    refused_groups,
                    address_share: share(limits.max_reviews_per_address, ADDRESS_BURST),
                    user_share: share(limits.max_reviews_per_user, USER_BURST),
                };
                let reviewer = Reviewer::new(&live);
                let reviews = Reviews::new(reviewer, admission, timing.reviews, metrics.clone());
                let reviews = Arc::new(reviews);
                tasks.spawn(stop.clone().run_until_cancelled_owned(reviews.clone().learn_issuer()));
                Authority::Kubernetes(reviews)
            }
        };
        let rollbacks = Rollbacks::new(Parts {
            live: live.clone(),
            cache: cache.clone(),
            events: Events::new(&live, tasks.clone()),
            store: store.clone(),
            authority: authority.clone(),
            cluster: cluster_name.clone(),
            patience: timing.patience,
            quota: Quota {
                per_caller: audit_limit_per_caller as usize,
                total: audit_limit as usize,
                window: timing.audit_window,
            },
            field_ownership,
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        rollbacks.resume().await.with_context(|| format!("--store {url}"))?;
        tasks.spawn(stop.clone().run_until_cancelled_owned(rollbacks.clone().return_ownership()));
        if let Some(kept) = audit_retention {
            let pruning = Pruning { store: store.clone(), kept, cache: cache.clone(), period: timing.prune };
            tasks.spawn(stop.clone().run_until_cancelled_owned(pruning.run()));
        }
        if store.is_shared() {
            let keeping = keep_password(store.clone(), at, url);
            tasks.spawn(stop.clone().run_until_cancelled_owned(keeping));
            tasks.spawn(stop.clone().run_until_cancelled_owned(rollbacks.clone().share()));
        }
        if let Some(period) = timing.unrecorded {
            let reporting = rollbacks.clone().report_unrecorded(period);
            tasks.spawn(stop.clone().run_until_cancelled_owned(reporting));
        }
        let connection_limits = ConnectionLimits {
            total: limits.max_connections,
            per_address: limits.max_connections_per_address,
            header_bytes: limits.max_unfinished_header_bytes,
        };
        let stream_limits = StreamLimits { total: limits.max_streams, per_user: limits.max_streams_per_user };
        let refusals = Refusals::default();
        tasks.spawn(stop.clone().run_until_cancelled_owned(refusals.clone().report()));
        let connections = Connections::new(connection_limits, trusted_proxies.clone(), metrics.clone());
        let app = App::new(http::Parts {
            live,
            cache,
            reader,
            health,
            store: store.clone(),
            rollbacks,
            authority,
            cluster_name,
            require_reason,
            open: anonymous.into_iter().map(open).collect(),
            trusted_proxies,
            cors_origins,
            limits: timing.limits,
            streams: Streams::new(stream_limits, metrics.clone()),
            refusals,
            writes: if read_only { Writes::Refused } else { Writes::Allowed },
            metrics,
            draining: draining.clone(),
            stop: stop.clone(),
        });
        let certificate_period = timing.certificate;
        Ok(Self {
            app,
            store,
            tasks,
            draining,
            stop,
            drain_delay,
            connections,
            certificate,
            certificate_period,
        })
    }

    /// Serves until `stop` is cancelled, then drains: readiness fails at once, connections are
    /// accepted for `--drain-delay` while endpoints update, streams end, answers under way are
    /// finished.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn run(mut self, listener: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
        let acceptor = Acceptor::new(self.certificate.as_ref(), self.connections.clone());
        if let Some(certificate) = self.certificate.take() {
            let keeping = certificate.keep_current(self.certificate_period);
            self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(keeping));
        }
        let address = listener.local_addr()?;
        let handle: Handle<SocketAddr> = Handle::new();
        let requests = TaskTracker::new();
        let service = http::router(self.app.clone()).layer(axum::middleware::from_fn_with_state(
            requests.clone(),
            |axum::extract::State(requests): axum::extract::State<TaskTracker>,
             request,
             next: axum::middleware::Next| async move {
                requests.track_future(next.run(request)).await
            },
        ));
        let service: IntoMakeServiceWithConnectInfo<_, SocketAddr> =
            service.into_make_service_with_connect_info();
        let server = axum_server::Server::from_listener(listener).acceptor(acceptor);
        let mut server = server.handle(handle.clone()).http1_only();
        server
            .http_builder()
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER);
        let mut serving = tokio::spawn(server.serve(service));
        tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
        let telling = tell_head(self.store.clone());
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(telling));

        tokio::select! {
            () = stop.cancelled() => {}
            served = &mut serving => {
                served?.context("the listener failed")?;
                anyhow::bail!("the listener has stopped by itself");
            }
        }
        tracing::info!("stopping: not ready any more");
        self.draining.cancel();
        tokio::time::sleep(self.drain_delay).await;
        handle.graceful_shutdown(None);
        self.stop.cancel();
        requests.close();
        self.tasks.close();
        let finished =
            tokio::time::timeout(FINISH, async { tokio::join!(requests.wait(), self.tasks.wait()) }).await;
        if finished.is_err() {
            tracing::warn!("stopping with work under way; the next start settles it");
        }
        // What is left are connections without a request, and the last bytes of answers.
        let _ = tokio::time::timeout(LAST_BYTES, serving).await;
        handle.shutdown();
        if tokio::time::timeout(PARTING, part(&self.store)).await.is_err() {
            tracing::warn!("the store does not answer; what was followed here is others' in a few seconds");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Gives the audit's head away, to where whoever can rewrite the store can't rewrite it.
async fn tell_head(store: Store) {
    let mut told = None;
    let mut ticks = tokio::time::interval(HEAD_PERIOD);
    loop {
        ticks.tick().await;
        if let Ok(head) = store.head().await
            && told.as_ref() != Some(&head)
        {
            log_head(&head);
            told = Some(head);
        }
    }
}

/// Reads the file with the store's password again when it changes.
async fn keep_password(store: Store, at: StoreArgs, mut known: StoreUrl) {
    loop {
        tokio::time::sleep(PASSWORD_PERIOD).await;
        // While a Secret's files are replaced there may be none.
        if let Ok(url) = at.url()
            && url != known
        {
            match store.use_password_of(&url) {
                Ok(()) => tracing::info!("new connections to the store use the new password"),
                Err(error) => {
                    tracing::warn!(error = %causes(&error), "the store's new password can't be used")
                }
            }
            known = url;
        }
    }
}

/// Looks whether the store's tables are what rollbackd made.
struct SchemaCheck {
    store: Store,
    /// `--known-trigger`.
    known: Vec<String>,
}

impl SchemaCheck {
    /// Looks once; returns whether they were altered, or can't be looked at.
    async fn look(&self) -> bool {
        match self.store.check_schema(&self.known).await {
            Ok(findings) => {
                for finding in &findings {
                    tracing::error!(
                        finding,
                        "the audit store's tables are not what rollbackd made; no rollback is made until they are"
                    );
                }
                !findings.is_empty()
            }
            Err(error) => {
                tracing::warn!(error = %causes(&error), "the audit store's tables can't be checked");
                true
            }
        }
    }

    /// Looks again and again: more often while something is wrong.
    async fn keep(self, [usual, altered]: [Duration; 2], mut is_altered: bool) {
        loop {
            tokio::time::sleep(if is_altered { altered } else { usual }).await;
            is_altered = self.look().await;
        }
    }
}

/// Prunes the audit of what is older than it has to be kept.
struct Pruning {
    store: Store,
    kept: SignedDuration,
    /// Has seen the API server's time.
    cache: Arc<Cache>,
    period: Duration,
}

impl Pruning {
    /// Prunes again and again. A clock that may be wrong is asked again soon.
    async fn run(self) {
        let retry = self.period.min(PRUNE_RETRY);
        let mut warned = false;
        loop {
            let now = Timestamp::now();
            match self.cache.liveness().server_clock().compare(now) {
                Agreement::Agreed(now) => {
                    warned = false;
                    self.prune(now).await;
                    tokio::time::sleep(self.period).await;
                }
                Agreement::Apart { server, here } => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::error!(%server, %here, "the audit is not pruned: this machine's clock and the API server's disagree");
                    }
                    tokio::time::sleep(retry).await;
                }
                Agreement::Unknown => tokio::time::sleep(retry).await,
            }
        }
    }

    async fn prune(&self, now: Timestamp) {
        let Ok(before) = now.checked_sub(self.kept) else { return };
        loop {
            match self.store.cut(before, now).await {
                Ok(0) => break,
                Ok(entries) => tracing::info!(entries, %before, "pruned the audit"),
                Err(error) => {
                    tracing::warn!(error = %causes(&error), "the audit can't be pruned; trying again later");
                    break;
                }
            }
        }
    }
}

/// Writes the lines of the entries that are still to be written.
async fn write_last_lines(store: &Store) {
    let Some(mut writer) = store.log_writer() else { return };
    match tokio::time::timeout(LAST_LINES, writer.write_all()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = %causes(&error), "audit entries are written to standard output by the next process")
        }
        Err(_) => tracing::warn!("audit entries are written to standard output by the next process"),
    }
}

/// Leaves the store to others.
async fn part(store: &Store) {
    write_last_lines(store).await;
    if let Ok(head) = store.head().await {
        log_head(&head);
    }
    if let Err(error) = store.release().await {
        tracing::warn!(error = %causes(&error), "others wait until what was followed here is theirs");
    }
    store.close().await;
}

fn log_head(head: &Head) {
    let anchor = format!("{}:{}", head.sequence, head.hash);
    tracing::info!(sequence = head.sequence, hash = head.hash, anchor, "the audit's head");
}

fn share(per_second: u32, burst_seconds: u32) -> Share {
    Share { per_second, burst: per_second.saturating_mul(burst_seconds) }
}

fn open(anonymous: Anonymous) -> Open {
    match anonymous {
        Anonymous::Docs => Open::Docs,
        Anonymous::Metrics => Open::Metrics,
    }
}
