//! Flags and their environment variables.

mod limits;

use std::{
    ffi::OsStr,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context as _;
use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, TypedValueParser},
    error::ErrorKind,
};
use http::{HeaderValue, Uri};
use ipnet::IpNet;
use jiff::{SignedDuration, Span, SpanRelativeTo};

pub use limits::LimitArgs;

use crate::{
    audit::{InvalidStoreUrl, StoreUrl},
    domain::{bookkeeping::FieldOwnership, key::Namespace},
    verifier::Anchor,
};

/// `--stall-after` of the sandbox: its stuck rollout is called stalled before one loses patience.
const SANDBOX_STALL: Duration = Duration::from_secs(30);

/// `--store` where none is named.
const DEFAULT_STORE: &str = "sqlite:/var/lib/rollbackd/rollbackd.db";

/// `--index-memory`: 5,000 DaemonSets with ten revisions each take about 50 MiB.
const INDEX_MEMORY: &str = "64Mi";
/// `--template-memory`: their templates, of 20 KiB each and much alike, take about 40 MiB.
const TEMPLATE_MEMORY: &str = "48Mi";

/// A safe HTTP API for DaemonSets: revisions, rollbacks, rollout status, and who did what.
#[derive(Debug, Parser)]
#[command(name = "rollbackd", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, once")]
pub enum Command {
    /// Serve the API for one cluster
    Serve(ServeArgs),
    /// Serve the API over a small simulated cluster, to try it
    Sandbox(SandboxArgs),
    /// Print the OpenAPI document
    Openapi,
    /// Verify or export the audit, also while it is in use
    #[command(subcommand)]
    Audit(AuditCommand),
}

/// What to do with the audit.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Tell whether the audit is what was written; names each entry that was changed, removed, put in or moved
    Verify(VerifyArgs),
    /// Print the audit, an entry a line, so that it can be verified without the store
    Export(ExportArgs),
}

/// Where the store is.
#[derive(Clone, Debug, Args)]
pub struct StoreArgs {
    /// Where rollbacks and the audit are kept: sqlite:PATH for one replica, postgres://USER@HOST/DATABASE for several
    #[arg(
        long = "store",
        env = "ROLLBACKD_STORE",
        hide_env_values = true,
        value_name = "URL",
        default_value = DEFAULT_STORE,
        value_parser = StoreUrlParser
    )]
    url: StoreUrl,

    /// File with the password of a postgres:// store, such as one of a mounted Secret
    #[arg(long = "store-password-file", env = "ROLLBACKD_STORE_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// Name of a trigger on the store's tables that is not rollbackd's and no finding, such as one of replication;
    /// repeatable
    #[arg(
        long = "known-trigger",
        env = "ROLLBACKD_KNOWN_TRIGGER",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub known_triggers: Vec<String>,
}

impl StoreArgs {
    /// Reads the password, if it is in a file.
    ///
    /// # Errors
    /// When the file can't be read as text.
    pub fn url(&self) -> anyhow::Result<StoreUrl> {
        let Some(file) = &self.password_file else { return Ok(self.url.clone()) };
        let password = std::fs::read_to_string(file)
            .with_context(|| format!("--store-password-file {}", file.display()))?;
        Ok(self.url.clone().with_password(password.trim_end_matches(['\r', '\n'])))
    }
}

impl From<StoreUrl> for StoreArgs {
    fn from(url: StoreUrl) -> Self {
        Self { url, password_file: None, known_triggers: Vec::new() }
    }
}

/// Flags of `rollbackd audit verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub store: StoreArgs,

    /// Instead of a store, what `rollbackd audit export` printed; - is standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// A head that GET /audit/head or the log once showed, and which must be in the audit: tells a cut end, and an
    /// audit that was rewritten whole. HASH alone does, too
    #[arg(long, value_name = "SEQUENCE:HASH", allow_hyphen_values = true)]
    pub anchor: Option<Anchor>,

    /// The --audit-retention that the audit was kept with: what was pruned must have been that old
    #[arg(long, value_name = "DURATION", value_parser = retention, allow_hyphen_values = true)]
    pub retention: Option<SignedDuration>,
}

