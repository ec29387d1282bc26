"""Programs under test as objects: start, command, wait for an event, stop. Every port is chosen by the system."""

import collections
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time


class Failure(Exception):
    """A failed expectation of a case. Any other exception is a fault of the case itself."""


def expect(condition, message):
    if not condition:
        raise Failure(message)


class Program:
    """A process whose output is kept in a file and can be waited for, line by line."""

    def __init__(self, case, name, command, **options):
        self.name, self.seen = name, collections.deque()
        self.log = case.folder / f"{name}.log"
        self.changed = threading.Condition()
        options.setdefault("env", environment())
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True, errors="replace", bufsize=1, **options)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        case.programs.append(self)

    def _read(self):
        with self.log.open("a") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                with self.changed:
                    self.seen.append(line.rstrip("\n"))
                    self.changed.notify_all()
        with self.changed:
            self.seen.append(None)
            self.changed.notify_all()

    def wait(self, wanted, seconds=30, what=""):
        """Takes lines until `wanted(line)` is neither None nor False, and returns that."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while True:
                while self.seen:
                    line = self.seen.popleft()
                    if line is None:
                        raise Failure(f"{self.name} ended with status {self.process.wait()} before {what}")
                    if (found := wanted(line)) is not None and found is not False:
                        return found
                left = deadline - time.monotonic()
                expect(left > 0, f"{self.name}: {what} did not happen within {seconds} s")
                self.changed.wait(left)

    def kill(self, sig=signal.SIGKILL):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        self.process.wait()

    def exit_status(self, seconds):
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} still runs after {seconds} s") from None


class Lines(Program):
    """A program that prints JSON objects with an `event`, one a line. Other lines are its log."""

    # Lines that no log may have.
    FAULTS = {"difference", "unexpected", "gap", "send-failed", "error"}

    def event(self, *names, seconds=60, **fields):
        """The next event of these names (with these fields); a fault in between fails the case."""
        def wanted(line):
            if not line.startswith("{"):
                return None
            event = json.loads(line)
            name = event.get("event")
            # A peer may go while a message for it is on its way; that is no fault.
            gone = name == "send-failed" and event.get("reason") == "ERROR_REASON_PEER_NOT_CONNECTED"
            expect(name not in self.FAULTS or name in names or gone, f"{self.name} reports {line}")
            matches = name in names and all(event.get(key) == value for key, value in fields.items())
            return event if matches else None
        return self.wait(wanted, seconds, f"the event {' or '.join(names)} {fields or ''}")


class Geth(Lines):
    """tests/interop/geth-peer: go-ethereum's p2p.Server with echo/1."""

    def __init__(self, case, name="geth", listen="127.0.0.1:0", **flags):
        words = [f"-{key}={value}" for key, value in flags.items()]  # one word: Go's boolean flags want it so
        super().__init__(case, name, [case.tools.geth_peer, "-listen", listen, *words])
        ready = self.ready = self.event("ready")
        self.enode, self.enr, self.node_id = ready["enode"], ready["enr"], ready["node_id"]
        self.port = int(re.search(r":(\d+)(\?|$)", self.enode).group(1))

    def command(self, name, **fields):
        self.process.stdin.write(json.dumps({"cmd": name, **fields}) + "\n")
        self.process.stdin.flush()
        return self.event("ok", "error", cmd=name)

    def send(self, series):
        """Sends a series and waits until every answer has come back equal; returns the ledger of the sent messages."""
        answer = self.command("send", **series)
        expect(answer["event"] == "ok", f"geth: {answer}")
        event = self.event("answered", seconds=180)
        expect(event["sent"] == event["answers"], f"geth sent {event['sent']} and got back {event['answers']}")
        return event["sent"]

    def only_peer(self):
        peers = self.command("report")["peers"]
        expect(len(peers) == 1, f"geth has {len(peers)} peers, not one")
        return peers[0]


