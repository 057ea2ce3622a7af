//! What stands in front of the handlers: TLS, pages of other origins, proxies.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
};

use reqwest::Method;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use serde_json::json;

use crate::support::{
    controlplane::ControlPlane,
    people::Right,
    rollbackd::{Rollbackd, Setup},
    space::Space,
    wait::until,
};

/// Writes a new self-signed certificate for localhost; returns it.
fn write_certificate(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

/// Asks for `/livez` over TLS, trusting this certificate alone; returns the answer's first line.
async fn live_over_tls(address: SocketAddr, trusted: CertificateDer<'static>) -> Result<String, String> {
    let asking = move || {
        let mut roots = RootCertStore::empty();
        roots.add(trusted).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut tcp = TcpStream::connect(address).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        asked.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        // Some servers close without saying so first.
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        Ok(text.lines().next().unwrap_or_default().to_owned())
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

#[tokio::test]
async fn https_is_served_and_a_new_certificate_is_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    let first = write_certificate(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (cert, key) = (path("tls.crt"), path("tls.key"));
    let flags = ["--tls-cert", &cert, "--tls-key", &key];
    let mut setup = Setup { flags: &flags, ..Setup::guarded(ControlPlane::shared()) };
    setup.timing.certificate = std::time::Duration::from_millis(50);
    let mut rollbackd = Rollbackd::launch(setup).await;
    assert_eq!(live_over_tls(rollbackd.address, first.clone()).await.unwrap(), "HTTP/1.1 200 OK");
    // Plain HTTP gets nothing.
    let plain = rollbackd.api.request(Method::GET, "/livez").send().await;
    assert!(plain.is_err(), "{plain:?}");

    // Half a new pair does not take the old one away.
    let key_now = std::fs::read(&key).unwrap();
    std::fs::write(&key, b"-----BEGIN PRIVATE KEY-----\nnonsense\n").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    live_over_tls(rollbackd.address, first.clone()).await.unwrap();
    std::fs::write(&key, key_now).unwrap();

    let second = write_certificate(folder.path());
    until("the new certificate to be offered", async || {
        live_over_tls(rollbackd.address, second.clone()).await
    })
    .await;
    live_over_tls(rollbackd.address, first).await.unwrap_err();
    rollbackd.stop().await;
}

#[tokio::test]
#[ignore = "starts the program on a kubeconfig"]
async fn a_certificate_that_can_not_be_used_stops_the_start_with_a_line_that_names_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path());
    let other = tempfile::tempdir().unwrap();
    write_certificate(other.path());
    std::fs::write(folder.path().join("empty"), "").unwrap();
    let of = |folder: &tempfile::TempDir, name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (cert, key, flag) in [
        (of(&folder, "missing"), of(&folder, "tls.key"), "--tls-cert"),
        (of(&folder, "tls.crt"), of(&folder, "missing"), "--tls-key"),
        (of(&folder, "empty"), of(&folder, "tls.key"), "--tls-cert"),
        (of(&folder, "tls.crt"), of(&folder, "empty"), "--tls-key"),
        (of(&folder, "tls.crt"), of(&other, "tls.key"), "--tls-key"),
    ] {
        let store = format!("sqlite:{}", of(&folder, "rollbackd.db"));
        let kubeconfig = ControlPlane::shared().kubeconfig("rollbackd");
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollbackd"))
            .args(["serve", "--tls-cert", &cert, "--tls-key", &key, "--store", &store])
            .args(["--listen", "127.0.0.1:0"])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .output()
            .await
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        let line = told.lines().last().unwrap_or_default();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(line.starts_with(&format!("error: {flag} ")), "{told}");
    }
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn pages_of_named_origins_may_ask_and_no_others() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1"]).await;
    let token = space.person("viewer", &[Right::View]).await;
    let flags = ["--cors-origin", "https://portal.example", "--cors-origin", "http://localhost:3000"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::guarded(ControlPlane::shared()) }).await;
    let ask = async |method: Method, origin: &str| {
        let mut request =
            rollbackd.api.request(method.clone(), &space.path("agent")).header("origin", origin);
        if method == Method::OPTIONS {
            request = request.header("access-control-request-method", "GET");
            request = request.header("access-control-request-headers", "authorization");
        } else {
            request = request.bearer_auth(&token);
        }
        rollbackd.api.send(request).await
    };
    for origin in ["https://portal.example", "http://localhost:3000"] {
        let preflight = ask(Method::OPTIONS, origin).await;
        assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, origin));
        assert!(preflight.header("access-control-allow-headers").contains("authorization"));
        assert_eq!(preflight.header("access-control-allow-methods"), "GET,POST");
        let read = ask(Method::GET, origin).await;
        assert_eq!((read.status, read.header("access-control-allow-origin")), (200, origin));
        assert!(read.header("access-control-expose-headers").contains("etag"), "{read:?}");
        assert_eq!(read.header("access-control-allow-credentials"), "");
    }
    // A problem can be read by the page, too.
    let request = rollbackd.api.request(Method::GET, "/version").header("origin", "https://portal.example");
    let refused = rollbackd.api.send(request).await;
    refused.problem(401, "no-token");
    assert_eq!(refused.header("access-control-allow-origin"), "https://portal.example");
    for origin in ["https://evil.example", "https://portal.example.evil", "http://portal.example", "null"] {
        for method in [Method::OPTIONS, Method::GET] {
            let answer = ask(method, origin).await;
            assert_eq!(answer.header("access-control-allow-origin"), "", "{origin}: {answer:?}");
        }
    }
    // Off unless it is asked for.
    let closed = Rollbackd::guarded().await;
    let request = closed.api.request(Method::OPTIONS, "/version").header("origin", "https://portal.example");
    let answer = closed.api.send(request.header("access-control-request-method", "GET")).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (405, ""));
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn only_a_trusted_proxy_is_believed_about_where_a_request_comes_from() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let roller = space.person("roller", &[Right::RollBack]).await;
    let auditor = space.person("auditor", &[Right::Audit]).await;
    let forwarded = "203.0.113.9, 198.51.100.7, 10.1.2.3";
    for (flags, expected) in [
        (&[][..], "127.0.0.1"),
        (&["--trusted-proxy", "127.0.0.0/8"], "10.1.2.3"),
        (&["--trusted-proxy", "127.0.0.1,10.0.0.0/8"], "198.51.100.7"),
        (&["--trusted-proxy", "10.0.0.0/8"], "127.0.0.1"),
    ] {
        let rollbackd =
            Rollbackd::start_with(Setup { flags, ..Setup::guarded(ControlPlane::shared()) }).await;
        let body = json!({"toRevision": 1, "dryRun": true});
        let request = rollbackd.api.request(Method::POST, &format!("{}/rollback", space.path("agent")));
        let request = request.header("x-forwarded-for", forwarded).bearer_auth(&roller).json(&body);
        rollbackd.api.send(request).await.expect(200);
        let audit = rollbackd.api.with_token(&auditor).audit(&space.namespace).await;
        assert_eq!(audit[0]["source"], expected, "{flags:?}");
    }
}
