#!/usr/bin/env python3
"""The beginning of an Ethereum client: eth/69 with its Status as greeting, and the peers' Status after a restart.

    eth_application.py ADDRESS STATUS      STATUS: the Status message to greet with, in hex
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"))
from client import Client  # noqa: E402
from stubs import protocol_pb2, types_pb2  # noqa: E402

STATUS, GET_BLOCK_HEADERS, BLOCK_HEADERS = 0, 3, 4


class Ethereum:
    def __init__(self):
        self.status = {}

    def opened(self, channel):
        self.say(channel, "opened", existing=channel.opened.existing, greeted=channel.opened.greeting_sent)
        for message in channel.opened.first_messages:  # of a connection that is older than this process
            self.message(channel, message.code, message.payload)

    def writable(self, channel):
        if channel in self.status:
            self.ask(channel)

    def message(self, channel, code, payload):
        if code == STATUS:
            self.status[channel] = payload
            self.say(channel, "status", payload=payload.hex())
            if hasattr(channel, "credit"):
                self.ask(channel)
        elif code == BLOCK_HEADERS:
            self.say(channel, "headers", payload=payload.hex())

    def ask(self, channel):
        # [request id 1, [block 0, 1 header, no skip, not reverse]]
        channel.send(GET_BLOCK_HEADERS, bytes.fromhex("c601c480018080"))

    def lost(self, channel, messages):
        self.say(channel, "lost", messages=messages)

    def closed(self, channel, closed):
        self.say(channel, "closed", detail=closed.detail)

    def say(self, channel, event, **fields):
        self.told(event, node_id=channel.peer.node_id, **fields)

    def told(self, event, **fields):
        print(json.dumps({"event": event, **fields}), flush=True)


address, status = sys.argv[1:]
greeting = types_pb2.Payload(code=STATUS, payload=bytes.fromhex(status))
spec = protocol_pb2.RegistrationSpec(client_id="ethereum", protocols=[types_pb2.ProtocolSpec(
    name="eth", version=69, message_count=18, greeting=[greeting], keep_first=1)])
Client(Ethereum(), spec, address).run()
