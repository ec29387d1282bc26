package main

import (
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/params"
)

// networks says what go-ethereum knows of the public networks, in the form of tests/vectors/networks.json.
func networks() map[string]any {
	all := map[string]any{}
	for _, network := range []struct {
		name      string
		config    *params.ChainConfig
		genesis   common.Hash
		bootnodes []string
	}{
		{"mainnet", params.MainnetChainConfig, params.MainnetGenesisHash, params.MainnetBootnodes},
		{"sepolia", params.SepoliaChainConfig, params.SepoliaGenesisHash, params.SepoliaBootnodes},
		{"hoodi", params.HoodiChainConfig, params.HoodiGenesisHash, params.HoodiBootnodes},
	} {
		heights, times := forks(network.config)
		all[network.name] = map[string]any{
			"bootnodes":    network.bootnodes,
			"dns_tree":     params.KnownDNSNetwork(network.genesis, "all"),
			"genesis_hash": fmt.Sprintf("%x", network.genesis),
			"fork_heights": heights,
			"fork_times":   times,
		}
	}
	all["bootnodes_v5"] = params.V5Bootnodes
	return all
}

// forks lists the heights and times in a chain's configuration, each once, without those of the genesis rules.
func forks(config *params.ChainConfig) (heights, times []uint64) {
	heights, times = []uint64{}, []uint64{}
	fields := reflect.TypeOf(*config)
	values := reflect.ValueOf(*config)
	for i := range fields.NumField() {
		name := fields.Field(i).Name
		switch value := values.Field(i).Interface().(type) {
		case *big.Int:
			if strings.HasSuffix(name, "Block") && value != nil && value.Sign() > 0 {
				heights = append(heights, value.Uint64())
			}
		case *uint64:
			if strings.HasSuffix(name, "Time") && value != nil && *value > 0 {
				times = append(times, *value)
			}
		}
	}
	for _, list := range []*[]uint64{&heights, &times} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return heights, times
}
