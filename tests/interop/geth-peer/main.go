// geth-peer is the other end of the interoperability tests: go-ethereum's own p2p.Server, running one protocol,
// echo/1, and telling what it saw as JSON lines.
//
// The first line on stdout is {"event":"ready","enode":…,"enr":…}. Then commands on stdin, one JSON object a line,
// are each answered by {"event":"ok"} or {"event":"error"}; what happens meanwhile has lines of its own (peer-add,
// peer-drop, answered, difference, send-failed, unexpected). A peer is named by `node_id`; without it, the command
// is for the only peer there is.
//
//	{"cmd":"send","count":10,"size":100,"content":"random","seed":1}   numbered requests; ends in answered or difference
//	{"cmd":"report"}                                                  counts and hashes per peer
//	{"cmd":"disconnect","reason":8}                                   leave that peer with a devp2p reason
//	{"cmd":"dial","node":"enode://…"}                                 keep this static peer
//	{"cmd":"tree","domain":"nodes.example"}                           a signed EIP-1459 tree with this node: url, txt
//	{"cmd":"quit"}                                                    stop the server and exit
package main

import (
	"bufio"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/dnsdisc"
	"github.com/ethereum/go-ethereum/p2p/enode"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "TCP address to accept peers on (also UDP with -discv4 or -discv5)")
	keyHex := flag.String("key", "", "node key, 64 hex digits; empty makes a fresh one")
	static := flag.String("static", "", "enode URLs to dial and keep, separated by commas")
	trusted := flag.String("trusted", "", "enode URLs that are always let in, separated by commas")
	bootnodes := flag.String("bootnodes", "", "enode or enr texts to start discovery from, separated by commas")
	discv4 := flag.Bool("discv4", false, "run discovery v4")
	discv5 := flag.Bool("discv5", false, "run discovery v5")
	corrupt := flag.Uint64("corrupt", 0, "falsify this answer (counted from 1), to see that the other end notices")
	verbosity := flag.Int("verbosity", 4, "geth's log on stderr: 1 errors … 5 everything")
	presets := flag.Bool("networks", false, "print what go-ethereum knows of the public networks, and exit")
	flag.Parse()

	out := &lines{}
	if *presets {
		out.print(networks())
		return
	}
	if err := serve(out, *listen, *keyHex, *static, *trusted, *bootnodes, *discv4, *discv5, *corrupt, *verbosity); err != nil {
		fmt.Fprintln(os.Stderr, "geth-peer:", err)
		os.Exit(1)
	}
}

func serve(out *lines, listen, keyHex, static, trusted, bootnodes string, discv4, discv5 bool, corrupt uint64, verbosity int) error {
	key, err := nodeKey(keyHex)
	if err != nil {
		return err
	}
	level := log.FromLegacyLevel(verbosity)
	logger := log.NewLogger(log.NewTerminalHandlerWithLevel(os.Stderr, slog.Level(level), false))
	log.SetDefault(logger)
	peers := &peerSet{all: map[enode.ID]*peer{}}
	config := p2p.Config{
		PrivateKey: key, Name: "geth-peer", ListenAddr: listen, MaxPeers: 50, Logger: logger,
		DiscoveryV4: discv4, DiscoveryV5: discv5, NoDiscovery: !discv4 && !discv5,
		Protocols: []p2p.Protocol{{
			Name: "echo", Version: 1, Length: echoLength,
			Run: func(geth *p2p.Peer, rw p2p.MsgReadWriter) error {
				p := newPeer(geth, rw, out)
				peers.add(p)
				defer peers.remove(p)
				p.emit("peer-add", map[string]any{
					"name": geth.Fullname(), "inbound": geth.Inbound(), "static": geth.StaticDialed(),
				})
				return p.serve(corrupt)
			},
		}},
	}
	for _, list := range []struct {
		text string
		into *[]*enode.Node
	}{{static, &config.StaticNodes}, {trusted, &config.TrustedNodes}, {bootnodes, &config.BootstrapNodes}} {
		if *list.into, err = nodes(list.text); err != nil {
			return err
		}
	}
	config.BootstrapNodesV5 = config.BootstrapNodes

	server := &p2p.Server{Config: config}
	events := make(chan *p2p.PeerEvent, 1024)
	defer server.SubscribeEvents(events).Unsubscribe()
	go func() {
		for event := range events {
			if event.Type == p2p.PeerEventTypeDrop {
				out.print(map[string]any{"event": "peer-drop", "node_id": event.Peer.String(), "error": event.Error})
			}
		}
	}()
	if err := server.Start(); err != nil {
		return err
	}
	defer server.Stop()
	self := server.Self()
	out.print(map[string]any{"event": "ready", "enode": self.URLv4(), "enr": self.String(), "node_id": self.ID().String()})

	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		var c command
		if err := json.Unmarshal(commands.Bytes(), &c); err != nil {
			out.print(map[string]any{"event": "error", "error": err.Error()})
			continue
		}
		if c.Cmd == "quit" {
			break
		}
		answer, err := c.perform(server, peers)
		if err != nil {
			answer = map[string]any{"event": "error", "cmd": c.Cmd, "error": err.Error()}
		}
		out.print(answer)
	}
	return commands.Err()
}

