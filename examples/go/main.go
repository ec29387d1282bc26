// An application on top of devp2pd: it speaks echo/1 with every peer that does.
//
// echo/1 is the smallest protocol there can be. Code 0 is a request, and its receiver answers with the same bytes
// as code 1. This application answers the requests of its peers, sends -count numbered requests of its own to each peer
// that appears, compares the answers byte by byte, and goes on when peers come and go, the stream breaks or the sidecar
// restarts.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	pb "devp2pd/examples/go/gen/devp2p/v1"
)

const (
	request = 0
	answer  = 1
)

// peer is our books about one peer.
type peer struct {
	sent, answers, requests ledger
	owed                    [][]byte
	next                    uint64 // number of the answer that comes next
	missing, lost           uint64 // messages that were lost and not found missing yet; all that were lost
	done                    bool
	since                   time.Time
}

type echo struct {
	address, bearer, ca, clientID, content string
	count, seed                            uint64
	size, maxFrame                         int
	json                                   bool
	peers                                  map[*channel]*peer
}

func (e *echo) opened(c *channel) {
	e.peers[c] = &peer{sent: newLedger(), answers: newLedger(), requests: newLedger(), since: time.Now()}
	e.say(c, "peer-opened", fields{"name": c.peer.ClientName, "inbound": c.peer.Inbound})
}

// writable sends while the window is open: first the answers that we owe, then requests of our own.
func (e *echo) writable(c *channel) {
	for p := e.peers[c]; c.credit > 0; {
		if len(p.owed) > 0 {
			c.send(answer, p.owed[0])
			p.owed = p.owed[1:]
		} else if p.sent.messages < e.count {
			data := e.payload(p.sent.messages)
			p.sent.add(data)
			c.send(request, data)
		} else {
			return
		}
	}
}

func (e *echo) message(c *channel, code uint32, data []byte) {
	p := e.peers[c]
	switch {
	case code == request:
		p.requests.add(data)
		p.owed = append(p.owed, data)
		e.writable(c)
	case code == answer && p.next < p.sent.messages:
		for p.missing > 0 && !bytes.Equal(data, e.payload(p.next)) {
			p.next, p.missing = p.next+1, p.missing-1
		}
		if !bytes.Equal(data, e.payload(p.next)) {
			e.say(c, "difference", fields{"number": p.next, "bytes": len(data)})
		}
		p.answers.add(data)
		if p.next++; p.next%max(1, e.count/10) == 0 {
			e.say(c, "answer", fields{"number": p.next, "bytes": len(data)})
		}
		e.finish(c)
	default:
		e.say(c, "unexpected", fields{"code": code, "bytes": len(data)})
	}
}

func (e *echo) lost(c *channel, messages uint64) {
	p := e.peers[c]
	p.missing, p.lost = p.missing+messages, p.lost+messages
	e.say(c, "lost", fields{"messages": messages})
	e.finish(c)
}

func (e *echo) finish(c *channel) {
	if p := e.peers[c]; !p.done && p.sent.messages > 0 && p.next+p.missing >= e.count {
		p.done = true
		e.say(c, "answered", fields{"seconds": time.Since(p.since).Seconds(), "sent": p.sent.entry(), "answers": p.answers.entry(), "lost": p.lost})
	}
}

func (e *echo) closed(c *channel, closed *pb.ChannelClosed) {
	p := e.peers[c]
	delete(e.peers, c)
	e.say(c, "peer-closed", fields{"reason": closed.Reason.String(), "by": closed.By, "detail": closed.Detail,
		"unsent": closed.UnsentMessages, "requests": p.requests.entry(), "answers": p.answers.entry()})
}

func (e *echo) payload(n uint64) []byte { return payload(n, e.size, e.content, e.seed) }

func (e *echo) say(c *channel, event string, about fields) {
	about["node_id"] = c.peer.NodeId
	e.told(event, about)
}

func (e *echo) told(event string, about fields) {
	if !e.json {
		fmt.Printf("%-14s %v\n", event, about)
		return
	}
	line := fields{"event": event}
	for key, value := range about {
		line[key] = value
	}
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		log.Fatal(err)
	}
}

func main() {
	e := &echo{peers: map[*channel]*peer{}}
	flag.StringVar(&e.address, "address", "127.0.0.1:50051", "the sidecar's gRPC address, or unix:PATH")
	flag.StringVar(&e.bearer, "token", "", "bearer token, if the sidecar has an access file")
	flag.StringVar(&e.ca, "ca", "", "PEM file with the CA of the sidecar's certificate, if it has TLS")
	flag.StringVar(&e.clientID, "client-id", "echo", "this application's name at the sidecar")
	flag.Uint64Var(&e.count, "count", 10, "requests to send to each peer")
	flag.IntVar(&e.size, "size", 100, "bytes of each request")
	flag.StringVar(&e.content, "content", "text", "text (can be compressed) or random")
	flag.Uint64Var(&e.seed, "seed", 1, "another seed, other bytes")
	flag.IntVar(&e.maxFrame, "max-frame", 4<<20, "largest gRPC message we accept, in bytes")
	flag.BoolVar(&e.json, "json", false, "print JSON lines")
	flag.Parse()

	transport := insecure.NewCredentials()
	if e.ca != "" {
		var err error
		if transport, err = credentials.NewClientTLSFromFile(e.ca, ""); err != nil {
			log.Fatal(err)
		}
	}
	connection, err := grpc.NewClient(e.address, grpc.WithTransportCredentials(transport))
	if err != nil {
		log.Fatal(err)
	}
	spec := &pb.RegistrationSpec{ClientId: e.clientID, Protocols: []*pb.ProtocolSpec{{Name: "echo", Version: 1, MessageCount: 8}}}
	(&client{app: e, spec: spec, token: e.bearer, maxFrame: uint32(e.maxFrame)}).run(connection)
}
