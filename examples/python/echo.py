#!/usr/bin/env python3
"""An application on top of devp2pd: it speaks echo/1 with every peer that does.

echo/1 is the smallest protocol there can be. Code 0 is a request, and whoever gets one answers with the same bytes
as code 1. This application answers the requests of its peers, sends `--count` numbered requests of its own to each
peer that appears, compares the answers byte by byte, and goes on when peers come and go or the sidecar restarts.

    pip install -r requirements.txt
    python echo.py --count 10 --size 100
"""

import argparse
import collections
import json
import queue
import random
import time

import grpc

from payloads import Ledger, payload
from stubs import message_pb2 as pb, message_pb2_grpc, protocol_pb2, types_pb2

REQUEST, ANSWER = 0, 1

# What a message costs of a window beside its payload, so that empty ones are not free (WindowUpdate in the contract).
OVERHEAD = 64

# All that is ready goes into one frame, up to this much: batching is the largest factor of speed in Python.
FRAME_EVENTS, FRAME_BYTES = 512, 256 * 1024

# The stream broke for a reason that a new attempt may mend. Anything else is a mistake of ours.
RETRY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION,
         grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL,
         grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND}


class Peer:
    """One channel: a connected peer that speaks echo/1 with us."""

    def __init__(self, app, opened):
        self.app, self.id, self.node_id = app, opened.channel_id, opened.peer.node_id
        self.sent, self.answers, self.requests = Ledger(), Ledger(), Ledger()
        self.credit, self.owed, self.parts = opened.send_window_bytes, collections.deque(), bytearray()
        self.since = time.monotonic()

    def write(self):
        """Sends while the window is open: first the answers that we owe, then requests of our own."""
        while self.credit > 0:
            if self.owed:
                code, data = ANSWER, self.owed.popleft()
            elif self.sent.messages < self.app.args.count:
                code, data = REQUEST, self.app.payload(self.sent.messages)
                self.sent.add(data)
            else:
                return
            self.credit -= len(data) + OVERHEAD
            self.app.send(self.id, code, data)

    def received(self, message):
        data = message.payload
        if message.HasField("fragment"):  # larger than our frames: the parts come in order
            self.parts += data
            if len(self.parts) < message.fragment.total_bytes:
                return
            data, self.parts = bytes(self.parts), bytearray()
        if message.code == REQUEST:
            self.requests.add(data)
            self.owed.append(data)
            self.write()
        elif message.code == ANSWER and self.answers.messages < self.sent.messages:
            self.answered(data)
        else:
            self.say("unexpected", code=message.code, bytes=len(data))

    def answered(self, data):
        number = self.answers.messages
        self.answers.add(data)
        if data != self.app.payload(number):
            self.say("difference", number=number, bytes=len(data))
        elif self.answers.messages == self.app.args.count:
            seconds = time.monotonic() - self.since
            self.say("answered", seconds=round(seconds, 3), sent=self.sent.entry(), answers=self.answers.entry())
        elif self.answers.messages % max(1, self.app.args.count // 10) == 0:
            self.say("answer", number=number, bytes=len(data))

    def say(self, event, **fields):
        self.app.say(event, node_id=self.node_id, **fields)


class Application:
    """Keeps one Exchange stream to the sidecar."""

    def __init__(self, args):
        self.args, self.sends = args, 0

    def run(self):
        delay = 0.1
        while True:
            self.events, self.peers = queue.SimpleQueue(), {}
            options = [("grpc.max_receive_message_length", self.args.max_frame + 65536)]
            if self.args.address.startswith("unix:"):
                # gRPC's C core would send the path as the authority, which HTTP/2 servers refuse.
                options.append(("grpc.default_authority", "localhost"))
            with grpc.insecure_channel(self.args.address, options=options) as channel:
                try:
                    for frame in message_pb2_grpc.MessageServiceStub(channel).Exchange(self.frames()):
                        delay = 0.1
                        for event in frame.events:
                            self.handle(event)
                    self.say("stream-ended")
                except grpc.RpcError as error:
                    self.say("stream-broken", code=error.code().name, detail=error.details())
                    if error.code() not in RETRY:
                        raise SystemExit(1) from None
                finally:
                    self.events.put(None)
            time.sleep(delay * random.uniform(0.5, 1.5))
            delay = min(delay * 2, 5)

    def frames(self):
        """What goes to the sidecar: first who we are, then all that is ready, frame by frame."""
        spec = protocol_pb2.RegistrationSpec(client_id=self.args.client_id, protocols=[
            types_pb2.ProtocolSpec(name="echo", version=1, message_count=8)])
        attach = pb.Attach(spec=spec, max_frame_bytes=self.args.max_frame, auto_credit=True)
        yield pb.ExchangeRequest(events=[pb.ClientEvent(attach=attach)])
        source = self.events  # a later stream has a queue of its own
        while (event := source.get()) is not None:
            frame, size = [event], len(event.message.payload)
            while len(frame) < FRAME_EVENTS and size < FRAME_BYTES and not source.empty():
                if (event := source.get()) is None:
                    return
                if len(event.message.payload) > FRAME_BYTES:  # a large message goes alone
                    yield pb.ExchangeRequest(events=frame)
                    frame, size = [], 0
                frame.append(event)
                size += len(event.message.payload)
            yield pb.ExchangeRequest(events=frame)

    def send(self, channel_id, code, data):
        self.sends += 1
        message = pb.OutboundMessage(channel_ids=[channel_id], code=code, payload=data, send_id=self.sends)
        self.events.put(pb.ClientEvent(message=message))

    def handle(self, event):
        kind = event.WhichOneof("event")
        body = getattr(event, kind) if kind else None
        if kind == "message":
            self.peers[body.channel_id].received(body)
        elif kind == "attached":
            self.say("attached", instance_id=body.instance_id)
        elif kind == "channel_opened":
            peer = self.peers[body.channel_id] = Peer(self, body)
            peer.say("peer-opened", name=body.peer.client_name, inbound=body.peer.inbound)
            peer.write()
        elif kind == "window_update" and body.channel_id in self.peers:  # a closed channel may still have one
            self.peers[body.channel_id].credit += body.bytes
            self.peers[body.channel_id].write()
        elif kind == "channel_closed":
            peer = self.peers.pop(body.channel_id)
            reason = types_pb2.DisconnectReason.Name(body.reason)
            peer.say("peer-closed", reason=reason, by=body.by, detail=body.detail, unsent=body.unsent_messages,
                     requests=peer.requests.entry(), answers=peer.answers.entry())
        elif kind == "send_failure":
            reason = types_pb2.ErrorReason.Name(body.reason)
            self.say("send-failed", channel=body.channel_id, send_id=body.send_id, reason=reason, detail=body.detail)
        elif kind == "gap":
            self.peers[body.channel_id].say("gap", messages=body.messages, bytes=body.bytes)
        elif kind == "drain":
            self.say("sidecar-stops", deadline=body.deadline.ToJsonString())

    def payload(self, number):
        return payload(number, self.args.size, self.args.content, self.args.seed)

    def say(self, event, **fields):
        words = json.dumps({"event": event, **fields}) if self.args.json else \
            f"{event:14}" + "".join(f" {key}={value}" for key, value in fields.items())
        print(words, flush=True)


def main():
    parser = argparse.ArgumentParser(description="Speak echo/1 with peers through devp2pd.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="the sidecar's gRPC address, or unix:PATH")
    parser.add_argument("--client-id", default="echo.py", help="this application's name at the sidecar")
    parser.add_argument("--count", type=int, default=10, help="requests to send to each peer")
    parser.add_argument("--size", type=int, default=100, help="bytes of each request")
    parser.add_argument("--content", choices=["text", "random"], default="text", help="text can be compressed")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other bytes")
    parser.add_argument("--max-frame", type=int, default=4 << 20, help="largest gRPC message we accept, in bytes")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    try:
        Application(parser.parse_args()).run()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
