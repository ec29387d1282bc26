// Numbered payloads that both ends can make, and ledgers that both ends can compare: as in tests/interop/geth-peer.

import { createHash } from "node:crypto";

const PERIOD = 64; // of "text": short enough that snappy finds it at once

/** Message `number` of a series: the number as 8 bytes (big endian) and then content, cut to `size`. */
export function payload(number, size, content, seed) {
  const head = Buffer.alloc(8), label = Buffer.alloc(16);
  head.writeBigUInt64BE(BigInt(number));
  label.writeBigUInt64BE(BigInt(seed));
  head.copy(label, 8);
  const shake = (outputLength) => createHash("shake128", { outputLength }).update(label).digest();
  const body = content === "random"
    ? shake(Math.max(size, PERIOD)) // nothing that a compressor could use
    : Buffer.alloc(Math.max(size, PERIOD), shake(PERIOD));
  return Buffer.concat([head, body]).subarray(0, size);
}

/** Counts and hashes payloads: SHA-256 over each one's length (8 bytes, big endian) and bytes. */
export class Ledger {
  messages = 0;
  bytes = 0;
  sha = createHash("sha256");

  add(data) {
    const length = Buffer.alloc(8);
    length.writeBigUInt64BE(BigInt(data.length));
    this.sha.update(length).update(data);
    this.messages++;
    this.bytes += data.length;
  }

  entry() {
    return { messages: this.messages, bytes: this.bytes, sha256: this.sha.copy().digest("hex") };
  }
}
