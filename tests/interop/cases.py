"""The cases, in the order they run: what each starts, does and demands."""

import json
import pathlib
import re
import signal
import socket
import sys
import tempfile
import time
import types

from harness import Application, Geth, Program, Sidecar, expect
from tour import run_tour

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"))
from payloads import Ledger, payload  # noqa: E402

MIB = 1 << 20
LARGEST = 16 * MIB - 1  # the most that a frame can say of an uncompressed message
# Common sizes, and the largest random message whose compressed frame still fits 24 bits.
SERIES = {
    "16 MiB - 1 of text": {"count": 1, "size": LARGEST, "content": "text", "seed": 11},
    "16 MB of random bytes": {"count": 16, "size": 1_000_000, "content": "random", "seed": 12},
    "one random message of 16,776,442 bytes": {"count": 1, "size": 16_776_442, "content": "random", "seed": 13},
    "100,000 small messages": {"count": 100_000, "size": 100, "content": "random", "seed": 14},
}


def harness_agrees(case):
    """Two geth peers echo to each other, both ends make the same payloads, and a falsified answer is noticed."""
    first = Geth(case, "geth-1")
    second = Geth(case, "geth-2", static=first.enode, corrupt=101)
    first.event("peer-add")
    series = {"count": 100, "size": 1000, "content": "random", "seed": 7}
    sent = first.send(series)
    expect(second.only_peer()["requests"] == sent, "the ledgers of the two ends differ")
    for content in ("random", "text"):
        ours, theirs = Ledger(), second.send({"count": 3, "size": 777, "content": content, "seed": 5})
        for number in range(3):
            ours.add(payload(number, 777, content, 5))
        expect(theirs == ours.entry(), f"{content}: Go makes {theirs}, Python makes {ours.entry()}")
    first.command("send", **series)
    event = first.event("difference", "answered")
    expect(event["event"] == "difference" and event["number"] == 0, f"an answer was falsified, yet: {event}")


def rlpx_ping(case):
    """go-ethereum's `devp2p rlpx ping` succeeds, with and without an application."""
    sidecar = Sidecar(case)
    for who in ("no application", "an application"):
        if who == "an application":
            Application(case, sidecar).event("attached")
        done = case.run(case.tools.devp2p, "rlpx", "ping", sidecar.enode)
        expect(done.returncode == 0, f"with {who}: {done.stderr}")
        expect("devp2pd/" in done.stdout, f"with {who}, the Hello does not name devp2pd: {done.stdout}")
        expect(("echo" in done.stdout) == (who == "an application"), f"with {who}, the Hello says {done.stdout}")


def tour_current(case):
    """The README's walk through with a current grpcurl (reflection v1), in the README's order."""
    run_tour(case, case.tools.grpcurl, static_first=False)


def tour_old(case):
    """The same with grpcurl 1.8.6 (reflection v1alpha), the static peer before the protocol."""
    run_tour(case, case.tools.old_grpcurl, static_first=True)


