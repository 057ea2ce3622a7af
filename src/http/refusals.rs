//! Which refused requests get a line in the log: the first few of each address. A flood of them, which needs no
//! token, would rotate everything else out of the log files that the kubelet keeps, the audit's lines among it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::connections::network;

/// After each, what was not logged is summed up, and counting begins anew.
const PERIOD: Duration = Duration::from_secs(60);
/// Logged lines of one address, or /64 of IPv6.
const PER_ADDRESS: usize = 10;
/// Logged lines of all addresses.
const TOTAL: usize = 300;
/// Addresses that are told apart.
const ADDRESSES: usize = 1000;
/// Addresses that are summed up one by one; the others together.
const REPORTED: usize = 20;

/// Counts refused requests by address. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    logged: usize,
    addresses: HashMap<IpAddr, usize>,
    /// Not logged, by address.
    skipped: HashMap<IpAddr, usize>,
    /// Not logged, of addresses that are not told apart.
    others: usize,
}

impl Counts {
    fn log(&mut self, address: IpAddr) -> bool {
        let known = self.addresses.len();
        let of_address = match self.addresses.get_mut(&address) {
            Some(count) => count,
            None if known < ADDRESSES => self.addresses.entry(address).or_default(),
            None => {
                self.others += 1;
                return false;
            }
        };
        if *of_address < PER_ADDRESS && self.logged < TOTAL {
            *of_address += 1;
            self.logged += 1;
            return true;
        }
        *self.skipped.entry(address).or_default() += 1;
        false
    }

    /// What was not logged: by address, most first, and of all other addresses.
    fn summary(self) -> (Vec<(IpAddr, usize)>, usize) {
        let mut skipped: Vec<_> = self.skipped.into_iter().collect();
        skipped.sort_unstable_by_key(|(address, count)| (std::cmp::Reverse(*count), *address));
        let rest = skipped.split_off(skipped.len().min(REPORTED));
        (skipped, self.others + rest.iter().map(|(_, count)| count).sum::<usize>())
    }
}

impl Refusals {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one; says whether it is logged.
    pub fn log(&self, address: IpAddr) -> bool {
        self.counts().log(network(address))
    }

    /// Sums up, again and again, what was not logged.
    pub async fn report(self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let (addresses, others) = std::mem::take(&mut *self.counts()).summary();
            for (address, requests) in addresses {
                tracing::warn!(%address, requests, "more refused requests that are not in the log");
            }
            if others > 0 {
                tracing::warn!(requests = others, "more refused requests of other addresses");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn a_flood_of_one_address_is_summed_up_and_others_are_still_logged() {
        let mut counts = Counts::default();
        let logged = (0..1000).filter(|_| counts.log(address(1))).count();
        assert_eq!(logged, PER_ADDRESS);
        assert!(counts.log(address(2)));
        assert_eq!(counts.summary(), (vec![(address(1), 1000 - PER_ADDRESS)], 0));
    }

    #[test]
    fn a_flood_of_many_addresses_is_bounded_and_all_of_it_is_counted() {
        let mut counts = Counts::default();
        let logged = (0..5000).filter(|number| counts.log(address(*number))).count();
        assert_eq!((logged, counts.addresses.len()), (TOTAL, ADDRESSES));
        let (addresses, others) = counts.summary();
        assert_eq!((addresses.len(), addresses.len() + others), (REPORTED, 5000 - TOTAL));
    }
}
