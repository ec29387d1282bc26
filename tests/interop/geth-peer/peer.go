package main

// One connection to one peer: the echo/1 protocol and this end's ledgers.

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
)

// echo/1: the receiver of code 0 answers with the same bytes as code 1. The other six codes are unused; the length
// of 8 leaves room for the tests that send unused codes.
const (
	codeRequest = 0
	codeAnswer  = 1
	echoLength  = 8
)

// Requests that may wait for their answers, in bytes, as in examples/python/echo.py: the sidecar between us and the
// application queues 1 MiB for a peer and refuses more, and our requests come back through that queue.
// One message may always go, however large; messageCost is what an empty one is taken for.
const (
	inFlight    = 256 * 1024
	messageCost = 64
)

// peer is one live connection.
type peer struct {
	geth     *p2p.Peer
	protocol string
	rw       p2p.MsgReadWriter
	out      *lines
	flooded  atomic.Uint64 // messages of a flood that were sent
	took     atomic.Uint64 // messages of a flood that came in
	slowest  longest       // write of a message that is poured or asked for
	answer   []byte        // the answer to the last ask

	mu       sync.Mutex
	room     *sync.Cond // of mu: an answer came, or the connection ended
	waiting  int        // bytes of requests without an answer
	gone     bool
	requests *ledger // code 0 that came in
	answers  *ledger // code 1 that came in
	sent     *ledger // code 0 that we sent
	run      *run    // the series under way, if any
	started  time.Time
}

func newPeer(geth *p2p.Peer, protocol string, rw p2p.MsgReadWriter, out *lines) *peer {
	p := &peer{geth: geth, protocol: protocol, rw: rw, out: out, requests: newLedger(), answers: newLedger(), sent: newLedger()}
	p.room = sync.NewCond(&p.mu)
	return p
}

// serve reads until the connection ends. corruptAt is the answer (counted from 1) to falsify; 0 is none.
func (p *peer) serve(corruptAt uint64, reading *gate) error {
	defer p.end()
	for {
		reading.pass()
		msg, err := p.rw.ReadMsg()
		if err != nil {
			return err
		}
		payload, err := io.ReadAll(msg.Payload)
		if err != nil {
			return err
		}
		switch msg.Code {
		case codeRequest:
			p.mu.Lock()
			p.requests.add(payload)
			falsify := p.requests.messages == corruptAt && len(payload) > 0
			p.mu.Unlock()
			if falsify {
				payload = bytes.Clone(payload)
				payload[len(payload)/2] ^= 1
			}
			if err := p.write(codeAnswer, payload); err != nil {
				return err
			}
		case codeAnswer:
			p.answered(payload)
		case codeFlood:
			p.took.Add(1)
		case codeAsk:
			if err := p.asked(payload); err != nil {
				return err
			}
		default:
			p.emit("unexpected", map[string]any{"code": msg.Code, "bytes": len(payload)})
		}
	}
}

func (p *peer) write(code uint64, payload []byte) error {
	return p.rw.WriteMsg(p2p.Msg{Code: code, Size: uint32(len(payload)), Payload: bytes.NewReader(payload)})
}

// send writes a whole series as requests; the answers are compared as they come.
func (p *peer) send(r run) error {
	if err := r.check(); err != nil {
		return err
	}
	p.mu.Lock()
	if p.run != nil {
		p.mu.Unlock()
		return fmt.Errorf("a series to this peer is under way")
	}
	p.run, p.started = &r, time.Now()
	p.sent, p.answers, p.waiting = newLedger(), newLedger(), 0
	p.mu.Unlock()
	go func() {
		for n := uint64(0); n < r.Count; n++ {
			payload := r.payload(n)
			p.mu.Lock()
			for p.waiting >= inFlight && !p.gone {
				p.room.Wait()
			}
			p.waiting += len(payload) + messageCost
			p.sent.add(payload)
			p.mu.Unlock()
			if err := p.write(codeRequest, payload); err != nil {
				p.emit("send-failed", map[string]any{"number": n, "error": err.Error()})
				return
			}
		}
	}()
	return nil
}

// answered compares an answer with what that number must have been and says so when the series is complete.
func (p *peer) answered(payload []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil {
		p.answers.add(payload)
		return
	}
	n := p.answers.messages
	p.answers.add(payload)
	p.waiting -= len(payload) + messageCost
	p.room.Signal()
	if want := p.run.payload(n); !bytes.Equal(want, payload) {
		p.emit("difference", map[string]any{
			"number": n, "at": firstDifference(want, payload), "want_bytes": len(want), "got_bytes": len(payload),
		})
		p.run = nil
		return
	}
	if p.answers.messages == p.run.Count {
		p.emit("answered", map[string]any{
			"sent": p.sent.entry(), "answers": p.answers.entry(), "ms": time.Since(p.started).Milliseconds(),
		})
		p.run = nil
	}
}

// end lets a series that waits for room fail on the write that follows.
func (p *peer) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	p.room.Broadcast()
}

func firstDifference(a, b []byte) int {
	for at := range min(len(a), len(b)) {
		if a[at] != b[at] {
			return at
		}
	}
	return min(len(a), len(b))
}

// entry is what `report` says of this peer.
func (p *peer) entry() map[string]any {
	p.mu.Lock()
	defer p.mu.Unlock()
	return map[string]any{
		"node_id": p.geth.ID().String(), "name": p.geth.Fullname(), "inbound": p.geth.Inbound(),
		"protocol": p.protocol, "flooded": p.flooded.Load(), "took": p.took.Load(), "longest_write_ms": p.slowest.milliseconds(), "trusted": p.geth.Trusted(), "requests": p.requests.entry(), "answers": p.answers.entry(),
	}
}

func (p *peer) emit(event string, fields map[string]any) {
	fields["event"], fields["node_id"], fields["protocol"] = event, p.geth.ID().String(), p.protocol
	p.out.print(fields)
}
