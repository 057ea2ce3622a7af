//! How many connections there may be, and how many bytes of unfinished request headers they may hold.
//!
//! A connection is idle while no request of it is under way: it is silent, or its header is incomplete. At a
//! limit the address with the most connections gives up its oldest idle one. So a flood from few addresses only
//! displaces itself, and a probe of the kubelet gets through. A new connection is refused only where no connection
//! is idle.

mod bare;
mod requests;
mod stream;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

pub use bare::Answered;
pub use requests::{Tracked, UnderWay};
pub use stream::{Held, Metered};

use crate::telemetry::Metrics;

/// Between two lines of the log that report closed connections.
const REPORT_PERIOD: Duration = Duration::from_secs(10);

/// Limits of the connections of one process.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// `--max-connections`.
    pub total: usize,
    /// `--max-connections-per-address`; an IPv6 address counts as its /64.
    pub per_address: usize,
    /// `--max-unfinished-header-bytes`, over all connections.
    pub header_bytes: usize,
}

/// Why a connection was closed or refused; a label of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Total,
    PerAddress,
    HeaderBytes,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::PerAddress => "per_address",
            Self::HeaderBytes => "header_bytes",
        }
    }
}

/// All open connections. Clones share them.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: ConnectionLimits,
    /// `--trusted-proxy`: no limit per address, and the last to give up a connection.
    exempt: Vec<IpNet>,
    metrics: Metrics,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Orders connections by age, and idle times by their beginning.
    clock: u64,
    count: usize,
    header_bytes: usize,
    holders: HashMap<Holder, BTreeMap<u64, Entry>>,
    reported: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Address(IpAddr),
    Exempt(IpAddr),
}

#[derive(Debug)]
struct Entry {
    activity: Activity,
    closing: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
enum Activity {
    Idle { since: u64, header_bytes: usize },
    Busy,
}

impl Entry {
    fn idle_since(&self) -> Option<u64> {
        match self.activity {
            Activity::Idle { since, .. } => Some(since),
            Activity::Busy => None,
        }
    }

    fn header_bytes(&self) -> usize {
        match self.activity {
            Activity::Idle { header_bytes, .. } => header_bytes,
            Activity::Busy => 0,
        }
    }
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn entry(&mut self, holder: Holder, id: u64) -> Option<&mut Entry> {
        self.holders.get_mut(&holder)?.get_mut(&id)
    }

    fn held_by(&self, holder: Holder) -> usize {
        self.holders.get(&holder).map_or(0, BTreeMap::len)
    }

    fn remove(&mut self, holder: Holder, id: u64) -> Option<Entry> {
        let held = self.holders.get_mut(&holder)?;
        let entry = held.remove(&id)?;
        if held.is_empty() {
            self.holders.remove(&holder);
        }
        self.count -= 1;
        self.header_bytes -= entry.header_bytes();
        Some(entry)
    }

    /// The connection of a holder that has been idle for the longest.
    fn oldest_idle(&self, holder: Holder) -> Option<u64> {
        let idle = self.holders.get(&holder)?.iter();
        let idle = idle.filter_map(|(id, entry)| Some((entry.idle_since()?, *id)));
        idle.min().map(|(_, id)| id)
    }

    /// The oldest idle connection of the holder with the most connections that has an idle one.
    fn most_dispensable(&self) -> Option<(Holder, u64)> {
        let mut holders: Vec<_> = self.holders.iter().map(|(holder, held)| (*holder, held.len())).collect();
        holders.sort_unstable_by_key(|(holder, held)| {
            (matches!(holder, Holder::Exempt(_)), std::cmp::Reverse(*held))
        });
        holders.into_iter().find_map(|(holder, _)| Some((holder, self.oldest_idle(holder)?)))
    }

    /// The connection with the longest unfinished header, of the holder with the most bytes of them.
    fn longest_header(&self) -> Option<(Holder, u64)> {
        let bytes = |held: &BTreeMap<u64, Entry>| held.values().map(Entry::header_bytes).sum::<usize>();
        let (holder, held) = self.holders.iter().max_by_key(|(_, held)| bytes(held))?;
        let (id, _) = held.iter().max_by_key(|(_, entry)| entry.header_bytes())?;
        Some((*holder, *id))
    }
}

impl Connections {
    /// No connection is open yet.
    #[must_use]
    pub fn new(limits: ConnectionLimits, trusted_proxies: Vec<IpNet>, metrics: Metrics) -> Self {
        Self(Arc::new(Shared { limits, exempt: trusted_proxies, metrics, table: Mutex::default() }))
    }

