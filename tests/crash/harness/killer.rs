//! Who kills.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::ensure;
use fastrand::Rng;
use tokio::time::sleep;

use super::{Harness, cluster::Cluster, faults::Fault, postgres::Postgres, replicas::Life, versions};

/// Points in rollbackd (`src/failpoint.rs`), each with the one at which the life before it has to end, so that
/// there is something to settle.
pub const POINTS: [(&str, Option<&str>); 21] = [
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
    ("ownership-read", None),
    ("ownership-sent", None),
    ("ownership-answered", None),
];
/// A point that is come to only when the API server stays away for long.
const UNSETTLED: &str = "unsettled-recorded";
/// rollbackd waits 10 s for the patch's answer, and 5 s to learn what came of it.
const UNTIL_UNSETTLED: Duration = Duration::from_secs(25);
/// How often a point is tried that depends on what others do in between.
const TRIES: usize = 12;
/// How often a point is put off that nobody came to.
const MISSES: usize = 6;
/// For one to come to its point.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who kills.
pub struct Killer<'a> {
    pub lives: Vec<Life>,
    pub kills: BTreeMap<String, usize>,
    pub faults: BTreeMap<String, usize>,
    pub api_server_killed: Vec<String>,
    pub deadline: Instant,
    pub rng: Rng,
    pub cluster: &'a Cluster,
    pub postgres: Option<&'a Postgres>,
    pub harness: Arc<Harness>,
}

