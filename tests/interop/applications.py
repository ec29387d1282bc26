"""Cases about applications: in three languages, over every transport, when streams break and processes die."""

import json
import pathlib
import re
import signal
import statistics
import tempfile
import time
import types
import urllib.request

from cases import LARGEST
from harness import Application, Geth, Lines, Proxy, Sidecar, expect

LANGUAGES = ["python", "go", "node"]


def languages(case):
    """Python, Go and Node.js echo small and large messages both ways, the large ones in parts: default gRPC limits."""
    sidecar = Sidecar(case)
    table = {
        "16 MiB - 1 of text": {"count": 1, "size": LARGEST, "content": "text", "seed": 31},
        "one random message of 16,776,442 bytes": {"count": 1, "size": 16_776_442, "content": "random", "seed": 32},
        "20,000 small messages": {"count": 20_000, "size": 100, "content": "random", "seed": 33},
        "empty messages": {"count": 100, "size": 0, "content": "text", "seed": 34},
    }
    for language in LANGUAGES:
        for number, (name, series) in enumerate(table.items()):
            application = Application(case, sidecar, f"{language}-{number}", language, **series)
            application.event("attached")
            geth = Geth(case, f"geth-{language}-{number}", static=sidecar.enode)
            started = time.monotonic()
            sent = application.answered()
            got = geth.only_peer()["requests"]
            expect(sent == got, f"{language}, {name}: the application sent {sent}, geth received {got}")
            middle = time.monotonic()
            sent = geth.send(series)
            geth.command("disconnect", reason=8)
            got = application.event("peer-closed")["requests"]
            expect(sent == got, f"{language}, {name}: geth sent {sent}, the application received {got}")
            print(f"        {language}, {name}: {middle - started:.1f} s, {time.monotonic() - middle:.1f} s")
            geth.kill()
            application.kill()


def transports(case):
    """Each language over TCP with TLS and a token, and over the Unix socket; wrong credentials end the application."""
    folder = tempfile.TemporaryDirectory(prefix="devp2pd-")
    case.cleanups.append(folder.cleanup)
    folder = pathlib.Path(folder.name)
    done = case.run(case.tools.python, case.root / "tests/interop/certificate.py", folder)
    expect(done.returncode == 0, f"no certificate: {done.stderr}")
    access = folder / "access"
    access.write_text("".join(f"{language} protocol token:{language}-0123456789abcdef\n" for language in LANGUAGES))
    access.chmod(0o600)
    flags = ("--nodiscover", "--grpc-socket", folder / "grpc.sock", "--grpc-access", access,
             "--grpc-tls-cert", folder / "cert.pem", "--grpc-tls-key", folder / "key.pem")
    sidecar = Sidecar(case, flags=flags, unix=folder / "grpc.sock")
    series = {"count": 100, "size": 1000, "content": "random", "seed": 41}
    for language in LANGUAGES:
        tls = {"token": f"{language}-0123456789abcdef", "ca": folder / "cert.pem"}
        for name, address, credentials in (("tls", sidecar.grpc.replace("127.0.0.1", "localhost"), tls),
                                           ("unix", f"unix:{folder / 'grpc.sock'}", {})):
            target = types.SimpleNamespace(grpc=address)
            application = Application(case, target, f"{language}-{name}", language, **series, **credentials)
            application.event("attached")
            geth = Geth(case, f"geth-{language}-{name}", static=sidecar.enode)
            application.answered()
            owner = sidecar.call("ProtocolService/ListRegistrations")["registrations"][0]
            expect(owner["state"] == "REGISTRATION_STATE_ATTACHED", f"{language} over {name}: {owner}")
            geth.kill()
            application.event("peer-closed")
            application.kill()
            sidecar.call("ProtocolService/DeleteRegistration", clientId="echo")
        target = types.SimpleNamespace(grpc=sidecar.grpc.replace("127.0.0.1", "localhost"))
        wrong = Application(case, target, f"{language}-wrong", language, **{**tls, "token": "wrong-0123456789abcdef"})
        said = wrong.event("stream-broken")
        expect(said["code"].lower() == "unauthenticated", f"{language} with a wrong token: {said}")
        expect(wrong.exit_status(10) == 1, f"{language} goes on with a wrong token")
    said = sidecar.log.read_text()
    expect("0123456789abcdef" not in said and "PRIVATE KEY" not in said, "a secret stands in the log")


