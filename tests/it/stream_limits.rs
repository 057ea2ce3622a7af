//! How many event streams callers may have open.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    connections::{connect_from, program},
    support::{
        api::Api,
        controlplane::ControlPlane,
        people::Right,
        program::MEMORY_LIMIT,
        raw::{self, RawAnswer},
        rollbackd::{Rollbackd, Setup},
        space::Space,
        wait::until,
    },
};

/// Opens the stream of a rollout that never ends.
async fn stream(source: Ipv4Addr, address: SocketAddr) -> (TcpStream, RawAnswer) {
    let mut stream = connect_from(source, address).await;
    let request = "GET /daemonsets/monitoring/log-agent/status HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let answer = raw::answer(&mut stream).await.expect("an answer");
    (stream, answer)
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn streams_beyond_the_limit_get_429_and_memory_stays_within_its_limit() {
    let (program, address) = program().await;
    let mut open = Vec::new();
    let mut refused = Vec::new();
    for number in 0..3900 {
        let (connection, answer) = stream(Ipv4Addr::new(127, 2, 0, 1 + (number % 50) as u8), address).await;
        match answer.status {
            200 => open.push(connection),
            _ => refused.push(answer),
        }
    }
    assert_eq!((open.len(), refused.len()), (500, 3400));
    for answer in refused {
        answer.problem(429, "too-many-streams");
        assert_eq!(answer.header("retry-after"), Some("10"));
    }
    let peak = program.peak_memory();
    assert!(peak < MEMORY_LIMIT, "{} MiB", peak / 1024 / 1024);
    // All else is served, and a stream that was closed leaves its place to another.
    Api::new(address).get("/daemonsets/monitoring/log-agent/status").await.expect(200);
    open.pop();
    until("a place for another stream", async || {
        let (_connection, answer) = stream(Ipv4Addr::new(127, 2, 0, 99), address).await;
        if answer.status == 200 { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs the authentication and RBAC of a cluster"]
async fn each_user_whose_rights_decide_has_streams_of_their_own() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:unready"]).await;
    let viewer = space.person("viewer", &[Right::View]).await;
    let other = space.person("other", &[Right::View]).await;
    let portal = space.person("portal", &[Right::Impersonate]).await;
    let flags = ["--max-streams-per-user", "2", "--max-streams", "5"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::guarded(ControlPlane::shared()) }).await;
    let path = format!("{}/status", space.path("agent"));
    let [viewer, other] = [viewer, other].map(|token| rollbackd.api.with_token(&token));
    let first = viewer.events(&path).await;
    let _second = viewer.events(&path).await;
    let refused = async |api: &Api| {
        api.get_as(&path, "text/event-stream").await.problem(429, "too-many-streams");
    };
    refused(&viewer).await;
    viewer.get(&path).await.expect(200);
    let _theirs = other.events(&path).await;
    // Through a portal it is the same user.
    let bearer = format!("Bearer {portal}");
    let named = space.user("viewer");
    let through = rollbackd.api.with_headers(&[("authorization", &bearer), ("impersonate-user", &named)]);
    refused(&through).await;
    let named = space.user("other");
    let through = rollbackd.api.with_headers(&[("authorization", &bearer), ("impersonate-user", &named)]);
    let _through = through.events(&path).await;
    refused(&other).await;
    drop(first);
    until("a place for another stream", async || {
        let request = viewer.request(reqwest::Method::GET, &path).header("accept", "text/event-stream");
        let status = request.send().await.expect("an answer").status().as_u16();
        if status == 200 { Ok(()) } else { Err(status) }
    })
    .await;
}
