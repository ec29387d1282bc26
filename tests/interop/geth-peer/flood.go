package main

// Floods and silence: numbered messages at a pace, that need no answer, and a peer that does not read.

import (
	"sync"
	"time"
)

// codeFlood carries messages of a flood.
const codeFlood = 2

// flood sends messages of `size` bytes, `rate` a second, until count are sent or the connection ends.
func (p *peer) flood(r run, rate int) {
	go func() {
		started := time.Now()
		for n := uint64(0); n < r.Count; n++ {
			// Eight at a time: a timer cannot wait for one.
			if n%8 == 0 {
				time.Sleep(time.Until(started.Add(time.Duration(n) * time.Second / time.Duration(rate))))
			}
			if err := p.write(codeFlood, r.payload(n)); err != nil {
				p.emit("send-failed", map[string]any{"number": n, "error": err.Error()})
				return
			}
			p.flooded.Add(1)
		}
		p.emit("flooded", map[string]any{"sent": r.Count, "ms": time.Since(started).Milliseconds()})
	}()
}

// gate stops all readers while it is closed.
type gate struct {
	mu     sync.Mutex
	opened *sync.Cond
	closed bool
}

func newGate() *gate {
	g := &gate{}
	g.opened = sync.NewCond(&g.mu)
	return g
}

func (g *gate) set(closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = closed
	g.opened.Broadcast()
}

func (g *gate) pass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.closed {
		g.opened.Wait()
	}
}
