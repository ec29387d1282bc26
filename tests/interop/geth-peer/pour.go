package main

// Floods without a pace: as fast as the connection takes them, as an eth handler that serves a sync would write. What is
// measured is the longest write, because go-ethereum gives a connection up when one takes 20 seconds.

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

const (
	// codeAsk asks for an answer of the size that its first four bytes say (big endian); codeAnswered is that answer.
	codeAsk      = 3
	codeAnswered = 4
	// maxAsked is the largest answer: RLPx cannot carry more that does not compress.
	maxAsked = 16 << 20
)

// longest keeps the longest of many times.
type longest struct{ nanos atomic.Int64 }

func (l *longest) add(d time.Duration) {
	for {
		old := l.nanos.Load()
		if int64(d) <= old || l.nanos.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

func (l *longest) milliseconds() int64 { return l.nanos.Load() / int64(time.Millisecond) }

// noise is bytes that do not compress, made once: making them must not be what limits a flood.
func noise(size int) []byte {
	source := rand.NewChaCha8([32]byte{1})
	bytes := make([]byte, size)
	source.Read(bytes)
	return bytes
}

// pour writes messages of `size` bytes for so long. Each begins with its number.
func (p *peer) pour(size int, span time.Duration) {
	go func() {
		payload := noise(max(size, 8))
		var sent uint64
		started := time.Now()
		for time.Since(started) < span {
			binary.BigEndian.PutUint64(payload, sent)
			if err := p.timed(codeFlood, payload); err != nil {
				p.emit("send-failed", map[string]any{"number": sent, "error": err.Error(), "longest_write_ms": p.slowest.milliseconds()})
				return
			}
			sent++
			p.flooded.Add(1)
		}
		p.emit("poured", map[string]any{"sent": sent, "longest_write_ms": p.slowest.milliseconds()})
	}()
}

// asked answers a request for bytes, before the next message is read: as go-ethereum's protocols do.
func (p *peer) asked(request []byte) error {
	if len(request) < 4 {
		return errors.New("an ask of less than four bytes")
	}
	size := min(binary.BigEndian.Uint32(request), maxAsked)
	if len(p.answer) != int(size) {
		p.answer = noise(int(size))
	}
	return p.timed(codeAnswered, p.answer)
}

func (p *peer) timed(code uint64, payload []byte) error {
	started := time.Now()
	err := p.write(code, payload)
	p.slowest.add(time.Since(started))
	return err
}
