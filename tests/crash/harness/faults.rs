//! What happens to rollbackd between its kills: it stands still, and so do, or die, those whom it depends on.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::sleep;

use super::killer::Killer;

/// Longer than a replica's lease, 5 s.
const NAP: std::ops::Range<u64> = 5_500..8_500;

/// What becomes of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    Stopped,
    Killed,
    Frozen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A replica stands still for longer than its lease, at a point or anywhere, and goes on; with the point at
    /// which the life before it has to end.
    Asleep(Option<&'static str>, Option<&'static str>),
    Postgres(Outage),
    ApiServer(Outage),
}

/// Each kind once, dealt again and again.
pub const ALL: [Fault; 20] = [
    Fault::Asleep(None, None),
    Fault::Asleep(Some("planned"), None),
    Fault::Asleep(Some("recorded"), None),
    Fault::Asleep(Some("pinned-again"), None),
    Fault::Asleep(Some("patch-sent"), None),
    Fault::Asleep(Some("patch-answered"), None),
    Fault::Asleep(Some("applied-recorded"), None),
    Fault::Asleep(Some("answer-made"), None),
    Fault::Asleep(Some("failing"), None),
    Fault::Asleep(Some("follow-before-record"), None),
    Fault::Asleep(Some("settling"), Some("recorded")),
    Fault::Asleep(Some("settled"), Some("patch-sent")),
    Fault::Asleep(Some("ownership-read"), None),
    Fault::Postgres(Outage::Stopped),
    Fault::Postgres(Outage::Killed),
    Fault::Postgres(Outage::Killed),
    Fault::Postgres(Outage::Frozen),
    Fault::Postgres(Outage::Frozen),
    Fault::ApiServer(Outage::Killed),
    Fault::ApiServer(Outage::Frozen),
];
/// Where the work is when PostgreSQL goes away.
const MOMENTS: [&str; 6] =
    ["planned", "recorded", "patch-sent", "patch-answered", "follow-before-record", "answer-made"];

impl Fault {
    /// Without PostgreSQL there is one replica, which nobody replaces while it stands still.
    pub fn needs_postgres(self) -> bool {
        !matches!(self, Self::ApiServer(_))
    }

    pub fn name(self) -> String {
        let how = |outage| match outage {
            Outage::Stopped => "stopped",
            Outage::Killed => "killed",
            Outage::Frozen => "frozen",
        };
        match self {
            Self::Asleep(None, _) => "replica frozen at random".into(),
            Self::Asleep(Some(point), _) => format!("replica frozen at {point}"),
            Self::Postgres(outage) => format!("PostgreSQL {}", how(outage)),
            Self::ApiServer(outage) => format!("API server {}", how(outage)),
        }
    }
}

impl Killer<'_> {
    /// Lets a fault happen; false if nobody came to the point that it is for.
    pub async fn fault(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let happened = match fault {
            Fault::Asleep(point, before) => self.asleep(point, before).await?,
            Fault::Postgres(outage) => self.postgres(outage).await?,
            Fault::ApiServer(outage) => self.api_server(outage).await?,
        };
        if happened {
            *self.faults.entry(fault.name()).or_default() += 1;
        }
        self.ready().await?;
        Ok(happened)
    }

    async fn asleep(&mut self, point: Option<&'static str>, before: Option<&str>) -> anyhow::Result<bool> {
        let came = match point {
            // Time enough for the signal.
            Some(point) => {
                let pass = if matches!(point, "pinned-again" | "failing" | "settling") {
                    1
                } else {
                    self.rng.u8(1..=3)
                };
                self.come_to(before, &format!("{point},{pass},hold,1500")).await?
            }
            None => Some(self.rng.usize(..self.lives.len())),
        };
        let Some(replica) = came else {
            println!("crash: nobody came to {}, to be frozen there", point.unwrap_or_default());
            return Ok(false);
        };
        self.harness.asleep[replica].store(true, Ordering::Relaxed);
        self.lives[replica].signal("STOP")?;
        let nap = Duration::from_millis(self.rng.u64(NAP));
        // Sometimes one of those dies that could take over.
        if self.lives.len() > 2 && self.rng.u8(..100) < 40 {
            self.pause(4_000).await;
            let other = (replica + 1) % self.lives.len();
            self.again(other, None, "while another one was frozen").await?;
        }
        sleep(nap).await;
        self.lives[replica].signal("CONT")?;
        self.harness.asleep[replica].store(false, Ordering::Relaxed);
        // What it does when it wakes up, it does now.
        self.pause(2_000).await;
        Ok(true)
    }

    async fn postgres(&mut self, outage: Outage) -> anyhow::Result<bool> {
        let Some(postgres) = self.postgres else { return Ok(false) };
        if self.rng.u8(..100) < 70 {
            let moment = MOMENTS[self.rng.usize(..MOMENTS.len())];
            self.come_to(None, &format!("{moment},1,hold,250")).await?;
        }
        match outage {
            Outage::Stopped => postgres.stop().await?,
            Outage::Killed => postgres.signal("KILL").await?,
            Outage::Frozen => postgres.signal("STOP").await?,
        }
        self.pause(7_000).await;
        // Started when the store is there again: it needs that to start.
        let killed = (self.rng.u8(..100) < 40).then(|| self.rng.usize(..self.lives.len()));
        if let Some(replica) = killed {
            self.lives[replica].kill().await?;
            *self.kills.entry("without PostgreSQL".into()).or_default() += 1;
        }
        self.pause(6_000).await;
        match outage {
            Outage::Frozen => postgres.signal("CONT").await?,
            Outage::Stopped | Outage::Killed => postgres.start_again().await?,
        }
        if let Some(replica) = killed {
            self.lives[replica] = self.harness.live(replica, None)?;
        }
        Ok(true)
    }

    async fn api_server(&mut self, outage: Outage) -> anyhow::Result<bool> {
        if self.rng.bool() {
            self.come_to(None, "recorded,1,hold,20").await?;
        }
        let harness = self.harness.clone();
        let quiet = harness.quiet.write().await;
        let killed = (self.rng.u8(..100) < 40).then(|| self.rng.usize(..self.lives.len()));
        match outage {
            Outage::Killed | Outage::Stopped => {
                self.cluster.signal("KILL")?;
                self.api_server_killed.push(super::now());
            }
            Outage::Frozen => self.cluster.signal("STOP")?,
        }
        self.pause(6_000).await;
        if let Some(replica) = killed {
            self.lives[replica].kill().await?;
            *self.kills.entry("without API server".into()).or_default() += 1;
            self.lives[replica] = harness.live(replica, None)?;
        }
        self.pause(6_000).await;
        match outage {
            Outage::Killed | Outage::Stopped => self.cluster.restart().await?,
            Outage::Frozen => self.cluster.signal("CONT")?,
        }
        drop(quiet);
        Ok(true)
    }
}
