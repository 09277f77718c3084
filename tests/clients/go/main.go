// A client of Remit in Go, made from the contracts alone. It starts a run, follows it to its end
// over two streams and prints what it saw, a JSON object a line.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"os"
	"time"

	rpccode "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	agentv1 "remit/api/agent/v1"
)

const pause = 200 * time.Millisecond

func main() {
	if err := run(os.Getenv("REMIT_ADDRESS"), os.Getenv("REMIT_API_KEY")); err != nil {
		log.Fatal(err)
	}
}

func run(address, key string) error {
	// [start begins]
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer connection.Close()
	agents := agentv1.NewAgentServiceClient(connection)

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // of all that follows
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)

	request := &agentv1.CreateRunRequest{
		Agent:     "agents/assistant",
		Task:      "What is 17 * 23?",
		RequestId: newID(), // keep it: whoever sends it again gets the same run
	}
	created, err := agents.CreateRun(ctx, request)
	// [start ends]
	if err != nil {
		return err
	}
	name := created.Run.Name
	show("run", name)

	again, err := agents.CreateRun(ctx, request)
	if err != nil {
		return err
	}
	show("again", again.Run.Name)

	// The first stream is broken off on purpose after its second event; the second goes on there.
	var seen int64
	_, err = follow(ctx, agents, name, seen, func(event *agentv1.RunEvent) bool {
		seen = event.Sequence
		showEvent(event)
		return seen < 2
	})
	if err != nil {
		return err
	}
	show("resumed_after", seen)
	ended, err := follow(ctx, agents, name, seen, func(event *agentv1.RunEvent) bool {
		seen = event.Sequence
		showEvent(event)
		return true
	})
	if err != nil {
		return err
	}
	show("answer", ended.Result)

	// Behind the last event there is none: the stream ends, and the run says how it ended.
	behind := 0
	ended, err = follow(ctx, agents, name, seen, func(*agentv1.RunEvent) bool {
		behind++
		return true
	})
	if err != nil {
		return err
	}
	show("behind", behind)
	show("answer_behind", ended.Result)

	unknown := &agentv1.GetRunRequest{Name: "runs/00000000-0000-7000-8000-000000000000"}
	_, err = agents.GetRun(ctx, unknown)
	canonical, reason := explain(err)
	show("code", canonical)
	show("reason", reason)
	return nil
}

// [follow begins]
// follow gives every event after a sequence to each, until that returns false or the run has ended;
// then it returns the run. A stream that breaks is resumed until the deadline of ctx.
func follow(ctx context.Context, agents agentv1.AgentServiceClient, name string, after int64,
	each func(*agentv1.RunEvent) bool) (*agentv1.Run, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends a stream that we leave early
	for {
		stream, err := agents.WatchRun(ctx, &agentv1.WatchRunRequest{Name: name, AfterSequence: after})
		for err == nil {
			var response *agentv1.WatchRunResponse
			response, err = stream.Recv()
			event := response.GetEvent()
			if event == nil {
				continue // a heartbeat, or an error
			}
			after = event.Sequence
			if !each(event) || event.GetEnded() != nil {
				return event.GetEnded().GetRun(), nil
			}
		}
		if err == io.EOF { // over without an error: the run ended at this sequence
			response, err := agents.GetRun(ctx, &agentv1.GetRunRequest{Name: name})
			return response.GetRun(), err
		}
		code := status.Code(err)
		if code != codes.Unavailable && code != codes.Internal {
			return nil, err
		}
		time.Sleep(pause)
	}
}

// [follow ends]

// [errors begins]
// explain returns the canonical code of an error and Remit's reason for it.
func explain(err error) (canonical, reason string) {
	answer := status.Convert(err)
	for _, detail := range answer.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			reason = info.Reason
		}
	}
	return rpccode.Code_name[int32(answer.Code())], reason
}

// [errors ends]

func newID() string {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		log.Fatal(err)
	}
	return hex.EncodeToString(id)
}

func showEvent(event *agentv1.RunEvent) {
	message := event.ProtoReflect()
	chosen := message.WhichOneof(message.Descriptor().Oneofs().ByName("event"))
	printJSON(map[string]interface{}{"sequence": event.Sequence, "event": chosen.Name()})
}

func show(key string, value interface{}) {
	printJSON(map[string]interface{}{key: value})
}

func printJSON(line map[string]interface{}) {
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		log.Fatal(err)
	}
}
