// A load of calls by Go clients, with the service config of the sample: it is built into the sample by `go test -c`, so
// nothing of the sample is repeated. tests/faults/programs.py has what every load reads and prints.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	pb "example.com/gatekeeper-sample/gatekeeper/v1"
)

const (
	evaluators     = 4
	betweenCalls   = 40 * time.Millisecond
	betweenChanges = 100 * time.Millisecond
	beforeRepeat   = 5 * time.Millisecond
	// Twice what the documents ask for: servers that start share the cores with this.
	loadDeadline  = 10 * time.Second
	givesUpAfter  = 60 * time.Second
	printInterval = 250 * time.Millisecond
)

type figures struct {
	mutex    sync.Mutex
	Answered map[string]int `json:"answered"`
	Failed   map[string]int `json:"failed"`
	Watches  map[string]int `json:"watches"`
	Repeated int            `json:"repeated"`
	Seen     int64          `json:"seen_revision"`
	Changed  int64          `json:"changed_revision"`
}

var (
	counts  = figures{Answered: map[string]int{}, Failed: map[string]int{}, Watches: map[string]int{}}
	stopped = make(chan struct{})
)

func (f *figures) update(change func()) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	change()
}

func (f *figures) print() {
	f.update(func() { must(json.NewEncoder(os.Stdout).Encode(f)) })
}

func (f *figures) hasSeenAll() (seen bool) {
	f.update(func() { seen = f.Seen >= f.Changed })
	return
}

func TestMain(*testing.M) {
	go watchFlags()
	var calls sync.WaitGroup
	for range evaluators {
		calls.Go(func() { repeat("evaluate", betweenCalls, evaluateFor(pb.NewEvaluationServiceClient(dialToEvaluate()))) })
	}
	calls.Go(func() { repeat("read", betweenCalls, readFor(pb.NewAdminServiceClient(dial()))) })
	calls.Go(func() { repeat("change", betweenChanges, changeFor(pb.NewAdminServiceClient(dial()))) })
	go func() { io.Copy(io.Discard, os.Stdin); close(stopped) }()
	for !isStopped() {
		counts.print()
		time.Sleep(printInterval)
	}
	calls.Wait()
	for end := time.Now().Add(givesUpAfter); !counts.hasSeenAll() && time.Now().Before(end); {
		time.Sleep(beforeRepeat)
	}
	counts.print()
	os.Exit(0)
}

func isStopped() bool {
	select {
	case <-stopped:
		return true
	default:
		return false
	}
}

// dial opens a connection to every address: gRPC for Go has no scheme for a list of them.
func dial(more ...grpc.DialOption) *grpc.ClientConn {
	addresses := []resolver.Address{}
	for _, address := range strings.Split(os.Getenv("ADDRESSES"), ",") {
		addresses = append(addresses, resolver.Address{Addr: address})
	}
	fleet := manual.NewBuilderWithScheme("fleet")
	fleet.InitialState(resolver.State{Addresses: addresses})
	options := []grpc.DialOption{grpc.WithResolvers(fleet), grpc.WithDefaultServiceConfig(serviceConfig)}
	if file := os.Getenv("CA_FILE"); file != "" {
		trusting, err := credentials.NewClientTLSFromFile(file, "")
		must(err)
		options = append(options, grpc.WithTransportCredentials(trusting))
	} else {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	channel, err := grpc.NewClient("fleet:///localhost", append(options, more...)...)
	must(err)
	return channel
}

// dialToEvaluate leaves out the retry policy in plaintext, in which no evaluation needs one.
func dialToEvaluate() *grpc.ClientConn {
	if os.Getenv("CA_FILE") == "" {
		return dial(grpc.WithDisableRetry())
	}
	return dial()
}

func repeat(kind string, pause time.Duration, call func(context.Context) error) {
	for !isStopped() {
		ctx, cancel := context.WithTimeout(context.Background(), loadDeadline)
		err := call(ctx)
		cancel()
		counts.update(func() {
			if err == nil {
				counts.Answered[kind]++
			} else {
				counts.Failed[fmt.Sprintf("%s: %s: %s", kind, name(err), status.Convert(err).Message())]++
			}
		})
		time.Sleep(pause)
	}
}

// name is that of a status code as all other languages write it.
func name(err error) string {
	if code := status.Code(err); code != codes.Unavailable {
		return strings.ToUpper(code.String())
	}
	return "UNAVAILABLE"
}

func evaluateFor(evaluation pb.EvaluationServiceClient) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := evaluation.EvaluateFlags(ctx, request())
		return err
	}
}

func withToken(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+os.Getenv("TOKEN"))
}

func readFor(admin pb.AdminServiceClient) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := admin.ListFlags(withToken(ctx), &pb.ListFlagsRequest{PageSize: 1})
		return err
	}
}

// changeFor changes the flag, and sends the same again while the answer is UNAVAILABLE.
func changeFor(admin pb.AdminServiceClient) func(context.Context) error {
	return func(context.Context) error {
		id := uuid()
		changed := &pb.Flag{Key: os.Getenv("FLAG"), Description: id}
		mask := &fieldmaskpb.FieldMask{Paths: []string{"description"}}
		asked := &pb.UpdateFlagRequest{Flag: changed, UpdateMask: mask, RequestId: id}
		for end := time.Now().Add(givesUpAfter); ; counts.update(func() { counts.Repeated++ }) {
			ctx, cancel := context.WithTimeout(context.Background(), loadDeadline)
			answer, err := admin.UpdateFlag(withToken(ctx), asked, grpc.WaitForReady(true))
			cancel()
			if status.Code(err) != codes.Unavailable || time.Now().After(end) {
				counts.update(func() { counts.Changed = max(counts.Changed, answer.GetRevision()) })
				return err
			}
			time.Sleep(beforeRepeat)
		}
	}
}

func uuid() string {
	id := make([]byte, 16)
	rand.Read(id)
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

func watchFlags() {
	evaluation := pb.NewEvaluationServiceClient(dial())
	for {
		asked := &pb.WatchFlagsRequest{}
		counts.update(func() { asked.FromRevision = counts.Seen })
		stream, err := evaluation.WatchFlags(context.Background(), asked)
		for err == nil {
			var message *pb.WatchFlagsResponse
			if message, err = stream.Recv(); err == nil {
				counts.update(func() { counts.Seen = max(counts.Seen, message.Revision) })
			}
		}
		counts.update(func() { counts.Watches[name(err)]++ })
		time.Sleep(mathrand.N(time.Second))
	}
}
