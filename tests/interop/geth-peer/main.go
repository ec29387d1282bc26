// geth-peer is the other end of the interoperability tests: go-ethereum's own p2p.Server, running echo/1 (and, with
// -eth, eth/69 as go-ethereum speaks it), and telling what it saw as JSON lines.
//
// The first line on stdout is {"event":"ready","enode":…,"enr":…}. Then commands on stdin, one JSON object a line,
// are each answered by {"event":"ok"} or {"event":"error"}; events meanwhile have lines of their own (peer-add,
// peer-drop, answered, difference, send-failed, unexpected). A peer is named by `node_id`; without it, the command
// is for the only peer there is.
//
//	{"cmd":"send","count":10,"size":100,"content":"random","seed":1}   numbered requests; ends in answered or difference
//	{"cmd":"flood","rate":1000,"count":10,"size":100,"content":"random","protocol":"echo"}   numbered, unanswered; ends in flooded
//	{"cmd":"pour","size":100,"seconds":10}                            random bytes, as fast as they go, from all peers that fit; each ends in poured
//	{"cmd":"stall"}, {"cmd":"unstall"}                                stop reading messages of all peers, and go on
//	{"cmd":"report"}                                                  counts and hashes per peer
//	{"cmd":"disconnect","reason":8}                                   leave that peer with a devp2p reason
//	{"cmd":"dial","node":"enode://…"}                                 keep this static peer
//	{"cmd":"tree","domain":"nodes.example"}                           a signed EIP-1459 tree with this node: url, txt
//	{"cmd":"quit"}                                                    stop the server and exit
//
// When stdin ends, there are no more commands, and it serves until SIGINT or SIGTERM: started from a script or in the
// background it has no stdin.
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
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

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
	protocols := flag.String("protocols", "echo", "names of the protocols that echo, separated by commas")
	withEth := flag.Bool("eth", false, "speak eth/69 too")
	chain := flag.String("chain", "", "be a node of this network's present (mainnet, sepolia, hoodi): announce its fork id, dial what discv5 finds of it")
	servers := flag.Int("servers", 1, "how many nodes to be; commands are for all of them")
	presets := flag.Bool("networks", false, "print what go-ethereum knows of the public networks, and exit")
	flag.Parse()

	out := &lines{ready: make(chan struct{})}
	if *presets {
		out.begin(networks())
		return
	}
	options := options{*listen, *keyHex, *static, *trusted, *bootnodes, *protocols, *discv4, *discv5, *withEth, *corrupt, *verbosity, *servers, *chain}
	if err := serve(out, options); err != nil {
		fmt.Fprintln(os.Stderr, "geth-peer:", err)
		os.Exit(1)
	}
}

type options struct {
	listen, key, static, trusted, bootnodes, protocols string
	discv4, discv5, eth                                bool
	corrupt                                            uint64
	verbosity, servers                                 int
	chain                                              string
}

func serve(out *lines, o options) error {
	level := log.FromLegacyLevel(o.verbosity)
	logger := log.NewLogger(log.NewTerminalHandlerWithLevel(os.Stderr, slog.Level(level), false))
	log.SetDefault(logger)
	peers := &peerSet{reading: newGate()}
	var server *p2p.Server
	for range o.servers {
		var err error
		if server, err = start(out, o, peers, logger); err != nil {
			return err
		}
		defer server.Stop()
	}
	self := server.Self()
	ready := map[string]any{"event": "ready", "enode": self.URLv4(), "enr": self.String(), "node_id": self.ID().String()}
	if o.eth {
		ready["eth_status"] = newGenesisChain().status()
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	out.begin(ready)
	quit := make(chan error, 1)
	go func() { quit <- obey(out, server, peers) }()
	select {
	case err := <-quit:
		return err
	case <-stop:
		return nil
	}
}

// obey performs the commands on stdin. It returns on the command quit, or if stdin cannot be read; when stdin ends, it
// never returns.
func obey(out *lines, server *p2p.Server, peers *peerSet) error {
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		var c command
		if err := json.Unmarshal(commands.Bytes(), &c); err != nil {
			out.print(map[string]any{"event": "error", "error": err.Error()})
			continue
		}
		if c.Cmd == "quit" {
			return nil
		}
		answer, err := c.perform(server, peers)
		if err != nil {
			answer = map[string]any{"event": "error", "cmd": c.Cmd, "error": err.Error()}
		}
		out.print(answer)
	}
	if err := commands.Err(); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "geth-peer: no more commands on stdin; serving until SIGINT or SIGTERM")
	select {}
}

