package main

// The payloads that this peer and the Python application agree on, so that each end can compute what the other must
// have sent without being told the bytes. Message n of a run is 8 bytes of n (big endian) and then content; the
// whole is cut to the size asked for. examples/python/content.py is the same function.

import (
	"crypto/sha256"
	"crypto/sha3"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
)

// run describes one series of numbered messages.
type run struct {
	Count   uint64 `json:"count"`
	Size    int    `json:"size"`    // bytes of each payload
	Content string `json:"content"` // "random": nothing to compress; "text": 64 bytes repeated
	Seed    uint64 `json:"seed"`
}

// repeated is the period of "text": short enough for snappy's window to find it at once.
const repeated = 64

func (r run) check() error {
	if r.Content != "random" && r.Content != "text" {
		return fmt.Errorf("content is %q, it must be random or text", r.Content)
	}
	if r.Size < 0 || r.Count == 0 {
		return fmt.Errorf("a run needs a count above zero and a size of at least zero bytes")
	}
	return nil
}

// payload is message n of the run.
func (r run) payload(n uint64) []byte {
	var label [16]byte
	binary.BigEndian.PutUint64(label[:8], r.Seed)
	binary.BigEndian.PutUint64(label[8:], n)
	out := make([]byte, 8+max(r.Size, repeated))
	binary.BigEndian.PutUint64(out, n)
	xof := sha3.NewSHAKE128()
	xof.Write(label[:])
	if r.Content == "random" {
		xof.Read(out[8:])
	} else {
		xof.Read(out[8 : 8+repeated])
		for at := 8 + repeated; at < len(out); at += repeated {
			copy(out[at:], out[8:8+repeated])
		}
	}
	return out[:r.Size]
}

// ledger counts and hashes a series of payloads: SHA-256 over each one's length (8 bytes, big endian) and bytes.
type ledger struct {
	messages uint64
	bytes    uint64
	sha      hash.Hash
}

func newLedger() *ledger { return &ledger{sha: sha256.New()} }

func (l *ledger) add(payload []byte) {
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(len(payload)))
	l.sha.Write(length[:])
	l.sha.Write(payload)
	l.messages++
	l.bytes += uint64(len(payload))
}

func (l *ledger) entry() map[string]any {
	return map[string]any{"messages": l.messages, "bytes": l.bytes, "sha256": hex.EncodeToString(l.sha.Sum(nil))}
}
