// A client for every application on top of devp2pd, for any protocol: one Exchange stream, with credit in both
// directions, that is made again when it breaks, and counts lost messages.
//
// The application is an object with these methods:
//
//   opened(channel)                    a peer shares a protocol with us
//   writable(channel)                  the window of this channel is open: send while channel.credit > 0
//   message(channel, code, payload)    a message of the peer
//   lost(channel, messages)            so many messages of the peer never came
//   closed(channel, closed)            the peer is gone
//   told(event, fields)                what else happens, for a log

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const proto = fileURLToPath(new URL("../../proto", import.meta.url));
const definition = loader.loadSync("devp2p/v1/message.proto", {
  // 64-bit numbers that count fit JavaScript's own; session_id, which is an identity, is compared and never computed.
  includeDirs: [proto], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true,
});
const { MessageService } = grpc.loadPackageDefinition(definition).devp2p.v1;

const OVERHEAD = 64; // the cost of a message in a window beside its payload (WindowUpdate in the contract)
const WINDOW = 1 << 20; // the send window of a channel, of which send_window_bytes and credit give the rest
// All that is ready goes into one frame, up to this much.
const FRAME_EVENTS = 512, FRAME_BYTES = 256 * 1024;
// Another attempt cannot help: the request is wrong, or (ABORTED) another process took our place.
const { INVALID_ARGUMENT, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED, ABORTED, NOT_FOUND } = grpc.status;
const FATAL = new Set([INVALID_ARGUMENT, UNAUTHENTICATED, PERMISSION_DENIED, UNIMPLEMENTED, ABORTED]);

/** One connection to a peer, for one protocol. It outlives our streams; its number does not. */
class Channel {
  constructor(client, opened) {
    Object.assign(this, { client, peer: opened.peer, capability: opened.capability, session: opened.session_id });
    this.position = opened.position;
    this.recent = [];
    this.recentCost = 0;
  }

  send(code, payload) {
    const message = { channel_ids: [this.id], code, payload, send_id: ++this.client.sends };
    this.client.put({ message });
    this.credit -= payload.length + OVERHEAD;
    this.recent.push(message);
    this.recentCost += payload.length + OVERHEAD;
    // Messages a whole window back have been processed: without credit for them we could not have gone on.
    let old = 0;
    for (let first; this.recentCost - (first = this.recent[old].payload.length + OVERHEAD) > WINDOW; old++) {
      this.recentCost -= first;
    }
    if (old) this.recent.splice(0, old);
  }

  /** A stream tells of this connection: our first one, or one after a stream that broke. */
  onStream(opened, lastSendId) {
    Object.assign(this, { id: opened.channel_id, credit: opened.send_window_bytes, parts: [] });
    this.miss(opened.position - this.position); // what went to the stream that broke, and did not come
    const again = this.recent.filter((message) => message.send_id > lastSendId);
    this.recent = [];
    this.recentCost = 0;
    for (const { code, payload } of again) this.send(code, payload); // what never reached the sidecar
    if (this.credit > 0) this.client.app.writable(this);
  }

  /** Takes a message or a part of one, and returns its cost in our window. */
  received({ code, payload, fragment }) {
    const length = payload.length;
    if (fragment) { // larger than our frames: the parts come in order
      this.parts.push(payload);
      if (fragment.offset + length < fragment.total_bytes) return length;
      payload = Buffer.concat(this.parts);
      this.parts = [];
    }
    this.position++;
    this.client.app.message(this, code, payload);
    return length + OVERHEAD;
  }

  miss(messages) {
    this.position += messages;
    if (messages) this.client.app.lost(this, messages);
  }
}

/** Keeps one stream to the sidecar at `address` (HOST:PORT or unix:PATH) for a registration `spec`. */
export class Client {
  constructor(app, spec, { address, token, ca, maxFrame = 4 << 20 }) {
    Object.assign(this, { app, spec, token, maxFrame, sends: 0, resumeToken: "" });
    const credentials = ca ? grpc.credentials.createSsl(readFileSync(ca)) : grpc.credentials.createInsecure();
    this.service = new MessageService(address, credentials, { "grpc.max_receive_message_length": maxFrame + 65536 });
  }

