package main

// The messages that wait for the stream.

import (
	"sync"

	pb "devp2pd/examples/go/gen/devp2p/v1"
)

// All that is ready goes into one frame, up to this much.
const (
	frameEvents = 512
	frameBytes  = 256 * 1024
)

// outbox holds the messages that wait for the stream. Credit bounds it.
type outbox struct {
	sync.Mutex
	events []*pb.ClientEvent
	wake   chan struct{}
}

func (o *outbox) put(event *pb.ClientEvent) {
	o.Lock()
	o.events = append(o.events, event)
	o.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take returns the messages of the next frame.
func (o *outbox) take() []*pb.ClientEvent {
	o.Lock()
	defer o.Unlock()
	count, size := 0, 0
	for count < len(o.events) && count < frameEvents {
		if size += len(o.events[count].GetMessage().GetPayload()); count > 0 && size > frameBytes {
			break
		}
		count++
	}
	frame := o.events[:count:count]
	o.events = o.events[count:]
	return frame
}
