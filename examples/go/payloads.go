package main

// Numbered payloads that both ends can make, and ledgers that both ends can compare: as in tests/interop/geth-peer.

import (
	"crypto/sha256"
	"crypto/sha3"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// period is that of "text": short enough for snappy's window to find it at once.
const period = 64

// payload is message n of a series: n as 8 bytes (big endian) and then content, cut to size.
func payload(n uint64, size int, content string, seed uint64) []byte {
	label := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, seed), n)
	out := make([]byte, 8+max(size, period))
	binary.BigEndian.PutUint64(out, n)
	source := sha3.NewSHAKE128()
	source.Write(label)
	if content == "random" {
		source.Read(out[8:])
	} else {
		source.Read(out[8 : 8+period])
		for at := 8 + period; at < len(out); at += period {
			copy(out[at:], out[8:8+period])
		}
	}
	return out[:size]
}

// ledger counts and hashes payloads: SHA-256 over each one's length (8 bytes, big endian) and bytes.
type ledger struct {
	messages, bytes uint64
	sha             hash.Hash
}

func newLedger() ledger { return ledger{sha: sha256.New()} }

func (l *ledger) add(payload []byte) {
	l.sha.Write(binary.BigEndian.AppendUint64(nil, uint64(len(payload))))
	l.sha.Write(payload)
	l.messages, l.bytes = l.messages+1, l.bytes+uint64(len(payload))
}

func (l *ledger) entry() fields {
	return fields{"messages": l.messages, "bytes": l.bytes, "sha256": hex.EncodeToString(l.sha.Sum(nil))}
}
