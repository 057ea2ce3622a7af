//! What connections without a whole request can take: nothing that others need.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
};

use crate::support::{
    api::Api,
    controlplane::ControlPlane,
    program::{MEMORY_LIMIT, Running, free_port},
    raw,
    rollbackd::{Rollbackd, Setup},
    wait::until,
};

/// Starts the program itself over a simulated cluster.
pub async fn program() -> (Running, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let listen = address.to_string();
    let arguments = ["sandbox", "--listen", &listen];
    let mut program = Running::start(env!("CARGO_BIN_EXE_rollbackd").as_ref(), &arguments);
    program.says("Ctrl-C ends it").await;
    (program, address)
}

/// A connection from an address of this machine, of which Linux has all of 127.0.0.0/8.
pub async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((source, 0).into()).expect("an address of this machine");
    socket.connect(address).await.expect("rollbackd accepts")
}

/// Begins a request, and never ends its header, of which this many bytes are sent.
async fn unfinished(source: Ipv4Addr, address: SocketAddr, length: usize) -> TcpStream {
    let mut stream = connect_from(source, address).await;
    let header = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}", "a".repeat(length));
    // It may be closed before it has read all.
    let _ = stream.write_all(header.as_bytes()).await;
    stream
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn unfinished_headers_neither_exceed_the_memory_limit_nor_keep_others_out() {
    let (program, address) = program().await;
    let api = Api::new(address);
    // 3,000 connections of 30 addresses, with 60 KB each.
    let mut held = Vec::new();
    for number in 0..100 {
        let opening = (1..=30).map(|host| unfinished(Ipv4Addr::new(127, 1, 0, host), address, 60_000));
        held.extend(futures_util::future::join_all(opening).await);
        if number % 10 == 0 {
            // On a connection of its own, as a probe of the kubelet.
            let probe = raw::send(address, &raw::request("GET /livez HTTP/1.1", &[], "")).await;
            assert_eq!(probe.expect("an answer").status, 200);
        }
    }
    assert_eq!(held.len(), 3000);
    // Shorter ones fill the budget and are not refused for their length.
    for _ in 0..20 {
        let opening = (1..=30).map(|host| unfinished(Ipv4Addr::new(127, 1, 0, host), address, 30_000));
        held.extend(futures_util::future::join_all(opening).await);
    }
    api.get("/daemonsets").await.expect(200);
    let metrics = api.get("/metrics").await.text;
    assert!(metrics.contains("rollbackd_http_connections_closed_total{limit=\"header_bytes\"}"), "{metrics}");
    let peak = program.peak_memory();
    assert!(peak < MEMORY_LIMIT, "{} MiB", peak / 1024 / 1024);
}

#[tokio::test]
async fn silent_connections_of_one_address_displace_only_each_other() {
    let flags = ["--max-connections-per-address", "20", "--trusted-proxy", "127.0.9.1"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) }).await;
    let address = rollbackd.address;
    let neighbour = connect_from(Ipv4Addr::new(127, 0, 9, 2), address).await;
    let from = async |host: u8, count: usize| {
        let mut held = Vec::new();
        for _ in 0..count {
            held.push(connect_from(Ipv4Addr::new(127, 0, 9, host), address).await);
        }
        held
    };
    let proxy = from(1, 60).await;
    let many = from(3, 60).await;
    until("the oldest to be closed", async || {
        let text = rollbackd.api.get("/metrics").await.text;
        let closed = "rollbackd_http_connections_closed_total{limit=\"per_address\"} 40\n";
        if text.contains(closed) { Ok(()) } else { Err(text) }
    })
    .await;
    let served = async |mut stream: TcpStream| {
        let request = raw::request("GET /livez HTTP/1.1", &[], "");
        let _ = stream.write_all(&request).await;
        raw::answer(&mut stream).await.is_some()
    };
    assert!(served(neighbour).await);
    for stream in proxy {
        assert!(served(stream).await, "a proxy's connection was closed");
    }
    let mut answered = Vec::new();
    for stream in many {
        answered.push(served(stream).await);
    }
    assert_eq!(answered, [vec![false; 40], vec![true; 20]].concat());
}

#[tokio::test]
async fn a_new_connection_is_served_however_many_are_silent() {
    let flags = ["--max-connections", "30"];
    let rollbackd =
        Rollbackd::start_with(Setup { flags: &flags, ..Setup::new(ControlPlane::shared()) }).await;
    let mut silent = Vec::new();
    for host in 1..=90 {
        silent.push(connect_from(Ipv4Addr::new(127, 0, 8, host), rollbackd.address).await);
    }
    for _ in 0..10 {
        let probe = raw::send(rollbackd.address, &raw::request("GET /livez HTTP/1.1", &[], "")).await;
        assert_eq!(probe.expect("an answer").status, 200);
    }
}