    /// Takes in a new connection, for which an idle one may be closed; `None` if there is no room.
    #[must_use]
    pub fn open(&self, peer: IpAddr) -> Option<Arc<Connection>> {
        let peer = peer.to_canonical();
        let exempt = self.0.exempt.iter().any(|net| net.contains(&peer));
        let holder = if exempt { Holder::Exempt(peer) } else { Holder::Address(network(peer)) };
        let mut table = self.0.table();
        if !exempt && table.held_by(holder) >= self.0.limits.per_address {
            let oldest = table.oldest_idle(holder).map(|id| (holder, id));
            self.0.make_room(&mut table, oldest, Reason::PerAddress)?;
        }
        if table.count >= self.0.limits.total {
            let dispensable = table.most_dispensable();
            self.0.make_room(&mut table, dispensable, Reason::Total)?;
        }
        let id = table.tick();
        let closing = CancellationToken::new();
        let activity = Activity::Idle { since: id, header_bytes: 0 };
        table.holders.entry(holder).or_default().insert(id, Entry { activity, closing: closing.clone() });
        table.count += 1;
        self.0.metrics.connections(table.count);
        let (busy, requests) = (AtomicBool::new(false), AtomicU32::new(0));
        Some(Arc::new(Connection { shared: self.0.clone(), holder, id, closing, busy, requests }))
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes a connection. `None`, and nothing is closed, if there is none to close.
    fn make_room(&self, table: &mut Table, victim: Option<(Holder, u64)>, reason: Reason) -> Option<()> {
        self.metrics.connection_closed(reason.as_str());
        if table.reported.is_none_or(|reported| reported.elapsed() >= REPORT_PERIOD) {
            table.reported = Some(Instant::now());
            let (open, limit) = (table.count, reason.as_str());
            tracing::warn!(open, limit, "connections are closed because a limit is reached");
        }
        let (holder, id) = victim?;
        let entry = table.remove(holder, id)?;
        entry.closing.cancel();
        Some(())
    }
}

/// One open connection, until it is dropped.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    holder: Holder,
    id: u64,
    closing: CancellationToken,
    busy: AtomicBool,
    /// So many requests have begun.
    requests: AtomicU32,
}

impl Connection {
    /// Counts bytes that have arrived: of an unfinished header, if no request is under way.
    fn received(&self, bytes: usize) {
        if self.busy.load(Ordering::Acquire) {
            return;
        }
        let mut table = self.shared.table();
        let Some(entry) = table.entry(self.holder, self.id) else { return };
        let Activity::Idle { header_bytes, .. } = &mut entry.activity else { return };
        *header_bytes += bytes;
        table.header_bytes += bytes;
        if table.header_bytes > self.shared.limits.header_bytes {
            let longest = table.longest_header();
            let _ = self.shared.make_room(&mut table, longest, Reason::HeaderBytes);
        }
    }

