#!/usr/bin/env python3
"""An application that writes down every numbered message of a protocol before it gives credit for it.

    ledger.py ADDRESS PROTOCOL CLIENT_ID

One JSON line for each message: a printed message was delivered, however the process ends.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"))
from client import Client  # noqa: E402
from stubs import protocol_pb2, types_pb2  # noqa: E402


class Ledger:
    def opened(self, channel):
        self.say("opened", node_id=channel.peer.node_id, existing=channel.opened.existing,
                 position=channel.opened.position, uncredited=channel.opened.uncredited_messages)

    def writable(self, channel):
        pass

    def message(self, channel, code, payload):
        self.say("got", number=int.from_bytes(payload[:8], "big"))

    def lost(self, channel, messages):
        self.say("missed", messages=messages)

    def closed(self, channel, closed):
        self.say("closed", node_id=channel.peer.node_id)

    def told(self, event, **fields):
        self.say(event, **fields)

    def say(self, event, **fields):
        print(json.dumps({"event": event, **fields}), flush=True)


address, protocol, client_id = sys.argv[1:]
spec = protocol_pb2.RegistrationSpec(client_id=client_id, protocols=[
    types_pb2.ProtocolSpec(name=protocol, version=1, message_count=8)])
Client(Ledger(), spec, address).run()
