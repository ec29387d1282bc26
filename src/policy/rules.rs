//! The rules for dials and for accepted connections alike: net restriction, bans, allow-list, exemptions.

use std::net::IpAddr;

use super::{bans::Bans, refusal::Refusal, settings::Settings};
use crate::{
    Now,
    node::{AddressClass, NodeId, endpoint::canonical},
};

/// The current rules.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Who we are.
    pub local_id: NodeId,
    /// The operator's settings.
    pub settings: Settings,
    /// Who is banned.
    pub bans: Bans,
}

impl Rules {
    /// Rules without bans.
    #[must_use]
    pub fn new(local_id: NodeId, settings: Settings) -> Self {
        Self { local_id, settings, bans: Bans::default() }
    }

    /// Whether we may have to do with this node at all.
    pub fn check_node(&self, now: Now, id: &NodeId) -> Result<(), Refusal> {
        if *id == self.local_id {
            return Err(Refusal::OwnIdentity);
        }
        if self.bans.of_node(now.unix, id).is_some() {
            return Err(Refusal::BannedNode);
        }
        Ok(())
    }

    /// Whether we may have to do with this address at all.
    pub fn check_ip(&self, now: Now, ip: IpAddr) -> Result<(), Refusal> {
        let ip = canonical(ip);
        let restrict = &self.settings.net_restrict;
        if !restrict.is_empty() && !restrict.iter().any(|net| net.contains(&ip)) {
            return Err(Refusal::NetRestricted);
        }
        if self.bans.of_ip(now.unix, ip).is_some() {
            return Err(Refusal::BannedAddress);
        }
        Ok(())
    }

    /// Whether limits per address and network leave this address out: loopback always, private networks while our
    /// own announced address is private.
    #[must_use]
    pub fn exempt(&self, ip: IpAddr) -> bool {
        match AddressClass::of(ip) {
            AddressClass::Loopback => true,
            AddressClass::Private | AddressClass::LinkLocal => self.settings.announced.is_lan(),
            AddressClass::Global | AddressClass::Special => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{bans::BanTarget, dial::ListSource, test_now},
        *,
    };

    #[test]
    fn addresses_are_checked_in_the_form_they_are() {
        let now = test_now();
        let net_restrict = vec!["10.0.0.0/8".parse().unwrap(), "2001:4860::/32".parse().unwrap()];
        let mut rules = Rules::new(NodeId([1; 32]), Settings { net_restrict, ..Settings::default() });
        rules
            .bans
            .ban(
                now.unix,
                BanTarget::ip("10.0.0.9".parse().unwrap()),
                Duration::from_secs(9),
                "",
                ListSource::Call,
            )
            .unwrap();
        let table = [
            ("10.1.2.3", Ok(())),
            ("::ffff:10.1.2.3", Ok(())),
            ("11.1.2.3", Err(Refusal::NetRestricted)),
            ("2001:4860::1", Ok(())),
            ("2001:4861::1", Err(Refusal::NetRestricted)),
            ("10.0.0.9", Err(Refusal::BannedAddress)),
        ];
        for (ip, expected) in table {
            assert_eq!(rules.check_ip(now, ip.parse().unwrap()), expected, "{ip}");
        }
        assert_eq!(rules.check_node(now, &NodeId([1; 32])), Err(Refusal::OwnIdentity));
        assert_eq!(rules.check_node(now, &NodeId([2; 32])), Ok(()));
    }

    #[test]
    fn private_networks_are_exempt_only_from_within() {
        let mut rules = Rules::new(NodeId([1; 32]), Settings::default());
        // address, exempt when we announce a private address, exempt when we announce a global one
        let table = [
            ("127.0.0.1", true, true),
            ("::1", true, true),
            ("192.168.1.1", true, false),
            ("fd00::1", true, false),
            ("8.8.8.8", false, false),
        ];
        for (ip, at_home, outside) in table {
            let ip = ip.parse().unwrap();
            rules.settings.announced = AddressClass::Private;
            assert_eq!(rules.exempt(ip), at_home, "{ip}");
            rules.settings.announced = AddressClass::Global;
            assert_eq!(rules.exempt(ip), outside, "{ip}");
        }
    }
}
