"""Cases about chains and their forks: nodes that are found and dialed because of the fork id in a record."""

import base64
import json
import time

from harness import Application, Geth, Sidecar, expect

CLIENT = "application"
AMSTERDAM = {"hash": "6c1d9423", "time": 1791294816}


def filter_of_sepolia(case, known=None, **fields):
    """An update of the application's registration: Sepolia's fork filter, with the first `known` forks by time."""
    facts = json.loads((case.root / "tests/vectors/networks.json").read_text())["sepolia"]
    chain = {
        "genesisHash": base64.b64encode(bytes.fromhex(facts["genesis_hash"])).decode(), "genesisTime": 1633267481,
        "forkHeights": facts["fork_heights"], "forkTimes": facts["fork_times"][:known], **fields,
    }
    protocols = [{"name": "echo", "version": 1, "messageCount": 8}]
    return {"clientId": CLIENT, "spec": {"clientId": CLIENT, "protocols": protocols, "dialFilter": {"fork": chain}}}


def kept(sidecar, geth):
    """Waits for longer than applications take to compare chains, and for pings of both sides: the session still stands."""
    def session():
        peers = sidecar.call("PeerService/ListPeers").get("peers", [])
        expect([peer["nodeId"] for peer in peers] == [geth.node_id], f"the peers are {peers}")
        return peers[0]["sessionId"]

    time.sleep(5)  # of two connections that cross, one may go first
    before = session()
    time.sleep(65)
    expect(session() == before, "the session is another one than a minute ago")


def geth_dials_by_discv5_alone(case):
    """A go-ethereum node of today's Sepolia finds, dials and keeps us by discv5 alone, for the eth entry we announce."""
    sidecar = Sidecar(case, flags=["--discv4", "false", "--nodial"])
    application = Application(case, sidecar, count=10, size=100, client_id=CLIENT)
    application.event("attached")
    sidecar.call("ProtocolService/UpdateRegistration", **filter_of_sepolia(case, announce=True))
    # A second node of the same kind announces nothing, and is not dialed.
    silent = Sidecar(case, "silent", data="silent-data", flags=["--discv4", "false", "--nodial"])
    Application(case, silent, "silent-application").event("attached")
    geth = Geth(case, discv5="true", chain="sepolia", bootnodes=f"{silent.enr},{sidecar.enr}")
    candidate = geth.event("candidate", node_id=sidecar.node_id, seconds=120)
    expect(candidate["accepted"] and candidate["hash"] == AMSTERDAM["hash"], f"go-ethereum judges {candidate}")
    opened = application.event("peer-opened", node_id=geth.node_id, seconds=120)
    expect(opened["inbound"], f"go-ethereum should have dialed: {opened}")
    application.event("answered", node_id=geth.node_id)
    kept(sidecar, geth)
    peers = silent.call("PeerService/ListPeers").get("peers", [])
    expect(peers == [], f"go-ethereum dialed a node that announces nothing: {peers}")


def discv5_alone_both_ways(case):
    """A go-ethereum node of today's Sepolia is found and dialed by us, discv5 alone, by URL as well as by record."""
    geth = Geth(case, discv5="true", chain="sepolia")
    for form, node in (("record", geth.enr), ("url", geth.enode)):
        # One list for both protocols, as the newest test networks need it.
        flags = ["--discv4", "false", "--bootnodes", node]
        sidecar = Sidecar(case, form, data=f"{form}-data", flags=flags)
        application = Application(case, sidecar, f"application-{form}", count=10, size=100, client_id=CLIENT)
        application.event("attached")
        # The first one announces its chain, so both sides may dial; the second one has to dial itself.
        both = form == "record"
        sidecar.call("ProtocolService/UpdateRegistration", **filter_of_sepolia(case, announce=both))
        opened = application.event("peer-opened", node_id=geth.node_id, seconds=120)
        expect(both or not opened["inbound"], f"the sidecar should have dialed: {opened}")
        application.event("answered", node_id=geth.node_id)
        if both:
            kept(sidecar, geth)


def an_unknown_fork_is_followed(case):
    """Go-ethereum nodes of today's Sepolia in four networks make a sidecar follow Amsterdam, which its filter lacks."""
    geths = [Geth(case, f"geth-{n}", listen=f"127.0.{n}.1:0", discv5="true", chain="sepolia") for n in range(1, 5)]
    sidecar = Sidecar(case, flags=["--discv4", "false"])
    application = Application(case, sidecar, count=10, size=100, client_id=CLIENT)
    application.event("attached")
    sidecar.call("ProtocolService/UpdateRegistration", **filter_of_sepolia(case, known=-1))
    for geth in geths:
        sidecar.call("NodeService/AddBootnode", node=geth.enr)
    answered = {application.event("answered", seconds=180)["node_id"] for _ in geths}
    expect(answered == {geth.node_id for geth in geths}, f"the peers are {answered}")
    info = sidecar.call("NodeService/GetNodeInfo")
    followed = [{"hash": fork["hash"], "time": int(fork["time"])} for fork in info.get("followedForks", [])]
    expect(followed == [AMSTERDAM], f"the forks that are followed are {info.get('followedForks')}")
    sidecar.wait(lambda line: "the chain has passed a fork that our schedule lacks" in line, 30, "a word about it")


CASES = [geth_dials_by_discv5_alone, discv5_alone_both_ways, an_unknown_fork_is_followed]