  async run() {
    Object.assign(this, { delay: 100, attempt: randomUUID(), sessions: new Map() });
    for (;;) {
      Object.assign(this, { outbox: [], channels: new Map(), former: this.sessions, sessions: new Map() });
      const { code, details } = await this.stream();
      this.call = null;
      const how = code === grpc.status.OK ? "stream-ended" : "stream-broken";
      this.app.told(how, { code: grpc.status[code], detail: details });
      if (FATAL.has(code)) return process.exit(1);
      if (code === NOT_FOUND) this.resumeToken = ""; // the lease is over, or it is another sidecar
      this.sessions = new Map([...this.former, ...this.sessions]);
      await sleep(this.delay * (0.5 + Math.random()));
      this.delay = Math.min(this.delay * 2, 5_000);
    }
  }

  /** One stream; answers how it ended. */
  stream() {
    const metadata = new grpc.Metadata();
    if (this.token) metadata.set("authorization", `Bearer ${this.token}`);
    const call = this.call = this.service.Exchange(metadata);
    const target = this.resumeToken ? { resume_token: this.resumeToken } : { spec: this.spec };
    call.write({ events: [{ attach: { ...target, max_frame_bytes: this.maxFrame, request_id: this.attempt } }] });
    return new Promise((resolve) => {
      call.on("data", (frame) => this.handle(frame.events));
      call.on("error", () => {}); // the status says the same
      call.on("status", resolve);
      call.on("drain", () => this.flush());
    });
  }

  put(event) {
    if (this.outbox.push(event) === 1) setImmediate(() => this.flush());
  }

  /** Writes the messages that are ready, frame by frame, while gRPC takes it. */
  flush() {
    while (this.call && this.outbox.length && !this.call.writableNeedDrain) {
      let count = 0;
      for (let size = 0; count < this.outbox.length && count < FRAME_EVENTS; count++) {
        size += this.outbox[count].message?.payload.length ?? 0;
        if (count && size > FRAME_BYTES) break;
      }
      this.call.write({ events: this.outbox.splice(0, count) });
    }
  }

  handle(events) {
    const spent = new Map();
    const { app, channels } = this;
    for (const { event: kind, [kind]: body } of events) {
      const channel = channels.get(body.channel_id); // a closed one may still have credit
      if (kind === "message") {
        const paid = channel.received(body);
        for (const id of [body.channel_id, 0]) spent.set(id, (spent.get(id) ?? 0) + paid); // 0 is the stream
      } else if (kind === "attached") {
        Object.assign(this, { delay: 100, attempt: randomUUID(), resumeToken: body.resume_token });
        Object.assign(this, { lastSendId: body.last_send_id, unheard: body.existing_channels });
        app.told("attached", { instance_id: body.instance_id, resumed: body.resumed });
        this.forget();
      } else if (kind === "channel_opened") {
        this.opened(body);
      } else if (kind === "window_update" && channel) {
        channel.credit += body.bytes;
        if (channel.credit > 0) app.writable(channel);
      } else if (kind === "channel_closed") {
        channels.delete(body.channel_id);
        this.sessions.delete(channel.session);
        app.closed(channel, body);
      } else if (kind === "send_failure") {
        app.told("send-failed", { channel: body.channel_id, reason: body.reason, detail: body.detail });
      } else if (kind === "gap") {
        app.told("gap", { channel: body.channel_id, messages: body.messages, bytes: body.bytes });
        channel?.miss(body.messages);
      } else if (kind === "drain") {
        app.told("sidecar-stops", { deadline: new Date(body.deadline.seconds * 1000).toISOString() });
      }
    }
    for (const [channel_id, bytes] of spent) {
      if (channel_id === 0 || channels.has(channel_id)) this.put({ window_update: { channel_id, bytes } });
    }
  }

  opened(opened) {
    const known = this.former.get(opened.session_id);
    this.former.delete(opened.session_id);
    const channel = known ?? new Channel(this, opened);
    this.sessions.set(opened.session_id, channel);
    this.channels.set(opened.channel_id, channel);
    known ? this.app.told("peer-resumed", { node_id: channel.peer.node_id }) : this.app.opened(channel);
    channel.onStream(opened, this.lastSendId);
    if (opened.existing) this.unheard--;
    this.forget();
  }

  /** Once all connections that outlived the last stream were told, the others that we know are over. */
  forget() {
    if (this.unheard) return;
    const end = { reason: "", by: "sidecar", detail: "it ended while our stream was broken", unsent_messages: 0 };
    for (const channel of this.former.values()) this.app.closed(channel, end);
    this.former.clear();
  }
}
