"""Cases about applications: in three languages, over every transport, when streams break and processes die."""

import json
import pathlib
import tempfile
import time
import types

from cases import LARGEST
from harness import Application, Failure, Geth, Proxy, Sidecar, expect

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


def broken_streams(case):
    """A stream that breaks under load: each language resumes, sends what did not arrive, and knows what it lost."""
    sidecar = Sidecar(case)
    for language in LANGUAGES:
        proxy = Proxy(case, sidecar.grpc)
        # As many as are on their way for some seconds.
        count = 60_000
        application = Application(case, proxy, language, language, count=count, size=200, content="random", seed=51)
        application.FAULTS = application.FAULTS - {"gap"}  # what comes while it is away may be more than is kept
        application.event("attached")
        geth = Geth(case, f"geth-{language}", static=sidecar.enode)
        application.event("peer-opened")
        cuts = 0
        answered = None
        while answered is None:
            proxy.cut()
            cuts += 1
            application.event("stream-broken", "stream-ended")
            resumed = application.event("attached")
            expect(resumed["resumed"] is True, f"{language}: {resumed}")
            application.event("peer-resumed")
            event = application.event("answer", "answered")
            if event["event"] == "answer" and event["number"] > 0.8 * count:  # enough: let it end
                event = application.event("answered")
            answered = event if event["event"] == "answered" else None
            expect(cuts < 100, f"{language}: {cuts} cuts, and no end")
        got = geth.only_peer()["requests"]
        # Each request reached the peer once, in order, through all of it.
        expect(answered["sent"] == got, f"{language}: sent {answered['sent']}, the peer has {got}")
        sent, answers, lost = answered["sent"]["messages"], answered["answers"]["messages"], answered["lost"]
        expect(sent == count == answers + lost, f"{language}: {sent} sent, {answers} answers, {lost} known to be lost")
        print(f"        {language}: {cuts} cuts, {lost} of {count} answers lost on the way, all of them known")
        geth.kill()
        application.kill()


CASES = [languages, transports, broken_streams]
