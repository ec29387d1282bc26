// An application that reads one protocol with automatic credit, and stops reading when it is told to.
//
//	reader ADDRESS PROTOCOL      commands on stdin, a word a line: pause, resume, report
package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "devp2pd/examples/go/gen/devp2p/v1"
)

var messages, gaps, streams atomic.Uint64

func say(event string) {
	fmt.Printf("{\"event\":%q,\"messages\":%d,\"gaps\":%d,\"streams\":%d}\n", event, messages.Load(), gaps.Load(), streams.Load())
}

func main() {
	address, name := os.Args[1], os.Args[2]
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	stream, err := pb.NewMessageServiceClient(connection).Exchange(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	spec := &pb.RegistrationSpec{ClientId: "go-" + name, Protocols: []*pb.ProtocolSpec{{Name: name, Version: 1, MessageCount: 8}}}
	attach := &pb.Attach{Target: &pb.Attach_Spec{Spec: spec}, AutoCredit: true}
	if err := stream.Send(&pb.ExchangeRequest{Events: []*pb.ClientEvent{{Event: &pb.ClientEvent_Attach{Attach: attach}}}}); err != nil {
		log.Fatal(err)
	}
	var paused sync.Mutex // held while nothing is read
	go func() {
		for words := bufio.NewScanner(os.Stdin); words.Scan(); {
			switch words.Text() {
			case "pause":
				paused.Lock()
			case "resume":
				paused.Unlock()
			}
			say(words.Text())
		}
		os.Exit(0)
	}()
	for {
		paused.Lock()
		paused.Unlock() //nolint:staticcheck // waits while it is held
		frame, err := stream.Recv()
		if err != nil {
			fmt.Printf("{\"event\":\"error\",\"detail\":%q}\n", err)
			os.Exit(1)
		}
		for _, event := range frame.Events {
			switch event := event.Event.(type) {
			case *pb.ServerEvent_Message:
				messages.Add(1)
			case *pb.ServerEvent_Gap:
				gaps.Add(event.Gap.Messages)
			case *pb.ServerEvent_Attached:
				streams.Add(1)
				say("attached")
			}
		}
	}
}