/// Flags of `rollbackd audit export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Flags of `rollbackd serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; with --auth none only a loopback address [default: 0.0.0.0:8080, with --auth none
    /// 127.0.0.1:8080]
    #[arg(long, env = "ROLLBACKD_LISTEN")]
    pub listen: Option<SocketAddr>,

    /// Serve HTTPS with the certificate chain in this PEM file, which is read again when it changes
    #[arg(long, env = "ROLLBACKD_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, a PEM file
    #[arg(long, env = "ROLLBACKD_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Kubeconfig file; by default the in-cluster account, else the usual kubeconfig chain
    #[arg(long, env = "ROLLBACKD_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    #[command(flatten)]
    pub store: StoreArgs,

    /// How long audit entries are kept, such as 400d; what is older is cut off within a day, and the audit says so
    /// [default: for ever]
    #[arg(long, env = "ROLLBACKD_AUDIT_RETENTION", value_name = "DURATION", value_parser = retention, allow_hyphen_values = true)]
    pub audit_retention: Option<SignedDuration>,

    /// How many audit entries about requests that changed nothing (denials, refusals, dry runs) one caller may leave
    /// in 10 minutes, of each action; more are summed up
    #[arg(long, env = "ROLLBACKD_AUDIT_LIMIT_PER_CALLER", value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000), allow_negative_numbers = true)]
    pub audit_limit_per_caller: u32,

    /// How many of them all callers together may leave in 10 minutes, of each action; more are summed up
    #[arg(long, env = "ROLLBACKD_AUDIT_LIMIT", value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000), allow_negative_numbers = true)]
    pub audit_limit: u32,

    /// How callers are authenticated
    #[arg(long, env = "ROLLBACKD_AUTH", default_value = "kubernetes")]
    pub auth: AuthMode,

    /// The audience that bearer tokens must have been made for
    #[arg(long, env = "ROLLBACKD_AUDIENCE", value_name = "NAME", default_value = "rollbackd", value_parser = audience)]
    pub audience: String,

    /// Also take tokens made for the API server, which could be replayed against it by whoever gets hold of them
    #[arg(long, env = "ROLLBACKD_ACCEPT_API_SERVER_AUDIENCE")]
    pub accept_api_server_audience: bool,

    /// Group whose members can not be impersonated, beside those of the control plane; repeatable, or separated by
    /// semicolons
    #[arg(
        long = "refuse-impersonate-group",
        env = "ROLLBACKD_REFUSE_IMPERSONATE_GROUP",
        value_name = "GROUP",
        value_delimiter = ';',
        value_parser = group
    )]
    pub refused_groups: Vec<String>,

    /// What can be read without a token, beside the probes; repeatable
    #[arg(long, env = "ROLLBACKD_ANONYMOUS", value_name = "WHAT", value_delimiter = ',')]
    pub anonymous: Vec<Anonymous>,

    /// Origin, such as https://portal.example, whose web pages may send requests; repeatable
    #[arg(
        long = "cors-origin",
        env = "ROLLBACKD_CORS_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ',',
        value_parser = origin
    )]
    pub cors_origins: Vec<HeaderValue>,

    /// Address or CIDR of a proxy whose X-Forwarded-For is believed; repeatable
    #[arg(
        long = "trusted-proxy",
        env = "ROLLBACKD_TRUSTED_PROXY",
        value_name = "CIDR",
        value_delimiter = ',',
        value_parser = proxy
    )]
    pub trusted_proxies: Vec<IpNet>,

    /// Serve only this namespace; repeatable [default: all]
    #[arg(
        long = "namespace",
        env = "ROLLBACKD_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ',',
        value_parser = namespace
    )]
    pub namespaces: Vec<Namespace>,

    /// Name of the cluster, shown in answers and in the audit
    #[arg(long, env = "ROLLBACKD_CLUSTER_NAME", value_name = "NAME", value_parser = cluster_name)]
    pub cluster_name: Option<String>,

    /// A rollout that has not moved for this long is called stalled
    #[arg(long, env = "ROLLBACKD_STALL_AFTER", value_name = "DURATION", default_value = "10m", value_parser = positive_duration, allow_hyphen_values = true)]
    pub stall_after: Duration,

    /// Refuse rollbacks that give no reason
    #[arg(long, env = "ROLLBACKD_REQUIRE_REASON")]
    pub require_reason: bool,

    /// Whether a rollback restores the bookkeeping of tools that apply the template, so that their next apply undoes
    /// it cleanly, or keeps it, so that an unforced server-side apply fails with a conflict that names rollbackd
    #[arg(long, env = "ROLLBACKD_FIELD_OWNERSHIP", value_name = "MODE", default_value = "return")]
    pub field_ownership: FieldOwnership,

    /// Refuse every rollback, also dry runs, and serve all else; rollbacks that were made before are followed to
    /// their end
    #[arg(long, env = "ROLLBACKD_READ_ONLY")]
    pub read_only: bool,

    /// How long to go on accepting connections after SIGTERM, while endpoints update
    #[arg(long, env = "ROLLBACKD_DRAIN_DELAY", value_name = "DURATION", default_value = "5s", value_parser = duration, allow_hyphen_values = true)]
    pub drain_delay: Duration,

    #[command(flatten)]
    pub limits: LimitArgs,

    /// Memory for what is kept of DaemonSets and their revisions; what does not fit is read from the API server when it
    /// is asked for
    #[arg(long, env = "ROLLBACKD_INDEX_MEMORY", value_name = "SIZE", default_value = INDEX_MEMORY, value_parser = memory, allow_hyphen_values = true)]
    pub index_memory: usize,

    /// Memory for the pod templates of revisions, compressed; what does not fit is read from the API server when it is
    /// asked for
    #[arg(long, env = "ROLLBACKD_TEMPLATE_MEMORY", value_name = "SIZE", default_value = TEMPLATE_MEMORY, value_parser = memory, allow_hyphen_values = true)]
    pub template_memory: usize,
}