def broken_streams(case):
    """A stream that breaks under load: each language resumes, repeats lost sends, and counts lost messages."""
    sidecar = Sidecar(case)
    for language in LANGUAGES:
        proxy = Proxy(case, sidecar.grpc)
        # As many as are on their way for some seconds.
        count = 60_000
        application = Application(case, proxy, language, language, count=count, size=200, content="random", seed=51)
        application.FAULTS = application.FAULTS - {"gap"}  # more messages may come while it is away than are kept
        application.event("attached")
        geth = Geth(case, f"geth-{language}", static=sidecar.enode)
        application.event("peer-opened")
        cuts, far = 0, False
        event = {"event": "peer-opened"}
        while event["event"] != "answered":
            if not far:  # far enough: let it end
                proxy.cut()
                cuts += 1
            # It may have been faster than the cut: whatever it says is looked at, until there is progress after it.
            back = far
            while event["event"] != "answered":
                event = application.event("stream-broken", "stream-ended", "attached", "peer-resumed", "answer", "answered")
                expect(event.get("resumed", True), f"{language}: {event}")
                back = back or event["event"] == "peer-resumed"
                if back and event["event"] == "answer":
                    far = event["number"] > 0.8 * count
                    break
            expect(cuts < 100, f"{language}: {cuts} cuts, and no end")
        answered = event
        got = geth.only_peer()["requests"]
        # Each request reached the peer once, in order, through all of it.
        expect(answered["sent"] == got, f"{language}: sent {answered['sent']}, the peer has {got}")
        sent, answers, lost = answered["sent"]["messages"], answered["answers"]["messages"], answered["lost"]
        expect(sent == count == answers + lost, f"{language}: {sent} sent, {answers} answers, {lost} known to be lost")
        print(f"        {language}: {cuts} cuts, {lost} of {count} answers lost on the way, all of them known")
        geth.kill()
        application.kill()


def program(case, name, *command):
    """One of tests/interop/programs, which prints JSON events."""
    folder = case.root / "tests/interop/programs"
    words = [case.tools.python, folder / command[0], *command[1:]] if str(command[0]).endswith(".py") else command
    return Lines(case, name, words)


def killed_applications(case):
    """kill -9 of an application under load, twenty times: no peer notices, every loss is known, and its neighbour has none."""
    sidecar, geth = Sidecar(case), Geth(case, protocols="echo,other")
    flood = {"count": 1_000_000, "size": 100, "content": "random", "seed": 61, "rate": 2000}
    other = program(case, "other", "ledger.py", sidecar.grpc, "other", "other")
    other.event("attached")
    victim = program(case, "victim-0", "ledger.py", sidecar.grpc, "echo", "victim")
    victim.event("attached")
    sidecar.call("PeerService/AddStaticPeer", node=geth.enode)
    flood_both(geth, flood)
    numbers, missed, uncredited = [], 0, 0
    for life in range(1, 21):
        victim.event("got")
        time.sleep(0.15)
        victim.kill(signal.SIGKILL)
        ledger = Ledger(victim)
        numbers += ledger.numbers
        missed += ledger.missed
        victim = program(case, f"victim-{life}", "ledger.py", sidecar.grpc, "echo", "victim")
        opened = victim.event("opened")
        # The number of messages that were handed over and not written down is exact, and within the uncredited ones.
        lost = opened["position"] - len(numbers) - missed
        expect(opened["existing"] and 0 <= lost <= opened["uncredited"],
               f"life {life}: {opened}, with {len(numbers)} written down and {missed} missed")
        missed, uncredited = missed + lost, uncredited + opened["uncredited"]
    time.sleep(0.5)
    report = geth.command("report")["peers"]
    geth.command("stall")
    geth.kill()
    victim.event("closed")
    other.event("closed")
    last, neighbour = Ledger(victim), Ledger(other)
    numbers, missed = numbers + last.numbers, missed + last.missed
    expect(all(a < b for a, b in zip(numbers, numbers[1:])), "a message came twice, or out of order")
    holes = numbers[-1] + 1 - len(numbers)
    expect(holes == missed, f"{holes} messages did not come before the last one, and {missed} were told of")
    expect(neighbour.numbers == list(range(len(neighbour.numbers))) and neighbour.missed == 0,
           "the other application on the same peer lost messages")
    expect(len(report) == 2 and all(peer["flooded"] > 5000 for peer in report), f"the peer saw a disconnect: {report}")
    print(f"        {len(numbers)} messages delivered in 21 lives, {missed} known to be lost, bound {uncredited}; the "
          f"neighbour has all of {len(neighbour.numbers)}")


def flood_both(geth, flood):
    """Floods both protocols of a geth once they run, whichever comes first."""
    for protocol in [geth.event("peer-add")["protocol"] for _ in range(2)]:
        geth.command("flood", protocol=protocol, **flood)


