package main

// eth/69 as go-ethereum's own handler speaks it: its Status handshake with its deadline, over the chain of mainnet's
// genesis block. Messages after the handshake are counted; requests for headers are answered with none.

import (
	"encoding/hex"
	"fmt"

	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/forkid"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/eth/protocols/eth"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/params"
	"github.com/ethereum/go-ethereum/rlp"
)

const networkID = 1

// genesisChain is mainnet before its first block.
type genesisChain struct{ genesis *types.Block }

func newGenesisChain() genesisChain { return genesisChain{core.DefaultGenesisBlock().ToBlock()} }

func (c genesisChain) Config() *params.ChainConfig  { return params.MainnetChainConfig }
func (c genesisChain) Genesis() *types.Block        { return c.genesis }
func (c genesisChain) CurrentHeader() *types.Header { return c.genesis.Header() }

// status is the Status message of a node with this chain, as an application would send it.
func (c genesisChain) status() string {
	packet := eth.StatusPacket{
		ProtocolVersion: eth.ETH69, NetworkID: networkID, Genesis: c.genesis.Hash(),
		ForkID: forkid.NewID(c.Config(), c.genesis, 0, c.genesis.Time()), LatestBlockHash: c.genesis.Hash(),
	}
	encoded, err := rlp.EncodeToBytes(&packet)
	if err != nil {
		panic(err) // a struct of numbers and bytes always has an encoding
	}
	return hex.EncodeToString(encoded)
}

// ethProtocol is eth/69 over this chain.
func ethProtocol(chain genesisChain, out *lines) p2p.Protocol {
	return p2p.Protocol{Name: eth.ProtocolName, Version: eth.ETH69, Length: 18, Run: func(geth *p2p.Peer, rw p2p.MsgReadWriter) error {
		say := func(event string, fields map[string]any) {
			fields["event"], fields["node_id"] = event, geth.ID().String()
			out.print(fields)
		}
		peer := eth.NewPeer(eth.ETH69, geth, rw, nil, nil, chain.Config())
		defer peer.Close()
		blocks := eth.BlockRangeUpdatePacket{LatestBlockHash: chain.genesis.Hash()}
		if err := peer.Handshake(networkID, chain, blocks); err != nil {
			say("eth-refused", map[string]any{"error": err.Error()})
			return err
		}
		say("eth-up", map[string]any{})
		for {
			msg, err := rw.ReadMsg()
			if err != nil {
				return err
			}
			if msg.Code != eth.GetBlockHeadersMsg {
				return fmt.Errorf("unexpected code %d", msg.Code)
			}
			var query eth.GetBlockHeadersPacket
			if err := msg.Decode(&query); err != nil {
				return err
			}
			say("eth-asked", map[string]any{"request_id": query.RequestId})
			if err := peer.ReplyBlockHeadersRLP(query.RequestId, nil); err != nil {
				return err
			}
		}
	}}
}
