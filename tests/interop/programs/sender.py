#!/usr/bin/env python3
"""An application that sends to every peer as fast as its windows allow, and says how much of it was taken.

    sender.py ADDRESS SIZE
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"))
from client import Client  # noqa: E402
from stubs import protocol_pb2, types_pb2  # noqa: E402

FLOOD = 2


class Sender:
    def __init__(self, size):
        self.payload = bytes(size)

    def opened(self, channel):
        self.told("opened", node_id=channel.peer.node_id)

    def writable(self, channel):
        while channel.credit > 0:
            channel.send(FLOOD, self.payload)

    def message(self, channel, code, payload):
        pass

    def lost(self, channel, messages):
        self.told("lost", messages=messages)

    def closed(self, channel, closed):
        self.told("closed", node_id=channel.peer.node_id, detail=closed.detail)

    def told(self, event, **fields):
        print(json.dumps({"event": event, **fields}), flush=True)


address, size = sys.argv[1:]
spec = protocol_pb2.RegistrationSpec(client_id="sender", protocols=[
    types_pb2.ProtocolSpec(name="echo", version=1, message_count=8)])
Client(Sender(int(size)), spec, address).run()
