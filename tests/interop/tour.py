"""Runs the README's walk through as it stands there, so that it cannot go stale.

The commands stand between `<!-- tour:begin -->` and `<!-- tour:end -->`. Only three texts are replaced: the
gRPC address, the peer's enode, and the `…` that stands for a node. The second command stays open, as the README says.
"""

import json
import os
import re

from harness import Failure, Geth, Program, Sidecar, environment, expect

STEPS = ["GetNodeInfo", "ReceiveMessages", "AddStaticPeer", "SendMessage", "ListPeers"]


def commands(root):
    """The README's commands, one string each."""
    text = (root / "README.md").read_text()
    found = re.search(r"<!-- tour:begin -->\s*```\w*\n(.*?)```\s*<!-- tour:end -->", text, re.DOTALL)
    expect(found, "README.md has no block between tour:begin and tour:end")
    lines = [line for line in found.group(1).replace("\\\n", " ").splitlines() if line.startswith("grpcurl ")]
    names = [line.rsplit("/", 1)[1] for line in lines]
    expect(names == STEPS, f"README.md's tour is {names}, the issue's is {STEPS}")
    return dict(zip(STEPS, lines))


def run_tour(case, grpcurl, static_first):
    sidecar, geth = Sidecar(case), Geth(case)
    geth.process.stdin.close()  # as where the README's command is run by a script: it must go on serving
    folder = case.folder / "bin"
    folder.mkdir()
    os.symlink(grpcurl, folder / "grpcurl")
    tour = {step: fill(command, sidecar, geth) for step, command in commands(case.root).items()}

    def call(step):
        done = case.run("bash", "-c", tour[step], env=environment(folder), seconds=30)
        expect(done.returncode == 0, f"{tour[step]}\n{done.stderr}")
        return json.loads(done.stdout)

    listed = case.run(folder / "grpcurl", "-plaintext", sidecar.grpc, "list").stdout.split()
    for service in ("NodeService", "PeerService", "ProtocolService", "MessageService"):
        expect(f"devp2p.v1.{service}" in listed, f"reflection lists only {listed}")
    described = case.run(folder / "grpcurl", "-plaintext", sidecar.grpc, "describe",
                         "devp2p.v1.MessageService.SendMessage").stdout
    expect("//" in described, f"the comments do not travel in reflection:\n{described}")

    info = call("GetNodeInfo")
    expect(info["enode"] == sidecar.enode and len(info["nodeId"]) == 64 and info["enr"].startswith("enr:"),
           f"GetNodeInfo answers {info}")
    if static_first:
        entry = call("AddStaticPeer")["staticPeer"]
        expect(entry["state"] == "STATIC_PEER_STATE_WAITING_FOR_PROTOCOL", f"without a protocol: {entry}")
    stream = Program(case, "stream", ["bash", "-c", tour["ReceiveMessages"]], env=environment(folder))
    stream.wait(lambda line: '"attached"' in line, what="attached")
    if not static_first:
        call("AddStaticPeer")
    stream.wait(lambda line: '"channelOpened"' in line, what="channelOpened")
    call("SendMessage")
    stream.wait(lambda line: '"message"' in line, what="the answer of the peer")
    stream.wait(lambda line: '"code": 1' in line, what="the answer's code")
    stream.wait(lambda line: '"payload": "wA=="' in line, what="the answer's payload")
    peers = call("ListPeers")["peers"]
    expect([peer["nodeId"] for peer in peers] == [geth.node_id], f"ListPeers answers {peers}")
    stream.kill()


def fill(command, sidecar, geth):
    """The command with this run's address and node in place of the README's."""
    command = command.replace("127.0.0.1:50051", sidecar.grpc)
    command = re.sub(r"enode://[^\"]*", geth.enode, command)
    command = command.replace('"…"', f'"{geth.node_id}"')
    if "…" in command:
        raise Failure(f"something in the README was not filled in: {command}")
    return command
