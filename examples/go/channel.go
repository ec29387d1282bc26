package main

// One connection to a peer: its windows, its place in the stream of messages, and what to send again.

import pb "devp2pd/examples/go/gen/devp2p/v1"

// overhead is the cost of a message in a window beside its payload (WindowUpdate in the contract).
const overhead = 64

// window is the send window of a channel, of which SendWindowBytes and credit give the rest.
const window = 1 << 20

// application has the callbacks of a client, all called on the goroutine that is in run.
type application interface {
	opened(*channel)                    // a peer shares a protocol with us
	writable(*channel)                  // the window of this channel is open: send while credit > 0
	message(*channel, uint32, []byte)   // a message of the peer
	lost(*channel, uint64)              // so many messages of the peer never came
	closed(*channel, *pb.ChannelClosed) // the peer is gone
	told(event string, about fields)    // what else happens, for a log
}

type fields = map[string]any

// channel is one connection to a peer, for one protocol. It outlives our streams; its number does not.
type channel struct {
	client     *client
	id         uint32
	session    uint64
	peer       *pb.Peer
	credit     int64
	position   uint64
	parts      []byte
	recent     []*pb.OutboundMessage
	recentCost int64
}

func cost(payload []byte) int64 { return int64(len(payload)) + overhead }

func (c *channel) send(code uint32, payload []byte) {
	c.client.sends++
	message := &pb.OutboundMessage{ChannelIds: []uint32{c.id}, Code: code, Payload: payload, SendId: c.client.sends}
	c.client.out.put(&pb.ClientEvent{Event: &pb.ClientEvent_Message{Message: message}})
	c.credit -= cost(payload)
	c.recent, c.recentCost = append(c.recent, message), c.recentCost+cost(payload)
	// Messages a whole window back have been processed: without credit for them we could not have gone on.
	for first := cost(c.recent[0].Payload); c.recentCost-first > window; first = cost(c.recent[0].Payload) {
		c.recent, c.recentCost = c.recent[1:], c.recentCost-first
	}
}

// onStream takes a stream's report of this connection: our first one, or one after a stream that broke.
func (c *channel) onStream(opened *pb.ChannelOpened, lastSendID uint64) {
	c.id, c.credit, c.parts = opened.ChannelId, int64(opened.SendWindowBytes), nil
	c.miss(opened.Position - c.position) // what went to the stream that broke, and did not come
	recent := c.recent
	c.recent, c.recentCost = nil, 0
	for _, message := range recent { // what never reached the sidecar
		if message.SendId > lastSendID {
			c.send(message.Code, message.Payload)
		}
	}
	c.ready()
}

func (c *channel) ready() {
	if c.credit > 0 {
		c.client.app.writable(c)
	}
}

// received takes a message or a part of one, and returns its cost in our window.
func (c *channel) received(message *pb.InboundMessage) int64 {
	payload := message.Payload
	if fragment := message.Fragment; fragment != nil { // larger than our frames: the parts come in order
		if c.parts = append(c.parts, payload...); len(c.parts) < int(fragment.TotalBytes) {
			return int64(len(payload))
		}
		payload, c.parts = c.parts, nil
	}
	c.position++
	c.client.app.message(c, message.Code, payload)
	return cost(message.Payload)
}

func (c *channel) miss(messages uint64) {
	if c.position += messages; messages > 0 {
		c.client.app.lost(c, messages)
	}
}