type command struct {
	Cmd    string `json:"cmd"`
	NodeID string `json:"node_id"`
	Node   string `json:"node"`
	Reason uint8  `json:"reason"`
	Domain string `json:"domain"`
	run
}

func (c command) perform(server *p2p.Server, peers *peerSet) (map[string]any, error) {
	answer := map[string]any{"event": "ok", "cmd": c.Cmd}
	switch c.Cmd {
	case "report":
		answer["peers"] = peers.entries()
		return answer, nil
	case "dial":
		node, err := enode.Parse(enode.ValidSchemes, c.Node)
		if err != nil {
			return nil, err
		}
		server.AddPeer(node)
		return answer, nil
	case "tree":
		tree, err := dnsdisc.MakeTree(1, []*enode.Node{server.Self()}, nil)
		if err != nil {
			return nil, err
		}
		answer["url"], err = tree.Sign(server.PrivateKey, c.Domain)
		answer["txt"] = tree.ToTXT(c.Domain)
		return answer, err
	case "send":
		p, err := peers.get(c.NodeID)
		if err != nil {
			return nil, err
		}
		return answer, p.send(c.run)
	case "disconnect":
		p, err := peers.get(c.NodeID)
		if err != nil {
			return nil, err
		}
		p.geth.Disconnect(p2p.DiscReason(c.Reason))
		return answer, nil
	}
	return nil, fmt.Errorf("unknown command %q", c.Cmd)
}

func nodeKey(text string) (*ecdsa.PrivateKey, error) {
	if text == "" {
		return crypto.GenerateKey()
	}
	return crypto.HexToECDSA(text)
}

func nodes(list string) ([]*enode.Node, error) {
	var found []*enode.Node
	for text := range strings.SplitSeq(list, ",") {
		if text == "" {
			continue
		}
		node, err := enode.Parse(enode.ValidSchemes, text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		found = append(found, node)
	}
	return found, nil
}

// peerSet is who is connected now.
type peerSet struct {
	mu  sync.Mutex
	all map[enode.ID]*peer
}

func (s *peerSet) add(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[p.geth.ID()] = p
}

func (s *peerSet) remove(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[p.geth.ID()] == p {
		delete(s.all, p.geth.ID())
	}
}

func (s *peerSet) get(id string) (*peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.all {
		if id == p.geth.ID().String() || id == "" && len(s.all) == 1 {
			return p, nil
		}
	}
	if id == "" && len(s.all) > 1 {
		return nil, errors.New("several peers are connected: name one by node_id")
	}
	return nil, errors.New("no such peer is connected")
}

func (s *peerSet) entries() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := []map[string]any{}
	for _, p := range s.all {
		entries = append(entries, p.entry())
	}
	return entries
}

// lines prints whole JSON lines from many goroutines.
type lines struct{ mu sync.Mutex }

func (l *lines) print(value map[string]any) {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // maps of strings and numbers always have a JSON form
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Println(string(text))
}