// start makes one node.
func start(out *lines, o options, peers *peerSet, logger log.Logger) (*p2p.Server, error) {
	key, err := nodeKey(o.key)
	if err != nil {
		return nil, err
	}
	config := p2p.Config{
		PrivateKey: key, Name: "geth-peer", ListenAddr: o.listen, MaxPeers: 50, Logger: logger,
		DiscoveryV4: o.discv4, DiscoveryV5: o.discv5, NoDiscovery: !o.discv4 && !o.discv5,
	}
	for name := range strings.SplitSeq(o.protocols, ",") {
		config.Protocols = append(config.Protocols, p2p.Protocol{
			Name: name, Version: 1, Length: echoLength,
			Run: func(geth *p2p.Peer, rw p2p.MsgReadWriter) error {
				p := newPeer(geth, name, rw, out)
				peers.add(p)
				defer peers.remove(p)
				p.emit("peer-add", map[string]any{
					"name": geth.Fullname(), "inbound": geth.Inbound(), "static": geth.StaticDialed(),
				})
				return p.serve(o.corrupt, peers.reading)
			},
		})
	}
	found := newLaterIterator()
	if o.chain != "" {
		chain, err := newSyncedChain(o.chain)
		if err != nil {
			return nil, err
		}
		if !o.discv5 {
			return nil, errors.New("-chain finds nodes by discv5: it needs -discv5")
		}
		chain.join(&config.Protocols[0], found, out)
	}
	if o.eth {
		config.Protocols = append(config.Protocols, ethProtocol(newGenesisChain(), out))
	}
	for _, list := range []struct {
		text string
		into *[]*enode.Node
	}{{o.static, &config.StaticNodes}, {o.trusted, &config.TrustedNodes}, {o.bootnodes, &config.BootstrapNodes}} {
		if *list.into, err = nodes(list.text); err != nil {
			return nil, err
		}
	}
	config.BootstrapNodesV5 = config.BootstrapNodes

	server := &p2p.Server{Config: config}
	events := make(chan *p2p.PeerEvent, 1024)
	server.SubscribeEvents(events)
	go func() {
		for event := range events {
			if event.Type == p2p.PeerEventTypeDrop {
				out.print(map[string]any{"event": "peer-drop", "node_id": event.Peer.String(), "error": event.Error})
			}
		}
	}()
	if err := server.Start(); err != nil {
		return nil, err
	}
	if o.chain != "" {
		if err := claimListenAddress(server); err != nil {
			return nil, err
		}
		found.begin(server.DiscoveryV5().RandomNodes())
	}
	return server, nil
}

type command struct {
	Cmd    string `json:"cmd"`
	NodeID string `json:"node_id"`
	Node   string `json:"node"`
	Reason uint8  `json:"reason"`
	Domain string `json:"domain"`
	// Of which protocol the connection is meant; empty is any.
	Protocol string `json:"protocol"`
	Rate     int    `json:"rate"`
	Seconds  int    `json:"seconds"`
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
		p, err := peers.get(c.NodeID, c.Protocol)
		if err != nil {
			return nil, err
		}
		return answer, p.send(c.run)
	case "flood":
		p, err := peers.get(c.NodeID, c.Protocol)
		if err != nil {
			return nil, err
		}
		if err := c.run.check(); err != nil || c.Rate <= 0 {
			return nil, errors.Join(err, errors.New("a flood needs a rate above zero"))
		}
		p.flood(c.run, c.Rate)
		return answer, nil
	case "pour":
		pouring := peers.fitting(c.NodeID, c.Protocol)
		if len(pouring) == 0 {
			return nil, errors.New("no such peer is connected")
		}
		for _, p := range pouring {
			p.pour(c.Size, time.Duration(c.Seconds)*time.Second)
		}
		return answer, nil
	case "stall", "unstall":
		peers.reading.set(c.Cmd == "stall")
		return answer, nil
	case "disconnect":
		p, err := peers.get(c.NodeID, c.Protocol)
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

// peerSet has the connected peers, once for each protocol.
type peerSet struct {
	mu      sync.Mutex
	all     []*peer
	reading *gate
}

func (s *peerSet) add(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, p)
}

func (s *peerSet) remove(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(other *peer) bool { return other == p })
}

// fitting returns the connections of that peer and protocol; an empty word fits all.
func (s *peerSet) fitting(id, protocol string) []*peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*peer
	for _, p := range s.all {
		if (id == "" || id == p.geth.ID().String()) && (protocol == "" || protocol == p.protocol) {
			found = append(found, p)
		}
	}
	return found
}

func (s *peerSet) get(id, protocol string) (*peer, error) {
	found := s.fitting(id, protocol)
	switch len(found) {
	case 0:
		return nil, errors.New("no such peer is connected")
	case 1:
		return found[0], nil
	}
	return nil, errors.New("several connections fit: name one by node_id and protocol")
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

// lines prints whole JSON lines from many goroutines, once the first one has been printed: the reader waits for
// that, and a peer may be there before it.
type lines struct {
	mu    sync.Mutex
	ready chan struct{}
}

// begin prints the first line.
func (l *lines) begin(value map[string]any) {
	l.write(value)
	close(l.ready)
}

func (l *lines) print(value map[string]any) {
	<-l.ready
	l.write(value)
}

func (l *lines) write(value map[string]any) {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // maps of strings and numbers always have a JSON form
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Println(string(text))
}
