#!/usr/bin/env python3
"""A protocol over TALKREQ of discv5: `serve` answers the questions of other nodes, `ask` asks one.

The protocol of this example answers with the question in upper case. Nobody needs to be connected: a question is a
packet of discovery, and so is its answer, which must fit 1,280 bytes.

    python talk.py --address 127.0.0.1:50051 serve
    python talk.py --address 127.0.0.1:50052 ask enr:-IS4Q… 'hello'
"""

import argparse
import queue
import sys

import grpc

from stubs import discovery_pb2 as pb, discovery_pb2_grpc


def serve(discovery, protocol):
    answers = queue.SimpleQueue()

    def events():
        yield pb.ServeTalkRequest(serve=pb.ServeTalkStart(protocol=protocol))
        while True:
            yield pb.ServeTalkRequest(answer=answers.get())

    for event in discovery.ServeTalk(events()):
        kind = event.WhichOneof("event")
        if kind == "started":
            print(f"serving {protocol}: an answer may take {event.started.deadline.ToTimedelta()}", flush=True)
        elif kind == "question":
            question = event.question
            print(f"{question.node_id} at {question.remote_address} asks {question.payload!r}", flush=True)
            answers.put(pb.TalkAnswer(question_id=question.question_id, payload=question.payload.upper()))
        elif kind == "lost":  # answered empty, because we were too slow
            print(f"{event.lost.questions} questions were lost", flush=True)


def ask(discovery, protocol, node, text):
    request = pb.TalkRequestRequest(node=node, protocol=protocol, payload=text.encode())
    answer = discovery.TalkRequest(request, timeout=30).payload
    print(answer.decode() if answer else f"an empty answer: the node does not serve {protocol}, or was too slow")


def main():
    parser = argparse.ArgumentParser(description="Serve or ask a protocol over TALKREQ through devp2pd.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="the sidecar's gRPC address")
    parser.add_argument("--protocol", default="upper", help="name of the protocol, the same at both ends")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer the questions of other nodes")
    asking = commands.add_parser("ask", help="ask a node")
    asking.add_argument("node", help="whom to ask: enr:, enode://, or the id of a node that discovery knows")
    asking.add_argument("text", help="the question")
    args = parser.parse_args()
    with grpc.insecure_channel(args.address) as channel:
        discovery = discovery_pb2_grpc.DiscoveryServiceStub(channel)
        try:
            if args.command == "serve":
                serve(discovery, args.protocol)
            else:
                ask(discovery, args.protocol, args.node, args.text)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
