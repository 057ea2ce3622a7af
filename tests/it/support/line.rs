//! A TCP connection's way to a server, which a test can make slow, or silent: nothing comes through any more, and
//! neither end is told.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What happens to what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Each piece takes so much longer.
    Slow(Duration),
    /// What is sent goes nowhere.
    Silent,
    /// The next commit of an entry of the audit gets there, and the connection breaks before its answer. After
    /// that the way is open.
    LosesAnswerToCommit,
    /// Each commit of an entry of the audit gets there, and its connection is silent for ever.
    SilentAfterCommit,
}

/// A port that leads to a server. All its connections end with it.
pub struct Line {
    pub port: u16,
    /// For connections that are made from now on, and those that go on from there.
    way: watch::Sender<Way>,
    /// Connections that are made once a line has been cut off are not of the old ones.
    generation: watch::Sender<u64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Line {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let (way, generation) = (watch::Sender::new(Way::Open), watch::Sender::new(0));
        let (ways, generations) = (way.clone(), generation.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (way, generation) = (ways.clone(), generations.subscribe());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let broken = Arc::new(AtomicBool::new(false));
                    let up = pass(
                        from_client,
                        to_server,
                        way.clone(),
                        generation.clone(),
                        broken.clone(),
                        Sends::Client,
                    );
                    let down = pass(from_server, to_client, way, generation, broken, Sends::Server);
                    tokio::join!(up, down);
                });
            }
        });
        Self { port, way, generation, accepting }
    }

    pub fn make(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// The server has moved: connections that are there are silent for ever, new ones work.
    pub fn forget_connections(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sends {
    Client,
    Server,
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    ways: watch::Sender<Way>,
    generation: watch::Receiver<u64>,
    broken: Arc<AtomicBool>,
    sends: Sends,
) {
    let mut way = ways.subscribe();
    let mine = *generation.borrow();
    let mut buffer = vec![0; 64 * 1024];
    let mut appends = false;
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let piece = &buffer[..count];
        let holds = |text: &str| piece.windows(text.len()).any(|part| part == text.as_bytes());
        if *generation.borrow() != mine {
            // Neither end is told, as long as the test runs.
            return std::future::pending().await;
        }
        let now = *way.borrow_and_update();
        if broken.load(Ordering::SeqCst) {
            if now == Way::SilentAfterCommit {
                return std::future::pending().await;
            }
            return;
        }
        match now {
            Way::Open | Way::LosesAnswerToCommit | Way::SilentAfterCommit => {}
            Way::Slow(by) => tokio::time::sleep(by).await,
            Way::Silent if way.wait_for(|way| *way != Way::Silent).await.is_err() => return,
            Way::Silent => {}
        }
        if sends == Sends::Client {
            appends |= holds("\"action\":\"");
            if appends && holds("COMMIT") {
                appends = false;
                let breaks = matches!(now, Way::LosesAnswerToCommit | Way::SilentAfterCommit);
                broken.store(breaks, Ordering::SeqCst);
                if now == Way::LosesAnswerToCommit {
                    ways.send_replace(Way::Open);
                }
            }
        }
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}