impl Killer<'_> {
    /// Kills `kills` times at least, `rounds` times at each point, with faults in between.
    pub async fn kill(&mut self, kills: usize, rounds: usize, faults: &[Fault]) -> anyhow::Result<()> {
        // The points are spread over the kills, so that they meet all kinds of histories.
        let mut points: Vec<usize> = (0..rounds).flat_map(|_| 0..POINTS.len()).collect();
        self.rng.shuffle(&mut points);
        let mut missed = 0;
        let mut left = faults.to_vec();
        self.rng.shuffle(&mut left);
        let (due, mut told) = (points.len(), 0);
        let mut migrates = self.postgres.is_some();
        loop {
            let done = self.kills.values().sum::<usize>();
            if (points.is_empty() && left.is_empty() && done >= kills) || Instant::now() > self.deadline {
                return Ok(());
            }
            if migrates && done * 2 >= kills {
                migrates = false;
                match self.harness.next {
                    Some(_) => self.harness.mixed.store(true, Ordering::Relaxed),
                    None => versions::migrate(&self.harness.store).await?,
                }
            }
            // Evenly, as far as they go.
            if (faults.len() - left.len()) * kills <= done * faults.len()
                && let Some(fault) = left.pop()
            {
                if !self.fault(fault).await? && missed < MISSES {
                    missed += 1;
                    left.insert(0, fault);
                }
            } else if (due - points.len()) * kills <= done * due
                && let Some(point) = points.pop()
            {
                let (name, before) = POINTS[point];
                // Some depend on what others do; another time they do that.
                if !self.at_point(name, before).await? && missed < MISSES {
                    missed += 1;
                    points.insert(0, point);
                }
            } else {
                self.at_random().await?;
            }
            if done / 100 > told {
                told = done / 100;
                println!("crash: {done} of {kills} kills");
            }
        }
    }

    pub async fn ready(&mut self) -> anyhow::Result<()> {
        for life in &mut self.lives {
            if self.harness.asleep[life.replica].load(Ordering::Relaxed) {
                continue;
            }
            let url = format!("http://127.0.0.1:{}/readyz", self.harness.ports[life.replica]);
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                if let Ok(answer) = self.harness.http.get(&url).timeout(Duration::from_secs(2)).send().await
                    && answer.status().is_success()
                {
                    break;
                }
                // At a point that comes early.
                if life.has_come() || life.has_ended().await? {
                    break;
                }
                ensure!(Instant::now() < deadline, "rollbackd does not get ready; see rollbackd.log");
                sleep(Duration::from_millis(8)).await;
            }
        }
        Ok(())
    }

    /// Kills a replica now, and starts it again on the same store.
    pub async fn again(&mut self, replica: usize, point: Option<&str>, why: &str) -> anyhow::Result<()> {
        let life = &mut self.lives[replica];
        life.has_ended().await?;
        life.kill().await?;
        *self.kills.entry(why.to_owned()).or_default() += 1;
        if self.rng.u8(..100) < 35 {
            self.harness.clone().disturb(&mut self.rng).await;
        }
        self.lives[replica] = self.harness.live(replica, point)?;
        Ok(())
    }

    pub async fn pause(&mut self, millis: u64) {
        sleep(Duration::from_millis(self.rng.u64(..=millis))).await;
    }

    /// Kills a replica and starts it again while the API server stands still: some time after the freeze, and at
    /// most `after` milliseconds before the thaw.
    async fn with_the_api_server_frozen(
        &mut self,
        replica: usize,
        before: impl AsyncFnOnce(&mut Self),
        after: u64,
    ) -> anyhow::Result<()> {
        let harness = self.harness.clone();
        let frozen = harness.quiet.write().await;
        self.cluster.signal("STOP")?;
        before(self).await;
        let killed = async {
            self.lives[replica].kill().await?;
            self.lives[replica] = harness.live(replica, None)?;
            self.pause(after).await;
            Ok::<_, anyhow::Error>(())
        };
        let killed = killed.await;
        self.cluster.signal("CONT")?;
        drop(frozen);
        killed
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
                self.with_the_api_server_frozen(replica, async |killer| killer.pause(60).await, 400).await?;
                *self.kills.entry("API server frozen".into()).or_default() += 1;
            }
            // With a patch in the frozen API server's hands, or on the way to them.
            24..36 => {
                self.again(replica, Some("recorded,2,hold,25"), "at random").await?;
                self.ready().await?;
                let mut reached = self.lives[replica].reached.clone();
                let came =
                    tokio::time::timeout(Duration::from_secs(2), reached.wait_for(|reached| *reached > 0))
                        .await
                        .is_ok();
                // Some get through to the handler before the freeze, some stay in the socket.
                let head_start = self.rng.u64(..40);
                sleep(Duration::from_millis(head_start)).await;
                let a_moment = async |_: &mut Self| sleep(Duration::from_millis(30)).await;
                self.with_the_api_server_frozen(replica, a_moment, 300).await?;
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

    /// Lets it die at a point. Tells whether it came to it.
    async fn at_point(&mut self, name: &str, before: Option<&str>) -> anyhow::Result<bool> {
        if name == UNSETTLED {
            return self.unsettled().await;
        }
        let point = self.armed(name);
        let came = self.come_to(before, &point).await?;
        match came {
            Some(replica) => {
                // For one that dies by itself.
                sleep(Duration::from_millis(5)).await;
                self.again(replica, None, name).await?;
            }
            // The checker says so, too.
            None => println!("crash: {name} was not come to"),
        }
        for replica in 0..self.lives.len() {
            if self.lives[replica].armed.is_some() {
                self.again(replica, None, "at random").await?;
            }
        }
        self.ready().await?;
        Ok(came.is_some())
    }

    /// Has a replica come to a point with what is armed there, and tells which. Where the point is in settling,
    /// somebody has to die before and leave something to settle: then it may be any of them who comes.
    pub async fn come_to(&mut self, before: Option<&str>, point: &str) -> anyhow::Result<Option<usize>> {
        let several = self.lives.len() > 1;
        // Each of several has a share of the work.
        let patience = PATIENCE * u32::try_from(self.lives.len())?;
        for _ in 0..TRIES {
            let replica = self.rng.usize(..self.lives.len());
            let Some(before) = before else {
                self.again(replica, Some(point), "at random").await?;
                self.ready().await?;
                if self.comes_to(replica, 1, patience).await {
                    return Ok(Some(replica));
                }
                continue;
            };
            for other in (0..self.lives.len()).filter(|other| *other != replica) {
                let life = &self.lives[other];
                if life.armed.as_deref() != Some(point) || life.has_come() {
                    self.again(other, Some(point), "at random").await?;
                }
            }
            let first = self.armed(before);
            self.again(replica, Some(&first), "at random").await?;
            self.ready().await?;
            if !self.comes_to(replica, 1, patience).await {
                continue;
            }
            // What was left is settled when the lease is over, and till then nobody else must have made the
            // pinned version old.
            let harness = self.harness.clone();
            let quiet = if several { Some(harness.quiet.write().await) } else { None };
            self.lives[replica].kill().await?;
            *self.kills.entry(before.to_owned()).or_default() += 1;
            if !several && self.rng.u8(..100) < 35 {
                harness.disturb(&mut self.rng).await;
            }
            self.lives[replica] = harness.live(replica, Some(point))?;
            self.ready().await?;
            let patience = if several { Duration::from_secs(9) } else { PATIENCE };
            let came = self.anybody_comes(point, patience).await;
            drop(quiet);
            if came.is_some() {
                return Ok(came);
            }
        }
        Ok(None)
    }

    async fn anybody_comes(&self, point: &str, patience: Duration) -> Option<usize> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let came =
                self.lives.iter().position(|life| life.has_come() && life.armed.as_deref() == Some(point));
            if came.is_some() {
                return came;
            }
            sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// A point, on one of its first passes, with a way to die.
    fn armed(&mut self, name: &str) -> String {
        let rare = name.starts_with("settl") || name.starts_with("pinned") || name == "failing";
        let pass = if rare { 1 } else { self.rng.u8(1..=3) };
        let action = if self.rng.bool() { "die" } else { "freeze" };
        let millis = if name.ends_with("-sent") { self.rng.u64(..8) } else { 0 };
        format!("{name},{pass},{action},{millis}")
    }

    async fn comes_to(&self, replica: usize, points: usize, patience: Duration) -> bool {
        let mut reached = self.lives[replica].reached.clone();
        // The sender goes when it has died.
        let _ = tokio::time::timeout(patience, async {
            reached.wait_for(|reached| *reached >= points).await.is_ok()
        })
        .await;
        *reached.borrow() >= points
    }

    /// The API server is frozen when the patch comes, and stays so until rollbackd has said that it does not
    /// know.
    async fn unsettled(&mut self) -> anyhow::Result<bool> {
        for _ in 0..TRIES {
            let replica = self.rng.usize(..self.lives.len());
            let points = format!("recorded,1,hold,60;{UNSETTLED}");
            self.again(replica, Some(&points), "at random").await?;
            self.ready().await?;
            if !self.comes_to(replica, 1, Duration::from_secs(3)).await {
                continue;
            }
            let harness = self.harness.clone();
            let frozen = harness.quiet.write().await;
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
                return Ok(true);
            }
        }
        println!("crash: {UNSETTLED} was not come to");
        Ok(false)
    }
}