class Ledger:
    """The records of a ledger.py that has ended."""

    def __init__(self, process):
        process.reader.join(20)
        events = [json.loads(line) for line in process.log.read_text().splitlines() if line.endswith("}")]
        self.numbers = [event["number"] for event in events if event["event"] == "got"]
        self.missed = sum(event["messages"] for event in events if event["event"] == "missed")


def ethereum(case):
    """An eth application against go-ethereum's eth handshake, killed five times: Status again, and no reconnecting."""
    sidecar, geth = Sidecar(case), Geth(case, eth=True)
    application = program(case, "ethereum-0", "eth_application.py", sidecar.grpc, geth.ready["eth_status"])
    application.event("attached")
    sidecar.call("PeerService/AddStaticPeer", node=geth.enode)
    geth.event("eth-up")
    opened = application.event("opened")
    expect(opened["greeted"] and not opened["existing"], f"the first time: {opened}")
    status = application.event("status")["payload"]
    expect(status == geth.ready["eth_status"], f"geth's Status is {status}")
    for life in range(1, 6):
        headers = application.event("headers")["payload"]
        expect(headers == "c201c0", f"request 1 is answered with {headers}, not with no headers")
        geth.event("eth-asked")
        application.kill(signal.SIGKILL)
        application = program(case, f"ethereum-{life}", "eth_application.py", sidecar.grpc, geth.ready["eth_status"])
        opened = application.event("opened")
        expect(opened["existing"], f"life {life}: another connection: {opened}")
        expect(application.event("status")["payload"] == status, f"life {life}: another Status")
    application.event("headers")
    drops = [line for line in geth.log.read_text().splitlines() if '"peer-drop"' in line or '"eth-refused"' in line]
    expect(not drops, f"geth had to connect again: {drops}")


def paused_applications(case):
    """An application that stops reading, in three languages and three sizes: it loses, others on the same peer do not."""
    sidecar = Sidecar(case)
    readers = {
        "python": [case.tools.python, case.root / "tests/interop/programs/reader.py"],
        "go": [case.tools.go_reader],
        "node": ["node", case.root / "tests/interop/programs/reader.mjs"],
    }
    for language, command in readers.items():
        for size in (1, 20, 100):
            name = f"{language}-{size}"
            other = Reader(case, f"{name}-other", case.tools.go_reader, sidecar.grpc, "other")
            paused = Reader(case, name, *command, sidecar.grpc, "echo")
            geth = Geth(case, f"geth-{name}", static=sidecar.enode, protocols="echo,other")
            flood = {"count": 10_000_000, "size": size, "content": "random", "seed": 71, "rate": PACE}
            flood_both(geth, flood)
            before, rates, peak = memory(sidecar), {"pause": [], "resume": []}, 0
            for _ in range(10):
                for word in ("pause", "resume"):
                    paused.say(word)
                    first, started = other.report(), time.monotonic()
                    time.sleep(0.3)
                    last, seconds = other.report(), time.monotonic() - started
                    rates[word].append((last["messages"] - first["messages"]) / seconds)
                    peak = max(peak, memory(sidecar))
            # Until its queue overflows.
            paused.say("pause")
            deadline, before_lost = time.monotonic() + 40, lost(sidecar)
            while lost(sidecar) == before_lost:
                expect(time.monotonic() < deadline, f"{name}: nothing was lost in 40 s")
                time.sleep(0.2)
            peak = max(peak, memory(sidecar))
            paused.say("resume")
            time.sleep(1)
            flooded = {peer["protocol"]: peer["flooded"] for peer in geth.command("report")["peers"]}
            expect(set(flooded) == {"echo", "other"}, f"{name}: the connection ended: {flooded}")
            geth.kill()
            sidecar_is_without_peers(sidecar)
            for reader, protocol in ((paused, "echo"), (other, "other")):
                report = settled(reader)
                expect(report["streams"] == 1, f"{name}: the stream of {protocol} broke: {report}")
                total = report["messages"] + report["gaps"]
                # Messages in geth's buffers when it was killed may or may not have come.
                expect(flooded[protocol] <= total <= flooded[protocol] + 2 * PACE,
                       f"{name}: {report}, and geth sent at least {flooded[protocol]} of {protocol}")
                expect(protocol == "echo" or report["gaps"] == 0, f"{name}: the other application lost {report}")
            ratio = statistics.median(rates["pause"]) / statistics.median(rates["resume"])
            print(f"        {name}: the other application at {ratio:.0%} while it pauses "
                  f"({statistics.median(rates['pause']):.0f}/s), {settled(paused)['gaps']} told to be lost, "
                  f"{(peak - before) >> 20} MiB more")
            expect(ratio >= 0.8, f"{name}: the other application had {ratio:.0%} of its rate: {rates}")
            expect(peak - before < 64 << 20, f"{name}: {(peak - before) >> 20} MiB more memory")
            expect(settled(paused)["gaps"] > 0, f"{name}: lost messages were not reported")
            for reader, client in ((paused, f"{language}-echo"), (other, "go-other")):
                reader.kill()
                sidecar.call("ProtocolService/DeleteRegistration", clientId=client)


