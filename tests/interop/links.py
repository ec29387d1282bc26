"""Cases on links that are narrower than Ethernet, in network namespaces of our own.

    left ── veth, MTU 1,280 ── right

Nothing leaves the machine: no namespace has a way out.
"""

import base64
import json
import os
import re
import subprocess
import time

from gateways import need_tools
from harness import Program, expect

ADDRESSES = {"left": ("10.99.0.1", "fd99::1"), "right": ("10.99.0.2", "fd99::2")}
# The largest payload of a TALKREQ for a protocol of one letter: its packet has 1,280 bytes, headers of IP and UDP not
# counted.
PAYLOAD = 1176


class Link:
    """Two namespaces and the link between them, which are gone when the case is over."""

    def __init__(self, case, mtu):
        need_tools("ip")
        self.case = case
        self.names = {side: f"devp2pd{os.getpid()}{side}" for side in ADDRESSES}
        case.cleanups.append(self.remove)
        left, right = self.names.values()
        for name in (left, right):
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        self.ip("-n", left, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", right)
        for side, (four, six) in ADDRESSES.items():
            at = self.names[side]
            self.ip("-n", at, "link", "set", "eth0", "mtu", str(mtu), "up")
            self.ip("-n", at, "addr", "add", f"{four}/24", "dev", "eth0")
            self.ip("-n", at, "addr", "add", f"{six}/64", "dev", "eth0", "nodad")

    def ip(self, *words):
        done = self.case.run("ip", *words)
        expect(done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}")

    def remove(self):
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


class Node:
    """A sidecar in one of the namespaces, and its calls."""

    def __init__(self, case, link, side):
        self.case, self.at = case, ["ip", "netns", "exec", link.names[side]]
        sidecar = Program(case, side, [
            *self.at, case.tools.devp2pd, "--network", "none", "--nat", "none", "--port", "0", "--listen-addr", "any",
            "--grpc-addr", "127.0.0.1:0", "--http-addr", "none", "--data-dir", case.folder / side])
        self.grpc = sidecar.wait(lambda line: (found := re.search(r"(?i)grpc\W.*?(127\.0\.0\.1:\d+)", line))
                                 and found.group(1), 30, "the gRPC address")

    def call(self, method, **request):
        return self.case.run(*self.at, self.case.tools.grpcurl, "-plaintext", "-d", json.dumps(request), self.grpc,
                             f"devp2p.v1.{method}")


def small_mtu(case):
    """Discovery packets of 1,280 bytes cross a link with an MTU of 1,280, in fragments, over IPv4 and IPv6."""
    link = Link(case, 1280)
    left, right = (Node(case, link, side) for side in ADDRESSES)
    enode = json.loads(right.call("NodeService/GetNodeInfo").stdout)["enode"]
    key, port = re.match(r"enode://([0-9a-f]{128})@.*:(\d+)(\?|$)", enode).group(1, 2)
    four, six = ADDRESSES["right"]
    payload = base64.b64encode(bytes(PAYLOAD)).decode()
    for host in (four, f"[{six}]"):
        # Nobody serves the protocol, so the answer is empty; without fragments there is none. A busy machine may take
        # longer for one of them than the 700 ms of a request.
        deadline = time.monotonic() + 60
        while True:
            done = left.call("DiscoveryService/TalkRequest", node=f"enode://{key}@{host}:{port}", protocol="x",
                             payload=payload)
            if done.returncode == 0:
                break
            expect(time.monotonic() < deadline, f"over {host}: {done.stdout}{done.stderr}")


CASES = [small_mtu]
