// An application on top of devp2pd: it speaks echo/1 with every peer that does.
//
// echo/1 is the smallest protocol there can be. Code 0 is a request, and its receiver answers with the same bytes
// as code 1. This application answers the requests of its peers, sends --count numbered requests of its own to each peer
// that appears, compares the answers byte by byte, and goes on when peers come and go, the stream breaks or the sidecar
// restarts.
//
//   npm install
//   node echo.mjs --count 10 --size 100

import { parseArgs } from "node:util";
import { Client } from "./client.mjs";
import { Ledger, payload } from "./payloads.mjs";

const REQUEST = 0, ANSWER = 1;

const { values: args } = parseArgs({
  options: {
    address: { type: "string", default: "127.0.0.1:50051" }, // the sidecar's gRPC address, or unix:PATH
    token: { type: "string" }, // bearer token, if the sidecar has an access file
    ca: { type: "string" }, // PEM file with the CA of the sidecar's certificate, if it has TLS
    "client-id": { type: "string", default: "echo" }, // this application's name at the sidecar
    count: { type: "string", default: "10" }, // requests to send to each peer
    size: { type: "string", default: "100" }, // bytes of each request
    content: { type: "string", default: "text" }, // text (can be compressed) or random
    seed: { type: "string", default: "1" }, // another seed, other bytes
    "max-frame": { type: "string", default: String(4 << 20) }, // largest gRPC message we accept, in bytes
    json: { type: "boolean", default: false }, // print JSON lines
  },
});
const count = Number(args.count), size = Number(args.size);

/** Our books about one peer. */
class Peer {
  sent = new Ledger();
  answers = new Ledger();
  requests = new Ledger();
  owed = [];
  next = 0; // number of the answer that comes next
  missing = 0; // messages that were lost, and were not found missing yet
  lost = 0;
  done = false;
  since = Date.now();
}

/** The application, as Client calls it. */
class Echo {
  peers = new Map();

  opened(channel) {
    this.peers.set(channel, new Peer());
    this.say(channel, "peer-opened", { name: channel.peer.client_name, inbound: channel.peer.inbound });
  }

  /** Sends while the window is open: first the answers that we owe, then requests of our own. */
  writable(channel) {
    const peer = this.peers.get(channel);
    while (channel.credit > 0) {
      if (peer.owed.length) {
        channel.send(ANSWER, peer.owed.shift());
      } else if (peer.sent.messages < count) {
        const data = this.payload(peer.sent.messages);
        peer.sent.add(data);
        channel.send(REQUEST, data);
      } else {
        return;
      }
    }
  }

  message(channel, code, data) {
    const peer = this.peers.get(channel);
    if (code === REQUEST) {
      peer.requests.add(data);
      peer.owed.push(data);
      this.writable(channel);
    } else if (code === ANSWER && peer.next < peer.sent.messages) {
      for (; peer.missing && !data.equals(this.payload(peer.next)); peer.next++) peer.missing--;
      if (!data.equals(this.payload(peer.next))) {
        this.say(channel, "difference", { number: peer.next, bytes: data.length });
      }
      peer.answers.add(data);
      peer.next++;
      if (peer.next % Math.max(1, Math.floor(count / 10)) === 0) {
        this.say(channel, "answer", { number: peer.next, bytes: data.length });
      }
      this.finish(channel);
    } else {
      this.say(channel, "unexpected", { code, bytes: data.length });
    }
  }

  lost(channel, messages) {
    const peer = this.peers.get(channel);
    peer.missing += messages;
    peer.lost += messages;
    this.say(channel, "lost", { messages });
    this.finish(channel);
  }

  finish(channel) {
    const peer = this.peers.get(channel);
    if (peer.done || !peer.sent.messages || peer.next + peer.missing < count) return;
    peer.done = true;
    const seconds = (Date.now() - peer.since) / 1000;
    this.say(channel, "answered", { seconds, sent: peer.sent.entry(), answers: peer.answers.entry(), lost: peer.lost });
  }

  closed(channel, { reason, by, detail, unsent_messages: unsent }) {
    const { requests, answers } = this.peers.get(channel);
    this.peers.delete(channel);
    const books = { requests: requests.entry(), answers: answers.entry() };
    this.say(channel, "peer-closed", { reason, by, detail, unsent, ...books });
  }

  payload(number) {
    return payload(number, size, args.content, args.seed);
  }

  say(channel, event, fields) {
    this.told(event, { node_id: channel.peer.node_id, ...fields });
  }

  told(event, fields) {
    console.log(args.json ? JSON.stringify({ event, ...fields }) : `${event.padEnd(14)} ${JSON.stringify(fields)}`);
  }
}

const protocols = [{ name: "echo", version: 1, message_count: 8 }];
const options = { address: args.address, token: args.token, ca: args.ca, maxFrame: Number(args["max-frame"]) };
await new Client(new Echo(), { client_id: args["client-id"], protocols }, options).run();