/// Flags of `rollbackd sandbox`.
#[derive(Clone, Debug, Args)]
pub struct SandboxArgs {
    /// Address to listen on; it holds no credentials, so that any will do
    #[arg(long, env = "ROLLBACKD_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// How many nodes the simulated cluster has
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100), allow_negative_numbers = true)]
    pub nodes: u16,

    /// How much faster than real pods the simulated ones start and stop
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = speed, allow_negative_numbers = true)]
    pub speed: f64,

    /// Where rollbacks and the audit are kept: sqlite:PATH [default: in memory]
    #[arg(long, value_name = "URL", value_parser = StoreUrlParser)]
    pub store: Option<StoreUrl>,
}

impl ValueEnum for FieldOwnership {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Return, Self::Keep]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Return => "return",
            Self::Keep => "keep",
        }))
    }
}

/// How callers are authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// By the cluster: bearer tokens by TokenReview, what their owners may do by its RBAC
    Kubernetes,
    /// Not at all: whoever reaches the loopback address acts with rollbackd's own credentials
    None,
    /// Not at all: the cluster is simulated
    #[value(skip)]
    Sandbox,
}

impl SandboxArgs {
    /// What the service over the simulated cluster is told.
    #[must_use]
    pub fn service(&self) -> ServeArgs {
        ServeArgs {
            listen: Some(self.listen),
            tls_cert: None,
            tls_key: None,
            kubeconfig: None,
            store: self.store.clone().unwrap_or_else(StoreUrl::in_memory).into(),
            audit_retention: None,
            audit_limit_per_caller: 30,
            audit_limit: 300,
            auth: AuthMode::Sandbox,
            audience: String::new(),
            accept_api_server_audience: false,
            refused_groups: Vec::new(),
            anonymous: Vec::new(),
            cors_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            namespaces: Vec::new(),
            cluster_name: Some("sandbox".to_owned()),
            stall_after: SANDBOX_STALL,
            require_reason: false,
            field_ownership: FieldOwnership::Return,
            read_only: false,
            drain_delay: Duration::ZERO,
            limits: LimitArgs::default(),
            index_memory: memory(INDEX_MEMORY).expect("the default is a size"),
            template_memory: memory(TEMPLATE_MEMORY).expect("the default is a size"),
        }
    }
}

/// What can be read without a token if so configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Anonymous {
    /// /openapi.json and /docs
    Docs,
    /// /metrics
    Metrics,
}

impl ServeArgs {
    /// Where to listen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listen.unwrap_or_else(|| match self.auth {
            AuthMode::Kubernetes => SocketAddr::from(([0, 0, 0, 0], 8080)),
            AuthMode::None | AuthMode::Sandbox => SocketAddr::from(([127, 0, 0, 1], 8080)),
        })
    }

    /// Checks what holds between flags.
    ///
    /// # Errors
    /// One line that names the flag.
    pub fn check(&self) -> Result<(), String> {
        let address = self.address();
        match self.auth {
            AuthMode::None if !address.ip().is_loopback() => Err(format!(
                "--listen {address}: with --auth none only a loopback address such as 127.0.0.1:8080 can be used, as everybody who reaches it acts with rollbackd's own credentials",
            )),
            AuthMode::None if !self.cors_origins.is_empty() => {
                Err("--cors-origin: with --auth none no page of another origin can be let in".into())
            }
            AuthMode::None | AuthMode::Kubernetes | AuthMode::Sandbox => Ok(()),
        }
    }
}

/// Reads `--store`. clap's own error repeats the value, and a password may stand in it.
#[derive(Clone)]
struct StoreUrlParser;

