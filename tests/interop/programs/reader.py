#!/usr/bin/env python3
"""An application that reads one protocol with automatic credit, and stops reading when it is told to.

    reader.py ADDRESS PROTOCOL        commands on stdin, a word a line: pause, resume, report
"""

import json
import pathlib
import sys
import threading

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "examples" / "python"))
from stubs import message_pb2 as pb, message_pb2_grpc, protocol_pb2, types_pb2  # noqa: E402

address, protocol = sys.argv[1:]
reading, ended = threading.Event(), threading.Event()
reading.set()
counts = {"messages": 0, "gaps": 0, "streams": 0}


def commands():
    for line in sys.stdin:
        word = line.strip()
        reading.clear() if word == "pause" else reading.set() if word == "resume" else None
        print(json.dumps({"event": word, **counts}), flush=True)
    ended.set()


def requests():
    spec = protocol_pb2.RegistrationSpec(client_id=f"python-{protocol}", protocols=[
        types_pb2.ProtocolSpec(name=protocol, version=1, message_count=8)])
    yield pb.ExchangeRequest(events=[pb.ClientEvent(attach=pb.Attach(spec=spec, auto_credit=True))])
    ended.wait()


threading.Thread(target=commands, daemon=True).start()
with grpc.insecure_channel(address) as channel:
    for frame in message_pb2_grpc.MessageServiceStub(channel).Exchange(requests()):
        for event in frame.events:
            kind = event.WhichOneof("event")
            if kind == "message":
                counts["messages"] += 1
            elif kind == "gap":
                counts["gaps"] += event.gap.messages
            elif kind == "attached":
                counts["streams"] += 1
                print(json.dumps({"event": "attached"}), flush=True)
        reading.wait()
