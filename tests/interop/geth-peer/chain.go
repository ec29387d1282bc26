package main

// A node of a public network's present: it announces the fork id that the network's clients announce now, and dials only
// nodes that go-ethereum's fork filter accepts, found by discv5, as go-ethereum's own eth service does.

import (
	"fmt"
	"math/big"
	"net/netip"
	"time"

	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/forkid"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/params"
	"github.com/ethereum/go-ethereum/rlp"
)

// syncedChain is a chain whose head is as far as the clock.
type syncedChain struct {
	config  *params.ChainConfig
	genesis *types.Block
}

func newSyncedChain(network string) (syncedChain, error) {
	switch network {
	case "mainnet":
		return syncedChain{params.MainnetChainConfig, core.DefaultGenesisBlock().ToBlock()}, nil
	case "sepolia":
		return syncedChain{params.SepoliaChainConfig, core.DefaultSepoliaGenesisBlock().ToBlock()}, nil
	case "hoodi":
		return syncedChain{params.HoodiChainConfig, core.DefaultHoodiGenesisBlock().ToBlock()}, nil
	}
	return syncedChain{}, fmt.Errorf("-chain %q is none of mainnet, sepolia, hoodi", network)
}

func (c syncedChain) Config() *params.ChainConfig { return c.config }
func (c syncedChain) Genesis() *types.Block       { return c.genesis }

// CurrentHeader is above every fork by height: the latest was in 2022.
func (c syncedChain) CurrentHeader() *types.Header {
	return &types.Header{Number: big.NewInt(30_000_000), Time: uint64(time.Now().Unix())}
}

// ethEntry is the entry of a node record by which clients tell chains apart (EIP-2124).
type ethEntry struct {
	ForkID forkid.ID
	Rest   []rlp.RawValue `rlp:"tail"`
}

func (ethEntry) ENRKey() string { return "eth" }

// join makes a protocol one of the chain.
func (c syncedChain) join(protocol *p2p.Protocol, found enode.Iterator, out *lines) {
	filter := forkid.NewFilter(c)
	protocol.Attributes = append(protocol.Attributes, ethEntry{ForkID: forkid.NewIDWithChain(c)})
	protocol.DialCandidates = enode.Filter(found, func(node *enode.Node) bool {
		var entry ethEntry
		if err := node.Load(&entry); err != nil {
			return false
		}
		err := filter(entry.ForkID)
		say := map[string]any{"event": "candidate", "node_id": node.ID().String(), "hash": fmt.Sprintf("%x", entry.ForkID.Hash), "accepted": err == nil}
		out.print(say)
		return err == nil
	})
}

// claimListenAddress puts the address that the server listens on into its record, where 127.0.0.1 stands otherwise: nodes of
// different networks can then be told apart on one machine.
func claimListenAddress(server *p2p.Server) error {
	addr, err := netip.ParseAddrPort(server.ListenAddr)
	if err != nil {
		return err
	}
	server.LocalNode().SetStaticIP(addr.Addr().AsSlice())
	return nil
}

// laterIterator is discv5's, which exists only once the server runs, while protocols are given before.
type laterIterator struct {
	enode.Iterator
	ready chan struct{}
}

func newLaterIterator() *laterIterator { return &laterIterator{ready: make(chan struct{})} }

func (l *laterIterator) begin(found enode.Iterator) {
	l.Iterator = found
	close(l.ready)
}

func (l *laterIterator) Next() bool {
	<-l.ready
	return l.Iterator.Next()
}

func (l *laterIterator) Close() {
	<-l.ready
	l.Iterator.Close()
}
