"""Cases behind a real gateway: Debian's miniupnpd, in network namespaces of our own.

    wan (a stranger) ── 5.6.7.0/24 ── gw (miniupnpd, nftables) ── 192.168.77.0/24 ── lan (the sidecar)

Nothing leaves the machine: no namespace has a way out. The outside network has addresses that count as public, because
the sidecar accepts no report that it is reached at a private one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time

from harness import Program, expect
from tools import run as install

OUTSIDE, STRANGER, INSIDE = "5.6.7.8", "5.6.7.9", "192.168.77.2"

RULES = """
table inet filter {
  chain miniupnpd { }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname "lan0" accept
    jump miniupnpd
  }
  chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
  chain postrouting {
    type nat hook postrouting priority 100;
    jump postrouting_miniupnpd
    oifname "wan0" masquerade
  }
}
"""

CONFIG = """
ext_ifname=wan0
listening_ip=lan0
enable_upnp={upnp}
enable_natpmp={pmp}
secure_mode=yes
system_uptime=yes
uuid=00000000-0000-0000-0000-000000000001
lease_file={folder}/leases
allow 1024-65535 192.168.77.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


PACKAGES = {"ip": "iproute2", "nft": "nftables", "miniupnpd": "miniupnpd"}


def need_tools(*wanted):
    """Installs what only such cases need; a machine where that cannot be done fails them."""
    missing = [PACKAGES[tool] for tool in wanted if shutil.which(tool) is None]
    if missing:
        expect(shutil.which("apt-get") and os.geteuid() == 0, f"not installed, and cannot be: {', '.join(missing)}")
        quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL}
        install("apt-get", "-qq", "update", **quiet)
        install("apt-get", "-qq", "install", "--yes", "--no-install-recommends", *missing, **quiet)


class Gateway:
    """Three namespaces, which are gone when the case is over."""

    def __init__(self, case, method):
        need_tools(*PACKAGES)
        self.case, tag = case, f"devp2pd{os.getpid()}"
        self.lan, self.gw, self.wan = (f"{tag}{name}" for name in ("lan", "gw", "wan"))
        case.cleanups.append(self.remove)
        for name in (self.lan, self.gw, self.wan):
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        for device, host, near, far in (
            ("lan0", self.lan, "192.168.77.1/24", f"{INSIDE}/24"),
            ("wan0", self.wan, f"{OUTSIDE}/24", f"{STRANGER}/24"),
        ):
            self.ip("-n", self.gw, "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", host)
            self.ip("-n", self.gw, "addr", "add", near, "dev", device)
            self.ip("-n", self.gw, "link", "set", device, "up")
            self.ip("-n", host, "addr", "add", far, "dev", "eth0")
            self.ip("-n", host, "link", "set", "eth0", "up")
        self.ip("-n", self.lan, "route", "add", "default", "via", "192.168.77.1")
        self.inside(self.gw, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        rules, config = case.folder / "rules.nft", case.folder / "miniupnpd.conf"
        rules.write_text(RULES)
        yes = {True: "yes", False: "no"}
        config.write_text(CONFIG.format(folder=case.folder, upnp=yes[method == "upnp"], pmp=yes[method == "pmp"]))
        self.inside(self.gw, "nft", "-f", rules)
        self.daemon = Program(case, "miniupnpd", ["ip", "netns", "exec", self.gw, "miniupnpd", "-d", "-f", config,
                                                  "-P", case.folder / "miniupnpd.pid"])
        self.daemon.wait(lambda line: "listening" in line.lower() or "port" in line.lower(), 20, "a listening gateway")

    def ip(self, *words):
        done = self.case.run("ip", *words)
        expect(done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}")

    def inside(self, where, *words, fails=False):
        """Runs a command in a namespace."""
        done = self.case.run("ip", "netns", "exec", where, *words)
        expect(fails or done.returncode == 0, f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")
        return done

    def remove(self):
        for name in (self.lan, self.gw, self.wan):
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)

    def mappings(self):
        """The open ports at the gateway: (protocol, outside port, inside address, inside port)."""
        rules = self.inside(self.gw, "nft", "list", "chain", "inet", "filter", "prerouting_miniupnpd").stdout
        # Some versions of nft show the protocol as the byte of the header that miniupnpd matches.
        names = {"tcp": "tcp", "0x6": "tcp", "udp": "udp", "0x11": "udp"}
        found = re.findall(r"(tcp|udp|0x6|0x11) (?:th )?dport (\d+).*?dnat (?:ip )?to ([\d.]+):(\d+)", rules)
        return {(names[protocol], int(outside), to, int(inside)) for protocol, outside, to, inside in found}


def behind(case, method):
    """The sidecar at a gateway with the protocol `method`."""
    gateway = Gateway(case, method)
    sidecar = Program(case, "sidecar", [
        "ip", "netns", "exec", gateway.lan, case.tools.devp2pd, "--network", "none", "--nat", method, "--port", "0",
        "--listen-addr", INSIDE, "--grpc-addr", "127.0.0.1:0", "--http-addr", "none", "--inbound-throttle", "0s",
        "--data-dir", case.folder / "data"])
    grpc = sidecar.wait(lambda line: (found := re.search(r"(?i)grpc\W.*?(127\.0\.0\.1:\d+)", line))
                        and found.group(1), 30, "the gRPC address")

    def info():
        done = gateway.inside(gateway.lan, case.tools.grpcurl, "-plaintext", grpc, "devp2p.v1.NodeService/GetNodeInfo")
        return json.loads(done.stdout)

    # Address and mappings come in any order, each in its own line of the log; the call says when all of them are in.
    deadline = time.monotonic() + 60
    while f"@{OUTSIDE}:" not in (enode := info()["enode"]) or len(gateway.mappings()) < 2:
        expect(time.monotonic() < deadline, f"the enode is {enode}, and at the gateway there is {gateway.mappings()}")
        time.sleep(0.2)
    port = int(re.search(r":(\d+)(\?|$)", enode).group(1))
    open_now = gateway.mappings()
    expect({protocol for protocol, outside, to, _ in open_now if to == INSIDE and outside == port} == {"tcp", "udp"},
           f"at the gateway there is {open_now}, and the enode says {port}")
    # A stranger outside reaches the sidecar by what its record says: RLPx, and discovery.
    done = gateway.inside(gateway.wan, case.tools.devp2p, "rlpx", "ping", enode)
    expect("devp2pd/" in done.stdout, f"a stranger got {done.stdout}{done.stderr}")
    gateway.inside(gateway.wan, case.tools.devp2p, "discv4", "ping", "--addr", f"{STRANGER}:0", enode)
    expect(not info()["peers"].get("reachedFromOutside"), "an RLPx ping has no Hello, so no node has proved a key")
    # One that says Hello has, though it shares no protocol.
    gateway.inside(gateway.wan, "timeout", "10", case.tools.geth_peer, "-listen", f"{STRANGER}:0", "-static", enode,
                   fails=True)
    expect(info()["peers"].get("reachedFromOutside"), "the connection of a stranger was not noticed")
    sidecar.process.send_signal(signal.SIGTERM)
    expect(sidecar.exit_status(30) == 0, "the sidecar did not stop cleanly")
    expect(not gateway.mappings(), f"still open at the gateway: {gateway.mappings()}")


def nat_upnp(case):
    """Behind miniupnpd: ports are opened by UPnP, a stranger comes in by the record, the ports are closed at exit."""
    behind(case, "upnp")


def nat_pmp(case):
    """The same by NAT-PMP."""
    behind(case, "pmp")


CASES = [nat_upnp, nat_pmp]
