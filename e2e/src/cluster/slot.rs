//! Addresses of its own for each run, so that clusters run side by side on one machine.
//!
//! A slot is a number that this machine's network knows once: `127.96.N.1` is where the slot's
//! cluster listens (the whole of 127/8 is loopback) and what its node is called, `127.96.N.0/24`
//! is its range of Service addresses, and `10.213.N.0/24` its pods'. The API server listens at the
//! first Service address, on port 443 where that may be had: a pod in the host's network then
//! reaches it as any pod does on any cluster, though nothing here forwards Service addresses.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use anyhow::Context as _;

/// A claimed slot. The claim ends with this value, and with the process, however it ends.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    /// A name in the network namespace: what it guards are that namespace's addresses.
    _claim: UnixListener,
}

impl Slot {
    /// Claims the first slot that nobody has.
    ///
    /// # Errors
    /// If all are taken.
    pub fn claim() -> anyhow::Result<Self> {
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        (0..=u8::MAX)
            .filter(|number| !is_routed(&routes, *number))
            .find_map(Self::try_claim)
            .context("256 clusters run on this machine already")
    }

    fn try_claim(number: u8) -> Option<Self> {
        let name = UnixAddr::from_abstract_name(format!("trylatest-e2e-{number}")).ok()?;
        let claim = UnixListener::bind_addr(&name).ok()?;
        Some(Self {
            number,
            _claim: claim,
        })
    }

    /// Where everything of the slot listens.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, 96, self.number, 1)
    }

    /// The range of Service addresses.
    pub fn services(&self) -> String {
        format!("127.96.{}.0/24", self.number)
    }

    /// The Service address at which pods look for names, as is the custom the tenth.
    pub fn dns(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, 96, self.number, 10)
    }

    /// The range of pod addresses.
    pub fn pods(&self) -> String {
        format!("10.213.{}.0/24", self.number)
    }

    /// The API server's port: 443, or a free one where that is taken or not allowed.
    ///
    /// # Errors
    /// If no port is free.
    pub fn apiserver_port(&self) -> anyhow::Result<u16> {
        match TcpListener::bind(SocketAddr::from((self.address(), 443))) {
            Ok(_) => Ok(443),
            Err(_) => Ok(self.free_ports::<1>()?[0]),
        }
    }

    /// Different free ports of the slot's address. Nobody else binds there, so they stay free.
    ///
    /// # Errors
    /// If no port is free.
    pub fn free_ports<const N: usize>(&self) -> anyhow::Result<[u16; N]> {
        // All are held until the last is known, or one might be handed out twice.
        let mut held = Vec::with_capacity(N);
        let mut ports = [0; N];
        for port in &mut ports {
            let listener = TcpListener::bind((self.address(), 0)).context("find a free port")?;
            *port = listener.local_addr()?.port();
            held.push(listener);
        }
        Ok(ports)
    }
}

/// Whether something within the slot's pod range is routed: pods of a run that still goes.
fn is_routed(routes: &str, number: u8) -> bool {
    let wanted = [10, 213, number];
    routes.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace();
        let target = fields
            .nth(1)
            .and_then(|hex| u32::from_str_radix(hex, 16).ok());
        // The kernel prints addresses as little-endian numbers: the first byte is the lowest.
        target.is_some_and(|target| target.to_le_bytes()[..3] == wanted)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slot_is_claimed_once_and_free_again_after_its_claim() {
        let first = Slot::claim().unwrap();
        let second = Slot::claim().unwrap();
        assert_ne!(first.number, second.number);
        let number = first.number;
        assert!(Slot::try_claim(number).is_none());
        drop(first);
        soon(|| Slot::try_claim(number));
    }

    #[test]
    fn ports_differ_and_can_be_bound() {
        let slot = Slot::claim().unwrap();
        let ports = slot.free_ports::<8>().unwrap();
        let bind = |port| soon(|| TcpListener::bind((slot.address(), port)).ok());
        drop(ports.map(bind));
    }

    /// What another test holds for a moment: it claims slots too, and what it spawns has our sockets
    /// until it is another program.
    fn soon<T>(look: impl FnMut() -> Option<T>) -> T {
        let looks = std::iter::repeat_with(look).take(5000);
        let pause = |_: &Option<T>| std::thread::sleep(Duration::from_millis(1));
        looks.inspect(pause).flatten().next().unwrap()
    }

    #[test]
    fn a_route_to_a_pod_takes_the_slot_and_the_default_route_takes_none() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n\
                      veth1\t0207D50A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\n";
        assert!(is_routed(routes, 7));
        assert!(!is_routed(routes, 0));
        assert!(!is_routed(routes, 8));
    }
}