# Messages a second of each protocol: the rate that the slowest reader here takes on two cores with everything else.
PACE = 12_000


class Reader(Lines):
    """A reader of tests/interop/programs, attached."""

    def __init__(self, case, name, *command):
        super().__init__(case, name, command)
        self.event("attached")

    def say(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.event(word)

    def report(self):
        return self.say("report")


def settled(reader):
    """The counts of a reader once they do not move any more."""
    last = reader.report()
    while True:
        time.sleep(0.3)
        report = reader.report()
        if report == last:
            return report
        last = report


def sidecar_is_without_peers(sidecar):
    deadline = time.monotonic() + 30
    while sidecar.call("PeerService/ListPeers").get("peers"):
        expect(time.monotonic() < deadline, "the peer is still there")
        time.sleep(0.1)


def lost(sidecar):
    """Messages that applications lost so far, as the metrics say."""
    page = urllib.request.urlopen(sidecar.http + "/metrics", timeout=10).read().decode()
    return sum(int(line.split()[-1]) for line in page.splitlines() if line.startswith("devp2pd_lost_messages_total"))


def memory(sidecar):
    """Resident memory in bytes."""
    status = pathlib.Path(f"/proc/{sidecar.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024


def stalled_peer(case):
    """One of 50 peers stops reading: the rate of the other 49 stays the same."""
    sidecar = Sidecar(case, flags=("--nodiscover", "--maxpeers", "100", "--inbound-throttle", "0s"))
    sender = program(case, "sender", "sender.py", sidecar.grpc, 1000)
    sender.event("attached")
    others = Geth(case, "geth-49", static=sidecar.enode, servers=49, verbosity=1)
    stalled = Geth(case, "geth-stalled", static=sidecar.enode, verbosity=1)
    for _ in range(50):
        sender.event("opened", seconds=120)

    def taken(geth):
        return sum(peer["took"] for peer in geth.command("report")["peers"])

    rates = {"stall": [], "unstall": []}
    for _ in range(10):
        for word in ("stall", "unstall"):
            stalled.command(word)
            first, started = taken(others), time.monotonic()
            time.sleep(0.5)
            rates[word].append((taken(others) - first) / (time.monotonic() - started))
    peers = sidecar.call("PeerService/ListPeers")["peers"]
    expect(len(peers) == 50, f"{len(peers)} peers are left of 50")
    expect(taken(stalled) > 0, "the stalled peer never read")
    ratio = statistics.median(rates["stall"]) / statistics.median(rates["unstall"])
    print(f"        49 peers at {ratio:.0%} while one does not read ({statistics.median(rates['stall']):.0f} messages/s)")
    expect(ratio >= 0.8, f"the others had {ratio:.0%} of their rate: {rates}")


def tour_buf(case):
    """The calls of the README's tour with `buf curl`, over reflection."""
    sidecar, geth = Sidecar(case), Geth(case)
    Application(case, sidecar).event("attached")

    def call(method, **request):
        done = case.run(case.tools.buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data",
                        json.dumps(request), f"http://{sidecar.grpc}/devp2p.v1.{method}")
        expect(done.returncode == 0, f"{method}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)

    expect(call("NodeService/GetNodeInfo")["nodeId"] == sidecar.node_id, "another node answers")
    call("PeerService/AddStaticPeer", node=geth.enode, wait="10s")
    call("MessageService/SendMessage", node=geth.node_id, protocol="echo", code=2, payload="wA==")
    expect([peer["nodeId"] for peer in call("PeerService/ListPeers")["peers"]] == [geth.node_id], "the peers")
    wrong = case.run(case.tools.buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data",
                     json.dumps({"node": "nonsense"}), f"http://{sidecar.grpc}/devp2p.v1.PeerService/GetPeer")
    expect(wrong.returncode != 0 and "google.rpc.ErrorInfo" in wrong.stderr, f"a wrong field: {wrong.stderr}")


CASES = [languages, transports, broken_streams, killed_applications, ethereum, paused_applications, stalled_peer, tour_buf]