def refusals(case):
    """Each refusal over gRPC has its code, its reason, and says what would be right."""
    sidecar, geth = Sidecar(case), Geth(case)
    stranger = "enode://" + "ca634cae0d49acb401d8a4c6b6fe8c55b70d115bf400769cc1400f3258cd3138" \
        "7574077f301b421bc84df7266c44e9e6d569fc56be00812904767bf5ccd1fc7f@127.0.0.1:9"
    Application(case, sidecar).event("attached")
    sidecar.call("PeerService/AddStaticPeer", node=geth.enode)
    geth.event("peer-add")
    late = [{"name": "late", "version": 1, "messageCount": 1}]
    sidecar.call("ProtocolService/RegisterProtocols", spec={"clientId": "late", "protocols": late})
    send = {"protocol": "echo", "code": 0, "payload": "wA=="}
    echo = [{"name": "echo", "version": 2, "messageCount": 8}]
    table = [
        ("PeerService/AddStaticPeer", {"node": "enode://nonsense"}, "InvalidArgument", "INVALID_FIELD"),
        ("PeerService/GetPeer", {"node": stranger}, "NotFound", "PEER_NOT_CONNECTED"),
        ("MessageService/SendMessage", {**send, "node": stranger}, "NotFound", "PEER_NOT_CONNECTED"),
        ("MessageService/SendMessage", {**send, "node": geth.node_id, "protocol": "eth"}, "NotFound",
         "PROTOCOL_NOT_REGISTERED"),
        ("MessageService/SendMessage", {**send, "node": geth.node_id, "protocol": "late"}, "FailedPrecondition",
         "PROTOCOL_NOT_SHARED"),
        ("MessageService/SendMessage", {**send, "node": geth.node_id, "code": 8}, "OutOfRange",
         "MESSAGE_CODE_OUT_OF_RANGE"),
        ("ProtocolService/RegisterProtocols", {"spec": {"clientId": "another", "protocols": echo}}, "AlreadyExists",
         "PROTOCOL_ALREADY_REGISTERED"),
        ("ProtocolService/RenewRegistration", {"resumeToken": "00" * 16}, "NotFound", "REGISTRATION_NOT_FOUND"),
    ]
    for method, request, code, reason in table:
        done = sidecar.attempt(method, **request)
        said = done.stderr + done.stdout
        expect(done.returncode != 0, f"{method} {request} succeeded: {said}")
        expect(f"Code: {code}" in said and reason in said, f"{method} {request}: not {code} / {reason} but {said}")
    peers = sidecar.call("PeerService/ListPeers")["peers"]
    expect([peer["nodeId"] for peer in peers] == [geth.node_id], f"after the refusals the peers are {peers}")


def networks(case):
    """Bootnodes, DNS trees and fork schedules of the presets are go-ethereum's."""
    vectors = json.loads((case.root / "tests/vectors/networks.json").read_text())
    del vectors["source"]
    theirs = json.loads(case.run(case.tools.geth_peer, "-networks").stdout)
    # The unit test config::networks::tests::presets_are_those_of_go_ethereum compares the presets with this file.
    expect(vectors == theirs, f"tests/vectors/networks.json is behind go-ethereum, which says {json.dumps(theirs)}")


def out_of_files(case):
    """With no file descriptor left the sidecar says so, keeps its peer, and accepts again when there are some."""
    sidecar = Sidecar(case, files=64)
    Application(case, sidecar).event("attached")
    geth = Geth(case, static=sidecar.enode)
    geth.event("peer-add")
    host, port = sidecar.enode.rsplit("@", 1)[1].split("?")[0].split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(100)]
    sidecar.wait(lambda line: "cannot accept connections" in line, 30, "a word about it")
    series = {"count": 100, "size": 1000, "content": "random", "seed": 21}
    geth.send(series)
    for connection in silent:
        connection.close()
    late = Geth(case, "geth-late", static=sidecar.enode)
    late.event("peer-add", seconds=90)
    late.send(series)


