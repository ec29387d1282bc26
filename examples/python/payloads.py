"""Numbered payloads that both ends can make, and ledgers that both ends can compare.

Message n of a series is n as 8 bytes (big endian) and then content, cut to the size asked for. The other end of
the tests (tests/interop/geth-peer/content.go) makes the same bytes, so a difference is found without trusting
anybody's copy.
"""

import hashlib

PERIOD = 64  # of "text": short enough that snappy finds it at once


def payload(number: int, size: int, content: str, seed: int) -> bytes:
    """Message `number` of a series of `size`-byte payloads; `content` is "random" or "text"."""
    label = seed.to_bytes(8, "big") + number.to_bytes(8, "big")
    if content == "random":  # nothing that a compressor could use
        body = hashlib.shake_128(label).digest(max(size, PERIOD))
    else:
        body = hashlib.shake_128(label).digest(PERIOD) * (size // PERIOD + 1)
    return (number.to_bytes(8, "big") + body)[:size]


class Ledger:
    """Counts and hashes payloads: SHA-256 over each one's length (8 bytes, big endian) and bytes."""

    def __init__(self):
        self.messages, self.bytes, self._sha = 0, 0, hashlib.sha256()

    def add(self, data: bytes):
        self._sha.update(len(data).to_bytes(8, "big") + data)
        self.messages += 1
        self.bytes += len(data)

    def entry(self) -> dict:
        return {"messages": self.messages, "bytes": self.bytes, "sha256": self._sha.hexdigest()}
