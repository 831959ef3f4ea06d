// A Go client of Gatekeeper, whole: evaluation, errors, signed calls, tokens, a watch. `make test-clients` runs it.
//
// Variables: ADDRESS (host:port), KEY_ID and KEY_SECRET of a signing key, ADMIN_PASSWORD.
package main

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log"
	mathrand "math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	pb "example.com/gatekeeper-sample/gatekeeper/v1"
)

const (
	deadline = 5 * time.Second
	flag     = "sample"
	// By default a client stays with one instance, however many a name has.
	serviceConfig = `{
	  "loadBalancingConfig": [{"round_robin": {}}],
	  "methodConfig": [{
	    "name": [{"service": "gatekeeper.v1.EvaluationService"},
	      {"service": "gatekeeper.v1.AdminService", "method": "ListFlags"}],
	    "waitForReady": true,
	    "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 2,
	      "retryableStatusCodes": ["UNAVAILABLE"]}
	  }]
	}`
)

func main() {
	channel := connect()
	defer channel.Close()
	evaluation := pb.NewEvaluationServiceClient(channel)
	evaluate(evaluation)
	refused(evaluation)
	signed()
	tokens(channel)
	watch(evaluation)
}

func connect(options ...grpc.DialOption) *grpc.ClientConn {
	// Without TLS: for a trusted network. dns:/// uses all addresses of a name.
	options = append(options,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(serviceConfig))
	channel, err := grpc.NewClient("dns:///"+os.Getenv("ADDRESS"), options...)
	must(err)
	return channel
}

func withDeadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), deadline)
}

// request asks for flags of alice, who has eight attributes.
func request(flagKeys ...string) *pb.EvaluateFlagsRequest {
	attributes := map[string]any{"plan": "pro"}
	for n := range 7 {
		attributes["number_"+strconv.Itoa(n)] = n
	}
	fields, err := structpb.NewStruct(attributes)
	must(err)
	alice := &pb.EvaluationContext{UserId: proto.String("alice"), Attributes: fields}
	return &pb.EvaluateFlagsRequest{Context: alice, FlagKeys: flagKeys}
}

// evaluate shows a value, and why.
func evaluate(evaluation pb.EvaluationServiceClient) {
	ctx, cancel := withDeadline()
	defer cancel()
	asked := request(flag)
	asked.IncludeDetails = true
	answer, err := evaluation.EvaluateFlags(ctx, asked)
	must(err)
	detail := answer.Details[flag]
	fmt.Println("value", answer.Flags[flag], detail.Variant, detail.Reason)
}

// refused shows what a program can read of an error: the reason and its variables, never the text.
func refused(evaluation pb.EvaluationServiceClient) {
	ctx, cancel := withDeadline()
	defer cancel()
	_, err := evaluation.EvaluateFlags(ctx, request("?"))
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && status.Code(err) == codes.InvalidArgument {
			fmt.Println("error INVALID_ARGUMENT", info.Reason, info.Metadata["field"])
		}
	}
}

// serialised is a message that is marshalled already. Go marshals maps, and so attributes, in random order: the bytes
// that are hashed are those that are sent only if the message is marshalled once.
type serialised []byte

// onceCodec sends serialised messages as they are.
type onceCodec struct{ encoding.CodecV2 }

func (codec onceCodec) Marshal(message any) (mem.BufferSlice, error) {
	if body, ok := message.(serialised); ok {
		return mem.BufferSlice{mem.SliceBuffer(body)}, nil
	}
	return codec.CodecV2.Marshal(message)
}

// sign is an interceptor of unary calls. Streams, WatchFlags too, are signed with "UNSIGNED" for the hash.
func sign(ctx context.Context, method string, asked, answer any, channel *grpc.ClientConn, invoke grpc.UnaryInvoker,
	options ...grpc.CallOption) error {
	body, err := proto.Marshal(asked.(proto.Message))
	if err != nil {
		return err
	}
	random := make([]byte, 16)
	rand.Read(random)
	digest := sha256.Sum256(body)
	key, timestamp := os.Getenv("KEY_ID"), strconv.FormatInt(time.Now().Unix(), 10)
	nonce, content := hex.EncodeToString(random), hex.EncodeToString(digest[:])
	authority := strings.ToLower(channel.CanonicalTarget()[len("dns:///"):])
	mac := hmac.New(sha256.New, []byte(os.Getenv("KEY_SECRET")))
	mac.Write([]byte(strings.Join([]string{key, timestamp, nonce, content, authority, method}, "\n")))
	ctx = metadata.AppendToOutgoingContext(ctx,
		"x-gatekeeper-key-id", key,
		"x-gatekeeper-timestamp", timestamp,
		"x-gatekeeper-nonce", nonce,
		"x-gatekeeper-content-sha256", content,
		"x-gatekeeper-signature", hex.EncodeToString(mac.Sum(nil)))
	options = append(options, grpc.ForceCodecV2(onceCodec{encoding.GetCodecV2("proto")}))
	return invoke(ctx, method, serialised(body), answer, channel, options...)
}

func signed() {
	channel := connect(grpc.WithUnaryInterceptor(sign))
	defer channel.Close()
	evaluation := pb.NewEvaluationServiceClient(channel)
	answers := 0
	for range 20 {
		ctx, cancel := withDeadline()
		_, err := evaluation.EvaluateFlags(ctx, request())
		cancel()
		must(err)
		answers++
	}
	fmt.Println("signed", answers)
}

// tokens refreshes a login. Do that near AccessTokenExpireTime or after UNAUTHENTICATED, in one process alone: a refresh
// token works once, and using a spent one again ends the login.
func tokens(channel *grpc.ClientConn) {
	ctx, cancel := withDeadline()
	defer cancel()
	auth := pb.NewAuthServiceClient(channel)
	login, err := auth.Login(ctx, &pb.LoginRequest{Username: "admin", Password: os.Getenv("ADMIN_PASSWORD")})
	must(err)
	fresh, err := auth.RefreshToken(ctx, &pb.RefreshTokenRequest{RefreshToken: login.RefreshToken})
	must(err)
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+fresh.AccessToken)
	found, err := pb.NewAdminServiceClient(channel).GetFlag(ctx, &pb.GetFlagRequest{Key: flag})
	must(err)
	fmt.Println("token", found.Flag.Key)
}

// watch hears of changes until the sample flag changes.
func watch(evaluation pb.EvaluationServiceClient) {
	revision, cache := int64(0), map[string]bool{flag: true}
	for {
		// No deadline: the stream stays open, and something comes at least every 20 s.
		stream, err := evaluation.WatchFlags(context.Background(), &pb.WatchFlagsRequest{FromRevision: revision})
		for err == nil {
			var message *pb.WatchFlagsResponse
			if message, err = stream.Recv(); err != nil {
				break
			}
			if message.Reset_ { // The field is `reset`; Go has a method of that name. The changes are unknown: forget all.
				clear(cache)
			}
			for _, change := range message.Changes {
				delete(cache, change.FlagKey)
			}
			if revision == 0 {
				fmt.Println("watching")
			}
			revision = message.Revision
			if !cache[flag] {
				fmt.Println("changed", flag)
				return
			}
		}
		if code := status.Code(err); code != codes.Unavailable && code != codes.ResourceExhausted {
			log.Fatal(err)
		}
		time.Sleep(mathrand.N(time.Second)) // Jitter: all clients of an instance lose it together.
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