impl TypedValueParser for StoreUrlParser {
    type Value = StoreUrl;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<StoreUrl, clap::Error> {
        let url = value.to_str().and_then(|text| text.parse::<StoreUrl>().ok());
        // What is kept in memory is no record.
        url.filter(|url| !url.is_in_memory()).ok_or_else(|| {
            let message = format!("invalid value for '--store <URL>': {InvalidStoreUrl}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed) if (0.1..=100.0).contains(&speed) => Ok(speed),
        _ => Err("expected a number from 0.1 to 100".into()),
    }
}

fn namespace(text: &str) -> Result<Namespace, String> {
    Namespace::parse(text).map_err(|error| error.to_string())
}

fn cluster_name(text: &str) -> Result<String, String> {
    let printable = text.chars().all(|c| !c.is_control());
    if (1..=253).contains(&text.len()) && printable {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 253 bytes of printable text".into())
    }
}

fn audience(text: &str) -> Result<String, String> {
    let printable = text.chars().all(|c| c.is_ascii_graphic());
    if (1..=253).contains(&text.len()) && printable {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 253 printable ASCII characters".into())
    }
}

fn group(text: &str) -> Result<String, String> {
    let printable = text.chars().all(|c| !c.is_control());
    if !text.trim().is_empty() && printable {
        Ok(text.to_owned())
    } else {
        Err("expected the name of a group".into())
    }
}

/// An origin as browsers write it (RFC 6454, 6.2): scheme, host, and a port that is not the scheme's own.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let exact = || {
        let uri: Uri = text.parse().ok()?;
        let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
        let usual = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let whole = format!("{scheme}://{authority}") == text && text == text.to_ascii_lowercase();
        let in_host = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        let written = authority.port_u16() != Some(usual) && authority.as_str().chars().all(in_host);
        (whole && written).then(|| HeaderValue::from_str(text).ok()).flatten()
    };
    exact().ok_or_else(|| "expected an exact origin such as https://portal.example".into())
}

fn proxy(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| "expected an address or a CIDR such as 10.0.0.0/8".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a duration such as 90s, 10m or 1h30m";
    let duration: jiff::SignedDuration = text.parse().map_err(|_| EXPECTED)?;
    Duration::try_from(duration).map_err(|_| EXPECTED.into())
}

/// Shortest `--audit-retention`: what is younger may still be under way.
const SHORTEST_RETENTION: SignedDuration = SignedDuration::from_hours(24);

fn retention(text: &str) -> Result<SignedDuration, String> {
    let span: Option<Span> = text.parse().ok();
    let kept = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    kept.filter(|kept| *kept >= SHORTEST_RETENTION).ok_or("expected at least 1d, such as 400d or 52w".into())
}

/// Bytes, written as Kubernetes writes quantities of memory, from 1Mi.
fn memory(text: &str) -> Result<usize, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "Mi" => Some(1 << 20),
        "Gi" => Some(1 << 30),
        _ => None,
    };
    let bytes = digits.parse::<usize>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "expected a size such as 64Mi or 1Gi".into())
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("expected a duration longer than zero".into()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(args: &[&str]) -> Result<ServeArgs, String> {
        let line = ["rollbackd", "serve", "--auth", "none"].into_iter().chain(args.iter().copied());
        match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
            Command::Serve(args) => args.check().map(|()| args),
            Command::Sandbox(_) | Command::Openapi | Command::Audit(_) => unreachable!(),
        }
    }

    #[test]
    fn wrong_values_name_the_flag() {
        for (flag, value) in [
            ("--listen", "8080"),
            ("--listen", "0.0.0.0:8080"),
            ("--store", "postgres://x"),
            ("--store", "mysql://user@host/database"),
            ("--store", "sqlite:"),
            ("--store", "sqlite::memory:"),
            ("--namespace", "A"),
            ("--cluster-name", "a\u{1b}[0m"),
            ("--stall-after", "0s"),
            ("--stall-after", "-1s"),
            ("--drain-delay", "-1s"),
            ("--audit-retention", "-1d"),
            ("--audit-retention", "23h"),
            ("--audit-retention", "1 month"),
            ("--audit-limit-per-caller", "0"),
            ("--audit-limit-per-caller", "-1"),
            ("--audit-limit", "0"),
            ("--audit-limit", "many"),
            ("--drain-delay", "soon"),
            ("--max-connections", "0"),
            ("--max-streams", "0"),
            ("--max-reviews-per-address", "0"),
            ("--max-reviews-per-user", "1.5"),
            ("--refuse-impersonate-group", " "),
            ("--max-streams-per-user", "many"),
            ("--max-connections-per-address", "-1"),
            ("--max-unfinished-header-bytes", "1000"),
            ("--max-unfinished-header-bytes", "4 MB"),
            ("--index-memory", "0Mi"),
            ("--index-memory", "64"),
            ("--index-memory", "-1Mi"),
            ("--index-memory", "64MB"),
            ("--template-memory", "Mi"),
            ("--template-memory", "99999999999999999999Gi"),
            ("--auth", "oidc"),
            ("--audience", ""),
            ("--audience", "a b"),
            ("--cors-origin", "*"),
            ("--cors-origin", "https://*.example"),
            ("--cors-origin", "https://portal.example/"),
            ("--cors-origin", "https://portal.example:443"),
            ("--cors-origin", "https://Portal.example"),
            ("--cors-origin", "portal.example"),
            ("--cors-origin", "null"),
            ("--cors-origin", "https://portal.example"),
            ("--trusted-proxy", "10.0.0.0/33"),
            ("--trusted-proxy", "proxy.example"),
            ("--tls-cert", "tls.crt"),
            ("--tls-key", "tls.key"),
            ("--anonymous", "audit"),
        ] {
            let error = serve(&[flag, value]).unwrap_err();
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
    }

    #[test]
    fn a_store_that_can_not_be_read_is_not_repeated() {
        for url in [
            "postgres://u:s3cret@127.0.0.1:bad/x",
            "postgres://u:s3/cret@h/x",
            "postgres://[::1/x?password=s3",
        ] {
            let error = serve(&["--store", url]).unwrap_err();
            assert!(error.contains("--store") && !error.contains("s3"), "{error}");
        }
    }

    #[test]
    fn the_sandbox_has_bounds() {
        for (flag, value) in [
            ("--nodes", "0"),
            ("--nodes", "-1"),
            ("--nodes", "101"),
            ("--speed", "0"),
            ("--speed", "-1"),
            ("--speed", "nan"),
            ("--store", "x"),
        ] {
            let parsed = Cli::try_parse_from(["rollbackd", "sandbox", flag, value]);
            let error = parsed.unwrap_err().to_string();
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
    }

    #[test]
    fn an_anchor_is_a_hash_and_a_store_has_a_path() {
        let (hash, no_hash) = ("0".repeat(64), "g".repeat(64));
        let line = |flag: &str, value: &str| {
            Cli::try_parse_from(["rollbackd", "audit", "verify", flag, value].map(str::to_owned))
        };
        for (flag, value) in [
            ("--anchor", ""),
            ("--anchor", &hash[1..]),
            ("--anchor", &no_hash),
            ("--anchor", &format!(":{hash}")),
            ("--anchor", &format!("-1:{hash}")),
            ("--anchor", &format!("1:1:{hash}")),
            ("--anchor", "12:"),
            ("--retention", "1h"),
            ("--store", "x"),
        ] {
            let error = line(flag, value).unwrap_err().to_string();
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
        line("--anchor", &hash).unwrap();
        line("--anchor", &hash.replace("00", "aB")).unwrap();
        line("--anchor", &format!("12:{hash}")).unwrap();
        line("--retention", "400d").unwrap();
    }

    #[test]
    fn authentication_is_the_default_and_listens_everywhere() {
        let line = [
            "rollbackd",
            "serve",
            "--cors-origin",
            "https://portal.example,http://localhost:3000",
            "--trusted-proxy",
            "10.0.0.0/8",
            "--trusted-proxy",
            "::1",
        ];
        let Command::Serve(args) = Cli::try_parse_from(line).unwrap().command else { unreachable!() };
        args.check().unwrap();
        assert_eq!((args.auth, args.address().to_string().as_str()), (AuthMode::Kubernetes, "0.0.0.0:8080"));
        assert_eq!((args.cors_origins.len(), args.trusted_proxies.len()), (2, 2));
        assert_eq!(serve(&[]).unwrap().address().to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn durations_are_written_as_people_write_them() {
        let args = serve(&["--stall-after", "1h30m", "--drain-delay", "0s"]).unwrap();
        assert_eq!((args.stall_after, args.drain_delay), (Duration::from_secs(5400), Duration::ZERO));
    }

    #[test]
    fn retention_is_said_in_days_or_weeks() {
        for (text, hours) in [("1d", 24), ("52w", 52 * 168), ("400d", 9600), ("36h", 36)] {
            let args = serve(&["--audit-retention", text]).unwrap();
            assert_eq!(args.audit_retention, Some(SignedDuration::from_hours(hours)), "{text}");
        }
    }

    #[test]
    fn namespaces_repeat_or_stand_in_one_list() {
        let args = serve(&["--namespace", "a", "--namespace", "b,c"]).unwrap();
        assert_eq!(args.namespaces.iter().map(Namespace::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
