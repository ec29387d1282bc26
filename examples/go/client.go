package main

// A client for every application on top of devp2pd, for any protocol: one Exchange stream, with credit in both
// directions, that is made again when it breaks, and counts lost messages.

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	mrand "math/rand/v2"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "devp2pd/examples/go/gen/devp2p/v1"
)

// Another attempt cannot help: the request is wrong, or (Aborted) another process took our place.
var fatal = []codes.Code{codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.Unimplemented, codes.Aborted}

// client keeps one stream to a sidecar.
type client struct {
	app      application
	spec     *pb.RegistrationSpec
	token    string // bearer token, or empty
	maxFrame uint32

	out                  *outbox
	sends, lastSendID    uint64
	resumeToken, attempt string
	channels             map[uint32]*channel // of this stream
	sessions, former     map[uint64]*channel // told on this stream, and on earlier ones alone
	unheard              uint32              // existing connections that are still to be told on this stream
	delay                time.Duration
}

// run answers when trying again would not help.
func (c *client) run(connection *grpc.ClientConn) {
	c.delay, c.attempt, c.sessions = 100*time.Millisecond, rand.Text(), map[uint64]*channel{}
	for {
		c.out, c.channels = &outbox{wake: make(chan struct{}, 1)}, map[uint32]*channel{}
		c.former, c.sessions = c.sessions, map[uint64]*channel{}
		err := c.stream(connection)
		if errors.Is(err, io.EOF) {
			c.app.told("stream-ended", nil)
		} else {
			c.app.told("stream-broken", fields{"code": status.Code(err).String(), "detail": err.Error()})
		}
		if slices.Contains(fatal, status.Code(err)) {
			os.Exit(1)
		}
		if status.Code(err) == codes.NotFound { // the lease is over, or it is another sidecar
			c.resumeToken = ""
		}
		for session, channel := range c.former {
			c.sessions[session] = channel
		}
		time.Sleep(time.Duration(float64(c.delay) * (0.5 + mrand.Float64())))
		c.delay = min(2*c.delay, 5*time.Second)
	}
}

func (c *client) stream(connection *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if c.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
	}
	limit := grpc.MaxCallRecvMsgSize(int(c.maxFrame) + 65536)
	stream, err := pb.NewMessageServiceClient(connection).Exchange(ctx, limit)
	if err != nil {
		return err
	}
	attach := &pb.Attach{MaxFrameBytes: c.maxFrame, RequestId: c.attempt, Target: &pb.Attach_Spec{Spec: c.spec}}
	if c.resumeToken != "" {
		attach.Target = &pb.Attach_ResumeToken{ResumeToken: c.resumeToken}
	}
	c.out.put(&pb.ClientEvent{Event: &pb.ClientEvent_Attach{Attach: attach}})
	go func(out *outbox) {
		for {
			select {
			case <-ctx.Done():
				return
			case <-out.wake:
			}
			for frame := out.take(); len(frame) > 0; frame = out.take() {
				if stream.Send(&pb.ExchangeRequest{Events: frame}) != nil {
					return // Recv says why
				}
			}
		}
	}(c.out)
	for {
		frame, err := stream.Recv()
		if err != nil {
			return err
		}
		c.handle(frame.Events)
	}
}

func (c *client) handle(events []*pb.ServerEvent) {
	spent := map[uint32]int64{}
	for _, event := range events {
		switch event := event.Event.(type) {
		case *pb.ServerEvent_Message:
			paid := c.channels[event.Message.ChannelId].received(event.Message)
			spent[event.Message.ChannelId] += paid
			spent[0] += paid // 0 is the stream
		case *pb.ServerEvent_Attached:
			c.attached(event.Attached)
		case *pb.ServerEvent_ChannelOpened:
			c.opened(event.ChannelOpened)
		case *pb.ServerEvent_WindowUpdate:
			if channel := c.channels[event.WindowUpdate.ChannelId]; channel != nil { // it may have been closed
				channel.credit += int64(event.WindowUpdate.Bytes)
				channel.ready()
			}
		case *pb.ServerEvent_ChannelClosed:
			channel := c.channels[event.ChannelClosed.ChannelId]
			delete(c.channels, channel.id)
			delete(c.sessions, channel.session)
			c.app.closed(channel, event.ChannelClosed)
		case *pb.ServerEvent_SendFailure:
			failure := event.SendFailure
			c.app.told("send-failed", fields{"channel": failure.ChannelId, "reason": failure.Reason.String(), "detail": failure.Detail})
		case *pb.ServerEvent_Gap:
			gap := event.Gap
			c.app.told("gap", fields{"channel": gap.ChannelId, "messages": gap.Messages, "bytes": gap.Bytes})
			if channel := c.channels[gap.ChannelId]; channel != nil {
				channel.miss(gap.Messages)
			}
		case *pb.ServerEvent_Drain:
			c.app.told("sidecar-stops", fields{"deadline": event.Drain.Deadline.AsTime().String()})
		}
	}
	for id, bytes := range spent {
		if id == 0 || c.channels[id] != nil {
			update := &pb.WindowUpdate{ChannelId: id, Bytes: uint64(bytes)}
			c.out.put(&pb.ClientEvent{Event: &pb.ClientEvent_WindowUpdate{WindowUpdate: update}})
		}
	}
}

func (c *client) attached(attached *pb.Attached) {
	c.delay, c.attempt = 100*time.Millisecond, rand.Text()
	c.resumeToken, c.lastSendID, c.unheard = attached.ResumeToken, attached.LastSendId, attached.ExistingChannels
	c.app.told("attached", fields{"instance_id": attached.InstanceId, "resumed": attached.Resumed})
	c.forget()
}

func (c *client) opened(opened *pb.ChannelOpened) {
	known := c.former[opened.SessionId]
	delete(c.former, opened.SessionId)
	this := known
	if this == nil {
		this = &channel{client: c, session: opened.SessionId, peer: opened.Peer, position: opened.Position}
	}
	c.sessions[opened.SessionId], c.channels[opened.ChannelId] = this, this
	if known == nil {
		c.app.opened(this)
	} else {
		c.app.told("peer-resumed", fields{"node_id": this.peer.NodeId})
	}
	this.onStream(opened, c.lastSendID)
	if opened.Existing {
		c.unheard--
	}
	c.forget()
}

// forget ends the connections that the sidecar does not know any more, once it has listed all that outlived the last
// stream.
func (c *client) forget() {
	for session, channel := range c.former {
		if c.unheard > 0 {
			return
		}
		delete(c.former, session)
		c.app.closed(channel, &pb.ChannelClosed{By: "sidecar", Detail: "it ended while our stream was broken"})
	}
}
