//! How many log lines strangers may cause.
//!
//! Each session costs two lines. A host that connects and leaves 400 times a second would write 70 GB a day. So lines
//! about sessions that others began take from a ration of their network, and from one for all networks. The next line
//! that is written says how many were left out. The metrics count all sessions.
//!
//! Left out: the lines of sessions that we dialed, and of applications. Neither is a stranger's choice.

use std::{net::IpAddr, num::NonZeroUsize, time::Instant};

use crate::node::{
    AddressClass,
    ration::{Rate, SubnetRations},
};

/// The lines of one network (IPv4 /24, IPv6 /64).
const NETWORK: Rate = Rate { burst: 20, per_second: 1 };

/// The lines of all networks: at 400 bytes each, 170 MB a day.
const ALL: Rate = Rate { burst: 200, per_second: 5 };

/// How many networks are remembered, about 0.1 MB.
const NETWORKS: NonZeroUsize = NonZeroUsize::new(1_024).unwrap();

/// The ration, and the lines that it refused.
#[derive(Debug)]
pub(super) struct LogRation {
    rations: SubnetRations,
    left_out: u64,
}

impl Default for LogRation {
    fn default() -> Self {
        Self { rations: SubnetRations::new(NETWORK, ALL, NETWORKS), left_out: 0 }
    }
}

impl LogRation {
    /// Whether a line about the stranger at `ip` is written. If so, returns how many were left out since the last one.
    pub(super) fn take(&mut self, now: Instant, ip: IpAddr) -> Option<u64> {
        let exempt = AddressClass::of(ip) == AddressClass::Loopback;
        if exempt || self.rations.take(now, ip, false) {
            return Some(std::mem::take(&mut self.left_out));
        }
        self.left_out = self.left_out.saturating_add(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_network_that_comes_and_goes_writes_few_lines_and_silences_no_other() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let start = Instant::now();
        let mut ration = LogRation::default();
        let lines = |ration: &mut LogRation, ip: [u8; 4], count: u32| {
            // 400 sessions a second.
            let taken = |n| ration.take(start + n * Duration::from_micros(1250), IpAddr::from(ip));
            (0..count).filter_map(taken).count()
        };
        assert_eq!(lines(&mut ration, [1, 2, 3, 4], 8_000), 20 + 9, "in ten seconds");
        assert_eq!(lines(&mut ration, [9, 9, 9, 9], 2), 2, "another network");
        let later = start + Duration::from_secs(11);
        assert_eq!(ration.take(later, IpAddr::from([9, 9, 9, 9])), Some(0), "the last line told them");
        assert_eq!(lines(&mut ration, [127, 0, 0, 1], 1_000), 1_000, "loopback is no stranger");
    }

    #[test]
    fn lines_that_are_left_out_are_counted() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let start = Instant::now();
        let (mut ration, ip) = (LogRation::default(), IpAddr::from([1, 2, 3, 4]));
        let taken: Vec<_> = (0..25).filter_map(|_| ration.take(start, ip)).collect();
        assert_eq!(taken, [0; 20]);
        assert_eq!(ration.take(start + Duration::from_secs(1), ip), Some(5));
    }

    #[test]
    fn all_networks_together_have_a_ration() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let start = Instant::now();
        let mut ration = LogRation::default();
        let taken = (0..1_000_u32).filter_map(|n| ration.take(start, IpAddr::from((n << 8).to_be_bytes())));
        assert_eq!(taken.count(), 200);
    }
}
