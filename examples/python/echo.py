#!/usr/bin/env python3
"""An application on top of devp2pd: it speaks echo/1 with every peer that does.

echo/1 is the smallest protocol there can be. Code 0 is a request, and its receiver answers with the same bytes
as code 1. This application answers the requests of its peers, sends `--count` numbered requests of its own to each
peer that appears, compares the answers byte by byte, and goes on when peers come and go, the stream breaks or the
sidecar restarts.

    pip install -r requirements.txt
    python echo.py --count 10 --size 100
"""

import argparse
import collections
import json
import time

from client import Client
from payloads import Ledger, payload
from stubs import protocol_pb2, types_pb2

REQUEST, ANSWER = 0, 1


class Peer:
    """Our books about one peer."""

    def __init__(self):
        self.sent, self.answers, self.requests = Ledger(), Ledger(), Ledger()
        self.owed, self.since, self.done = collections.deque(), time.monotonic(), False
        self.next = 0     # number of the answer that comes next
        self.missing = 0  # messages that were lost, and were not found missing yet
        self.lost = 0


class Echo:
    """The application, as `client.Client` calls it."""

    def __init__(self, args):
        self.args, self.peers = args, {}

    def opened(self, channel):
        self.peers[channel] = Peer()
        self.say(channel, "peer-opened", name=channel.peer.client_name, inbound=channel.peer.inbound)

    def writable(self, channel):
        """Sends while the window is open: first the answers that we owe, then requests of our own."""
        peer = self.peers[channel]
        while channel.credit > 0:
            if peer.owed:
                channel.send(ANSWER, peer.owed.popleft())
            elif peer.sent.messages < self.args.count:
                data = self.payload(peer.sent.messages)
                peer.sent.add(data)
                channel.send(REQUEST, data)
            else:
                return

    def message(self, channel, code, data):
        peer = self.peers[channel]
        if code == REQUEST:
            peer.requests.add(data)
            peer.owed.append(data)
            self.writable(channel)
        elif code == ANSWER and peer.next < peer.sent.messages:
            while peer.missing and data != self.payload(peer.next):
                peer.next, peer.missing = peer.next + 1, peer.missing - 1
            if data != self.payload(peer.next):
                self.say(channel, "difference", number=peer.next, bytes=len(data))
            peer.answers.add(data)
            peer.next += 1
            if peer.next % max(1, self.args.count // 10) == 0:
                self.say(channel, "answer", number=peer.next, bytes=len(data))
            self.finish(channel)
        else:
            self.say(channel, "unexpected", code=code, bytes=len(data))

    def lost(self, channel, messages):
        peer = self.peers[channel]
        peer.missing, peer.lost = peer.missing + messages, peer.lost + messages
        self.say(channel, "lost", messages=messages)
        self.finish(channel)

    def finish(self, channel):
        peer = self.peers[channel]
        if not peer.done and peer.sent.messages and peer.next + peer.missing >= self.args.count:
            peer.done, seconds = True, round(time.monotonic() - peer.since, 3)
            self.say(channel, "answered", seconds=seconds, sent=peer.sent.entry(), answers=peer.answers.entry(),
                     lost=peer.lost)

    def closed(self, channel, closed):
        peer, reason = self.peers.pop(channel), types_pb2.DisconnectReason.Name(closed.reason)
        self.say(channel, "peer-closed", reason=reason, by=closed.by, detail=closed.detail,
                 unsent=closed.unsent_messages, requests=peer.requests.entry(), answers=peer.answers.entry())

    def payload(self, number):
        return payload(number, self.args.size, self.args.content, self.args.seed)

    def say(self, channel, event, **fields):
        self.told(event, node_id=channel.peer.node_id, **fields)

    def told(self, event, **fields):
        words = json.dumps({"event": event, **fields}) if self.args.json else \
            f"{event:14}" + "".join(f" {key}={value}" for key, value in fields.items())
        print(words, flush=True)


def main():
    parser = argparse.ArgumentParser(description="Speak echo/1 with peers through devp2pd.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="the sidecar's gRPC address, or unix:PATH")
    parser.add_argument("--token", help="bearer token, if the sidecar has an access file")
    parser.add_argument("--ca", help="PEM file with the CA of the sidecar's certificate, if it has TLS")
    parser.add_argument("--client-id", default="echo", help="this application's name at the sidecar")
    parser.add_argument("--count", type=int, default=10, help="requests to send to each peer")
    parser.add_argument("--size", type=int, default=100, help="bytes of each request")
    parser.add_argument("--content", choices=["text", "random"], default="text", help="text can be compressed")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other bytes")
    parser.add_argument("--max-frame", type=int, default=4 << 20, help="largest gRPC message we accept, in bytes")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    args = parser.parse_args()
    spec = protocol_pb2.RegistrationSpec(client_id=args.client_id, protocols=[
        types_pb2.ProtocolSpec(name="echo", version=1, message_count=8)])
    try:
        Client(Echo(args), spec, args.address, args.token, args.ca, args.max_frame).run()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