def unix_socket(case):
    """Over the Unix socket: both grpcurls, the Python application, and the end of the process by a call."""
    folder = tempfile.TemporaryDirectory(prefix="devp2pd-")
    case.cleanups.append(folder.cleanup)
    path = pathlib.Path(folder.name) / "grpc.sock"
    sidecar, geth = Sidecar(case, flags=("--nodiscover", "--grpc-socket", path)), Geth(case)

    def call(tool, method):
        target = ["-unix", path] if tool == case.tools.old_grpcurl else [f"unix://{path}"]
        done = case.run(tool, "-plaintext", "-authority", "localhost", *target, f"devp2p.v1.{method}")
        expect(done.returncode == 0, f"{method}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)

    for tool in (case.tools.grpcurl, case.tools.old_grpcurl):
        info = call(tool, "NodeService/GetNodeInfo")
        expect(info["nodeId"] == sidecar.node_id, f"another node answers: {info}")
    application = Application(case, types.SimpleNamespace(grpc=f"unix:{path}"), count=100, size=1000)
    application.event("attached")
    sidecar.call("PeerService/AddStaticPeer", node=geth.enode)
    application.answered()
    done = sidecar.attempt("NodeService/Drain")
    expect("PermissionDenied" in done.stderr + done.stdout, f"over TCP: {done.stderr or done.stdout}")
    call(case.tools.grpcurl, "NodeService/Drain")
    status = sidecar.exit_status(30)
    expect(status == 0, f"the sidecar ended with status {status}")


def both_dial(case):
    """The sidecar and geth dial each other at the same moment, again and again: one connection stands each time."""
    sidecar = Sidecar(case)
    Application(case, sidecar).event("attached")
    for number in range(5):
        geth = Geth(case, f"geth-{number}")
        geth.process.stdin.write(json.dumps({"cmd": "dial", "node": sidecar.enode}) + "\n")
        geth.process.stdin.flush()
        sidecar.call("PeerService/AddStaticPeer", node=geth.enode)
        # Whichever way it went, both sides end with one and the same connection, and it stays.
        same, deadline = 0, time.monotonic() + 90
        seen = None
        while same < 5:
            expect(time.monotonic() < deadline, f"round {number}: no connection that stays; last seen {seen}")
            theirs = len(geth.command("report")["peers"])
            ours = [peer["sessionId"] for peer in sidecar.call("PeerService/ListPeers").get("peers", [])
                    if peer["nodeId"] == geth.node_id]
            now = (theirs, ours)
            same = same + 1 if now == seen and theirs == 1 and len(ours) == 1 else 0
            seen = now
            time.sleep(0.3)
        sidecar.call("PeerService/RemoveStaticPeer", node=geth.enode)
        geth.kill()


def echo(case, dial):
    """All series both ways between the Python application and geth; `dial` names the dialer."""
    sidecar = Sidecar(case)
    for number, (name, series) in enumerate(SERIES.items()):
        application = Application(case, sidecar, f"application-{number}", **series)
        application.event("attached")
        geth = Geth(case, f"geth-{number}", **({"static": sidecar.enode} if dial == "geth" else {}))
        if dial == "sidecar":
            sidecar.call("PeerService/AddStaticPeer", node=geth.enode)
        opened = application.event("peer-opened")
        expect(opened["inbound"] == (dial == "geth"), f"{dial} should have dialed: {opened}")
        started = time.monotonic()
        sent = application.answered()
        expect(sent["messages"] == series["count"] and sent["bytes"] == series["count"] * series["size"],
               f"{name}: the application sent {sent}")
        got = geth.only_peer()["requests"]
        expect(sent == got, f"{name}: the application sent {sent}, geth received {got}")
        middle = time.monotonic()
        sent = geth.send(series)
        geth.command("disconnect", reason=8)
        got = application.event("peer-closed")["requests"]
        expect(sent == got, f"{name}: geth sent {sent}, the application received {got}")
        print(f"        {name}: {middle - started:.1f} s there and back, {time.monotonic() - middle:.1f} s the other way")
        if dial == "sidecar":
            sidecar.call("PeerService/RemoveStaticPeer", node=geth.node_id)
        geth.kill()
        application.kill()


def echo_sidecar_dials(case):
    """Application and geth echo everything to each other; the sidecar dials."""
    echo(case, "sidecar")


def echo_geth_dials(case):
    """Application and geth echo everything to each other; geth dials."""
    echo(case, "geth")


def echo_at_once(case):
    """Both ends send at the same time, and to two peers at once: 20,000 small messages each way."""
    sidecar = Sidecar(case)
    series = {"count": 20_000, "size": 100, "content": "random", "seed": 21}
    application = Application(case, sidecar, **series)
    application.event("attached")
    peers = [Geth(case, f"geth-{number}", static=sidecar.enode) for number in (1, 2)]
    for geth in peers:
        geth.event("peer-add")
        geth.command("send", **series)
    sent = [application.answered() for _ in peers]
    for geth in peers:
        event = geth.event("answered", seconds=180)
        expect(event["sent"] == event["answers"], f"{geth.name} sent {event['sent']}, got back {event['answers']}")
        expect(geth.only_peer()["requests"] == sent[0], f"{geth.name} received other requests than were sent")


def parts(case):
    """A message larger than the client's gRPC limit arrives in parts; one within it arrives whole."""
    sidecar = Sidecar(case)
    for number, frame in enumerate((64 * 1024, 4 * MIB, 17 * MIB)):
        application = Application(case, sidecar, f"application-{number}", count=2, size=LARGEST, max_frame=frame)
        application.event("attached")
        geth = Geth(case, f"geth-{number}", static=sidecar.enode)
        application.answered()
        geth.kill()
        application.event("peer-closed")  # else the next application would be told of it
        application.kill()


def peers_come_and_go(case):
    """The application goes on when geth is killed and comes back, when it leaves politely, and when others come."""
    sidecar = Sidecar(case)
    application = Application(case, sidecar, count=10, size=100)
    application.event("attached")
    key = "11" * 32
    geth = Geth(case, "geth-1", key=key)
    sidecar.call("PeerService/AddStaticPeer", node=geth.enode)
    application.event("answered", node_id=geth.node_id)
    for life in range(2, 4):
        if life % 2 == 0:
            geth.kill()
        else:
            geth.process.terminate()  # it says goodbye to its peers
            expect(geth.exit_status(20) == 0, "geth did not stop cleanly")
        application.event("peer-closed", node_id=geth.node_id)
        other = Geth(case, f"other-{life}", static=sidecar.enode)
        application.event("answered", node_id=other.node_id)
        geth = Geth(case, f"geth-{life}", listen=f"127.0.0.1:{geth.port}", key=key)
        # A static peer is redialed after a back-off, for as long as it is static.
        application.event("answered", node_id=geth.node_id, seconds=90)
    entries = sidecar.call("PeerService/ListStaticPeers")["staticPeers"]
    expect([entry["state"] for entry in entries] == ["STATIC_PEER_STATE_CONNECTED"], f"the static list says {entries}")


def sidecar_restarts(case):
    """The application comes back by itself when the sidecar restarts, on the same ports and with the same key."""
    sidecar = Sidecar(case)
    application = Application(case, sidecar, count=10, size=100)
    first = application.event("attached")["instance_id"]
    sidecar.kill(signal.SIGTERM)
    application.event("stream-broken", "stream-ended")
    again = Sidecar(case, "sidecar-again", grpc=sidecar.grpc)
    expect(again.node_id == sidecar.node_id, "the restarted sidecar has another key")
    second = application.event("attached")["instance_id"]
    expect(first != second, "the instance id did not change with the instance")
    geth = Geth(case, static=again.enode)
    application.event("answered", node_id=geth.node_id)


def stops_in_time(case):
    """SIGTERM with an attached application, an open ReceiveMessages and a peer: exit 0, and the peer hears why."""
    sidecar, geth = Sidecar(case), Geth(case)
    application = Application(case, sidecar)
    application.event("attached")
    stream = Program(case, "stream", [
        case.tools.grpcurl, "-plaintext", "-d", json.dumps({"spec": {
            "clientId": "shell", "protocols": [{"name": "other", "version": 1, "messageCount": 1}]}}),
        sidecar.grpc, "devp2p.v1.MessageService/ReceiveMessages"])
    stream.wait(lambda line: "attached" in line, what="attached")
    sidecar.call("PeerService/AddStaticPeer", node=geth.enode)
    application.event("peer-opened")
    data_held = case.run(case.tools.devp2pd, *Sidecar.QUIET, "--nodiscover", "--port", "0", "--grpc-addr",
                         "127.0.0.1:0", "--http-addr", "none", "--data-dir", sidecar.data, seconds=20)
    expect(data_held.returncode != 0 and str(sidecar.process.pid) in data_held.stdout + data_held.stderr,
           f"a second instance on the same data directory: {data_held.stdout}{data_held.stderr}")
    started = time.monotonic()
    sidecar.process.send_signal(signal.SIGTERM)
    status = sidecar.exit_status(30)
    seconds = time.monotonic() - started
    expect(status == 0, f"the sidecar left with status {status}")
    expect(seconds < 25, f"the sidecar took {seconds:.1f} s, longer than its grace period")
    dropped = geth.event("peer-drop")
    expect("quitting" in dropped["error"], f"the peer heard {dropped['error']!r}, not that we quit")
    application.event("stream-broken", "stream-ended")


def probes(case):
    """/livez and /readyz answer, and the health service says SERVING."""
    sidecar = Sidecar(case)
    log = sidecar.log.read_text()
    found = re.search(r"(?i)(?:http|probes)\S*\W.*?(127\.0\.0\.1:\d+)", log)
    expect(found, f"no HTTP address among the printed ones:\n{log}")
    for path in ("livez", "readyz"):
        done = case.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{found.group(1)}/{path}")
        expect(done.stdout == "200", f"/{path} answers {done.stdout} {done.stderr}")
    done = case.run(case.tools.grpcurl, "-plaintext", sidecar.grpc, "grpc.health.v1.Health/Check")
    expect("SERVING" in done.stdout and "NOT_SERVING" not in done.stdout, f"health says {done.stdout}{done.stderr}")


def sidecars_find_each_other(case):
    """Two sidecars with applications, given one bootnode, find each other and connect without being told."""
    boot = Sidecar(case, "bootnode", data="bootnode-data", flags=())
    ends = []
    for name in ("first", "second"):
        sidecar = Sidecar(case, name, data=f"{name}-data", flags=("--bootnodes", boot.enode, "--bootnodes-v5", boot.enr))
        ends.append((sidecar, Application(case, sidecar, f"application-{name}", count=10, size=100)))
    for (_, application), (other, _) in zip(ends, reversed(ends)):
        application.event("answered", node_id=other.node_id, seconds=90)


def found(case, version, dialer):
    """A sidecar and geth connect by discovery alone, over one version of it or both; `dialer` is the side that may dial."""
    v4, v5 = (str(version in ("v4", "both")).lower(), str(version in ("v5", "both")).lower())
    flags = ["--discv4", v4, "--discv5", v5]
    if dialer == "geth":
        sidecar = Sidecar(case, flags=[*flags, "--nodial"])
        application = Application(case, sidecar, count=10, size=100)
        application.event("attached")
        geth = Geth(case, discv4=v4, discv5=v5, bootnodes=sidecar.enr if version == "v5" else sidecar.enode)
    else:
        geth = Geth(case, discv4=v4, discv5=v5)
        if v4 == "true":
            flags += ["--bootnodes", geth.enode]
        if v5 == "true":
            flags += ["--bootnodes-v5", geth.enr]
        application = Application(case, Sidecar(case, flags=flags), count=10, size=100)
    opened = application.event("peer-opened", node_id=geth.node_id, seconds=90)
    expect(opened["inbound"] == (dialer == "geth"), f"{dialer} should have dialed: {opened}")
    application.event("answered", node_id=geth.node_id)


def found_v4(case):
    """The sidecar finds a geth node through discv4 alone, and dials it."""
    found(case, "v4", "sidecar")


def found_v5(case):
    """The sidecar finds a geth node through discv5 alone, and dials it."""
    found(case, "v5", "sidecar")


def found_both(case):
    """The sidecar finds a geth node through both versions on one port, and dials it."""
    found(case, "both", "sidecar")


def found_v4_by_geth(case):
    """geth finds the sidecar through discv4 alone, and dials it."""
    found(case, "v4", "geth")


def found_v5_by_geth(case):
    """geth finds the sidecar through discv5 alone, and dials it."""
    found(case, "v5", "geth")


def talk(case):
    """The Python example answers a TALKREQ protocol, and asks it through another sidecar."""
    example = case.root / "examples/python/talk.py"
    server, asker = (Sidecar(case, name, data=name, flags=[]) for name in ("server", "asker"))
    serving = Program(case, "serving", [case.tools.python, example, "--address", server.grpc, "serve"])
    serving.wait(lambda line: line.startswith("serving upper"), what="the answer to serve")
    done = case.run(case.tools.python, example, "--address", asker.grpc, "ask", server.enr, "hello")
    expect(done.stdout.strip() == "HELLO", f"the answer is {done.stdout}{done.stderr}")
    serving.wait(lambda line: asker.node_id in line and "b'hello'" in line, what="the question")
    done = case.run(case.tools.python, example, "--protocol", "other", "--address", asker.grpc, "ask", server.enr, "x")
    expect(done.stdout.startswith("an empty answer"), f"nobody serves that, yet: {done.stdout}{done.stderr}")


def dns_tree(case):
    """A tree that go-ethereum signed is read to its end, and a loopback address in it is not dialed."""
    geth = Geth(case)
    tree = geth.command("tree", domain="nodes.test.local")
    zone = case.folder / "zone.json"
    zone.write_text(json.dumps(tree["txt"]))
    server = Program(case, "dns", [case.tools.python, case.root / "tests/interop/dns_server.py", zone])
    address = server.wait(lambda line: line if line.startswith("127.0.0.1:") else None, what="its address")
    flags = ["--discv4", "false", "--discv5", "false", "--dns-tree", tree["url"], "--dns-server", address]
    sidecar = Sidecar(case, flags=flags)
    Application(case, sidecar).event("attached")  # without a registration nothing is dialed anyway
    names = {name.lower() for name in tree["txt"]}
    while names:
        names.discard(server.wait(lambda line: line.startswith("TXT ") and line.split()[1].rstrip(":"), 60,
                                  f"the question for {names}"))
    # A public list must not make us dial ports of our own host.
    time.sleep(3)
    expect(geth.command("report")["peers"] == [], "a loopback address from a DNS tree was dialed")


def suite_count(done, expected):
    """Checks the counts that a conformance suite prints at its end."""
    text = done.stdout + done.stderr
    counts = re.search(r"(\d+)/(\d+) tests passed", text)
    expect(counts, f"the suite printed no counts:\n{text[-2000:]}")
    expect(counts.groups() == (str(expected), str(expected)) and done.returncode == 0,
           f"{counts.group(0)}, not {expected} of {expected}:\n{text[-6000:]}")


def discv4_suite(case):
    """go-ethereum's discv4 conformance suite: 15 of 15."""
    sidecar = Sidecar(case, flags=["--discv4", "true", "--discv5", "false"])
    suite_count(case.run(case.tools.devp2p, "discv4", "test", "--remote", sidecar.enode, "--listen1", "127.0.0.1",
                         "--listen2", "127.0.0.2", seconds=300), 15)


def discv5_suite(case):
    """go-ethereum's discv5 conformance suite: 10 of 10."""
    sidecar = Sidecar(case, flags=["--discv4", "false", "--discv5", "true"])
    suite_count(case.run(case.tools.devp2p, "discv5", "test", "--listen1", "127.0.0.1", "--listen2", "127.0.0.2",
                         sidecar.enr, seconds=300), 10)


def both_suites_at_once(case):
    """Both suites, one after the other, against one sidecar with both protocols on one port."""
    sidecar = Sidecar(case, flags=[])
    suite_count(case.run(case.tools.devp2p, "discv4", "test", "--remote", sidecar.enode, "--listen1", "127.0.0.1",
                         "--listen2", "127.0.0.2", seconds=300), 15)
    suite_count(case.run(case.tools.devp2p, "discv5", "test", "--listen1", "127.0.0.1", "--listen2", "127.0.0.2",
                         sidecar.enr, seconds=300), 10)


# In the order they run.
CASES = [
    harness_agrees,
    rlpx_ping,
    tour_current,
    tour_old,
    refusals,
    networks,
    out_of_files,
    unix_socket,
    both_dial,
    echo_sidecar_dials,
    echo_geth_dials,
    echo_at_once,
    parts,
    peers_come_and_go,
    sidecar_restarts,
    stops_in_time,
    probes,
    discv4_suite,
    discv5_suite,
    both_suites_at_once,
    sidecars_find_each_other,
    found_v4,
    found_v5,
    found_both,
    found_v4_by_geth,
    found_v5_by_geth,
    talk,
    dns_tree,
]