    fn becomes(&self, busy: bool) {
        self.busy.store(busy, Ordering::Release);
        let mut table = self.shared.table();
        let since = table.tick();
        let Some(entry) = table.entry(self.holder, self.id) else { return };
        let held = entry.header_bytes();
        entry.activity = if busy { Activity::Busy } else { Activity::Idle { since, header_bytes: 0 } };
        table.header_bytes -= held;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut table = self.shared.table();
        table.remove(self.holder, self.id);
        self.shared.metrics.connections(table.count);
    }
}

/// What counts as one address: of IPv6 the /64, which one machine usually has as a whole.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(total: usize, per_address: usize, header_bytes: usize) -> Connections {
        let limits = ConnectionLimits { total, per_address, header_bytes };
        Connections::new(limits, vec!["10.0.0.0/8".parse().unwrap()], Metrics::new())
    }

    fn open(connections: &Connections, address: &str) -> Option<Arc<Connection>> {
        connections.open(address.parse().unwrap())
    }

    fn closed(connections: &[Arc<Connection>]) -> Vec<usize> {
        let closed = connections.iter().enumerate().filter(|(_, one)| one.closing.is_cancelled());
        closed.map(|(index, _)| index).collect()
    }

    #[test]
    fn an_address_at_its_limit_gives_up_its_own_oldest_idle_connection() {
        let all = connections(100, 3, 1000);
        let other = open(&all, "192.0.2.9").unwrap();
        let mut held: Vec<_> = (0..3).map(|_| open(&all, "192.0.2.1").unwrap()).collect();
        let busy = UnderWay::begin(held[0].clone());
        held.push(open(&all, "192.0.2.1").unwrap());
        assert_eq!((closed(&held), other.closing.is_cancelled()), (vec![1], false));
        let busy_too = [2, 3].map(|index| UnderWay::begin(held[index].clone()));
        assert!(open(&all, "192.0.2.1").is_none());
        // What was busy last is the youngest.
        drop(busy);
        drop(busy_too);
        held.push(open(&all, "192.0.2.1").unwrap());
        assert_eq!(closed(&held), [0, 1]);
    }

    #[test]
    fn a_newcomer_displaces_the_address_with_the_most_connections() {
        let all = connections(10, 100, 1000);
        let few: Vec<_> = (0..2).map(|_| open(&all, "192.0.2.1").unwrap()).collect();
        let proxy: Vec<_> = (0..3).map(|_| open(&all, "10.0.0.1").unwrap()).collect();
        let many: Vec<_> = (0..50).map(|_| open(&all, "192.0.2.2").unwrap()).collect();
        let probe = open(&all, "192.0.2.3").unwrap();
        assert_eq!(closed(&many), (0..46).collect::<Vec<_>>());
        assert!(closed(&few).is_empty() && closed(&proxy).is_empty() && !probe.closing.is_cancelled());
        assert_eq!(all.0.table().count, 10);
        drop((few, proxy, many, probe));
        let table = all.0.table();
        assert_eq!((table.count, table.holders.len()), (0, 0));
    }

    #[test]
    fn trusted_proxies_have_no_limit_of_their_own_and_give_up_connections_last() {
        let all = connections(5, 2, 1000);
        let proxy: Vec<_> = (0..4).map(|_| open(&all, "10.0.0.1").unwrap()).collect();
        let one = open(&all, "192.0.2.1").unwrap();
        let two = open(&all, "192.0.2.2").unwrap();
        assert!(one.closing.is_cancelled() && closed(&proxy).is_empty());
        let _busy = UnderWay::begin(two.clone());
        open(&all, "192.0.2.3").unwrap();
        assert_eq!((closed(&proxy), two.closing.is_cancelled()), (vec![0], false));
    }

    #[test]
    fn the_longest_unfinished_header_is_given_up() {
        let all = connections(100, 100, 1000);
        let held: Vec<_> = (0..4).map(|_| open(&all, "192.0.2.1").unwrap()).collect();
        let honest = open(&all, "192.0.2.2").unwrap();
        honest.received(390);
        for (connection, bytes) in held.iter().zip([150, 250, 150, 60]) {
            connection.received(bytes);
        }
        assert_eq!(closed(&held), Vec::<usize>::new());
        held[0].received(1);
        assert_eq!((closed(&held), honest.closing.is_cancelled()), (vec![1], false));
        let request = UnderWay::begin(honest.clone());
        assert_eq!(all.0.table().header_bytes, 361);
        // A body is no header.
        honest.received(5000);
        drop(request);
        assert_eq!(all.0.table().header_bytes, 361);
        drop(held);
        assert_eq!(all.0.table().header_bytes, 0);
    }

    #[test]
    fn an_ipv6_address_counts_as_its_network() {
        let all = connections(100, 1, 1000);
        let first = open(&all, "2001:db8::1").unwrap();
        open(&all, "2001:db8::ffff").unwrap();
        open(&all, "2001:db8:0:1::1").unwrap();
        assert!(first.closing.is_cancelled());
        let mapped = open(&all, "::ffff:192.0.2.1").unwrap();
        open(&all, "192.0.2.1").unwrap();
        assert!(mapped.closing.is_cancelled());
    }
}