class Application(Lines):
    """The example application of a language; all have the same flags and events."""

    def __init__(self, case, sidecar, name="application", language="python", count=0, size=0, content="text", seed=1,
                 **flags):
        words = [word for key, value in flags.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        super().__init__(case, name, [
            *case.tools.examples[language], "--json", "--address", sidecar.grpc,
            "--count", count, "--size", size, "--content", content, "--seed", seed, *words])

    def answered(self, seconds=180):
        """Waits until every answer has come back equal; returns the ledger of the sent messages."""
        event = self.event("answered", seconds=seconds)
        expect(event["sent"] == event["answers"], f"sent {event['sent']}, got back {event['answers']}")
        return event["sent"]


class Proxy:
    """Passes TCP connections on to a program under test, and cuts them on demand."""

    def __init__(self, case, target):
        self.target, self.pairs, self.lock = target, [], threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.grpc = "127.0.0.1:%d" % self.listener.getsockname()[1]
        case.cleanups.append(self.listener.close)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            host, port = self.target.rsplit(":", 1)
            far = socket.create_connection((host, int(port)))
            with self.lock:
                self.pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass(source, sink):
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, sink):
                end.close()

    def cut(self):
        """Ends every connection at once, with whatever is on its way."""
        with self.lock:
            pairs, self.pairs = self.pairs, []
        for end in (end for pair in pairs for end in pair):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Sidecar(Program):
    """The release binary, alone in a data directory of the case, on ports that the system chooses."""

    QUIET = ["--network", "none", "--nat", "none"]

    def __init__(self, case, name="sidecar", grpc="127.0.0.1:0", flags=("--nodiscover",), data="data", files=None,
                 unix=None):
        self.unix = unix  # ask over this socket, where TCP wants credentials
        self.case, self.data = case, case.folder / data
        limit = [] if files is None else ["bash", "-c", f"ulimit -n {files}; exec \"$@\"", "bash"]
        super().__init__(case, name, [
            *limit, case.tools.devp2pd, *self.QUIET, "--listen-addr", "127.0.0.1", "--port", "0", "--grpc-addr", grpc,
            "--http-addr", "127.0.0.1:0", "--data-dir", self.data, *flags])
        self.grpc = self.wait(lambda line: (found := re.search(r"(?i)grpc\W.*?(127\.0\.0\.1:\d+)", line))
                              and found.group(1), 30, "the gRPC address")
        self.http = self.wait(lambda line: (found := re.search(r"http://127\.0\.0\.1:\d+", line)) and found.group(0), 30,
                              "the HTTP address")
        info = self.call("NodeService/GetNodeInfo")
        self.enode, self.enr, self.node_id = info["enode"], info["enr"], info["nodeId"]

    def call(self, method, seconds=30, **request):
        """A unary call with the current grpcurl; fails the case unless it succeeds."""
        done = self.attempt(method, seconds, **request)
        expect(done.returncode == 0, f"{method} {request}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)

    def attempt(self, method, seconds=30, **request):
        address = f"unix://{self.unix}" if self.unix else self.grpc
        command = [self.case.tools.grpcurl, "-plaintext", "-max-time", str(seconds), "-d", json.dumps(request),
                   address, f"devp2p.v1.{method}"]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


class Case:
    """The environment of a case: a folder for logs and data, and the programs that it starts, which end with it."""

    def __init__(self, root: pathlib.Path, folder: pathlib.Path, tools):
        self.root, self.folder, self.tools, self.programs = root, folder, tools, []
        # The steps to undo when all programs have ended.
        self.cleanups = []

    def run(self, *command, seconds=120, **options):
        """Runs a command to its end; returns it whole."""
        words = list(map(str, command))
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds, **options)
        except subprocess.TimeoutExpired:
            raise Failure(f"{' '.join(words)} still runs after {seconds} s") from None
        with (self.folder / "commands.log").open("a") as log:
            log.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}exit {done.returncode}\n")
        return done

    def stop(self):
        for program in reversed(self.programs):
            program.kill()
        for cleanup in reversed(self.cleanups):
            cleanup()

    def tails(self):
        """The ends of all logs, to find the cause of a failure."""
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            yield f"--- {log.name}: last {min(len(lines), 40)} of {len(lines)} lines"
            yield from (line[:400] for line in lines[-40:])


def environment(path_first=None):
    """The environment without settings of the sidecar, which belong to the user; a folder in front of PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEVP2PD")}
    return kept if path_first is None else {**kept, "PATH": f"{path_first}{os.pathsep}{kept['PATH']}"}
