"""A DNS server for one zone of TXT records: dns_server.py ZONE.json, an object from names to texts.

It prints its address and answers over UDP until it is ended. A text over 255 bytes is several strings of one record,
as in the real thing. Names compare without case.
"""

import json
import pathlib
import socketserver
import sys

from dnslib import QTYPE, RCODE, RR, TXT, DNSRecord

ZONE = {name.lower(): text for name, text in json.loads(pathlib.Path(sys.argv[1]).read_text()).items()}


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        data, socket = self.request
        question = DNSRecord.parse(data)
        name = str(question.q.qname).rstrip(".").lower()
        reply = question.reply()
        text = ZONE.get(name)
        if text is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif question.q.qtype == QTYPE.TXT:
            strings = [text[at:at + 255].encode() for at in range(0, len(text), 255)]
            reply.add_answer(RR(question.q.qname, QTYPE.TXT, rdata=TXT(strings), ttl=60))
        print(f"{QTYPE[question.q.qtype]} {name}: {text}", flush=True)
        socket.sendto(reply.pack(), self.client_address)


with socketserver.UDPServer(("127.0.0.1", 0), Handler) as server:
    print(f"{server.server_address[0]}:{server.server_address[1]}", flush=True)
    server.serve_forever()
