import static java.nio.charset.StandardCharsets.UTF_8;
import static java.util.concurrent.TimeUnit.SECONDS;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Struct;
import com.google.protobuf.util.Values;
import com.google.rpc.ErrorInfo;
import gatekeeper.v1.AdminServiceGrpc;
import gatekeeper.v1.AuthServiceGrpc;
import gatekeeper.v1.EvaluateFlagsRequest;
import gatekeeper.v1.EvaluateFlagsResponse;
import gatekeeper.v1.EvaluationContext;
import gatekeeper.v1.EvaluationServiceGrpc;
import gatekeeper.v1.EvaluationServiceGrpc.EvaluationServiceBlockingStub;
import gatekeeper.v1.GetFlagRequest;
import gatekeeper.v1.LoginRequest;
import gatekeeper.v1.RefreshTokenRequest;
import gatekeeper.v1.WatchFlagsRequest;
import gatekeeper.v1.WatchFlagsResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.security.SecureRandom;
import java.time.Instant;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.Iterator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/**
 * A Java client of Gatekeeper, whole: evaluation, errors, signed calls, tokens, a watch. `make test-clients` runs it.
 *
 * <p>Variables: ADDRESS (host:port), KEY_ID and KEY_SECRET of a signing key, ADMIN_PASSWORD.
 */
public final class Sample {
  private static final long DEADLINE_S = 5;
  private static final String FLAG = "sample";

  // By default a client stays with one instance, however many a name has. Numbers must be doubles. UNKNOWN is what gRPC
  // for Java may make of a call that meets the end of a TLS connection; the server never answers with it.
  static final Map<String, ?> SERVICE_CONFIG = Map.of(
      "loadBalancingConfig", List.of(Map.of("round_robin", Map.of())),
      "methodConfig", List.of(Map.of(
          "name", List.of(
              Map.of("service", "gatekeeper.v1.EvaluationService"),
              Map.of("service", "gatekeeper.v1.AdminService", "method", "ListFlags")),
          "waitForReady", true,
          "retryPolicy", Map.of(
              "maxAttempts", 5.0, "initialBackoff", "0.05s", "maxBackoff", "1s", "backoffMultiplier", 2.0,
              "retryableStatusCodes", List.of("UNAVAILABLE", "UNKNOWN")))));

  public static void main(String[] arguments) throws Exception {
    ManagedChannel channel = connect();
    try {
      evaluate(channel);
      refused(channel);
      signed(channel);
      tokens(channel);
      watch(channel);
    } finally {
      channel.shutdownNow().awaitTermination(DEADLINE_S, SECONDS);
    }
  }

  static ManagedChannel connect() {
    // Without TLS: for a trusted network. dns:/// uses all addresses of a name.
    return Grpc.newChannelBuilder("dns:///" + System.getenv("ADDRESS"), InsecureChannelCredentials.create())
        .defaultServiceConfig(SERVICE_CONFIG)
        .build();
  }

  /** A stub for the next call. A deadline runs from when it is set, so a stub that is kept would expire. */
  static EvaluationServiceBlockingStub evaluation(Channel channel) {
    return EvaluationServiceGrpc.newBlockingStub(channel).withDeadlineAfter(DEADLINE_S, SECONDS);
  }

  /** Flags of alice, who has eight attributes. */
  static EvaluateFlagsRequest.Builder request(String... flagKeys) {
    Struct.Builder attributes = Struct.newBuilder().putFields("plan", Values.of("pro"));
    for (int n = 0; n < 7; n++) {
      attributes.putFields("number_" + n, Values.of(n));
    }
    EvaluationContext.Builder alice = EvaluationContext.newBuilder().setUserId("alice").setAttributes(attributes);
    return EvaluateFlagsRequest.newBuilder().setContext(alice).addAllFlagKeys(List.of(flagKeys));
  }

  /** A value, and why. */
  static void evaluate(Channel channel) {
    EvaluateFlagsResponse answer = evaluation(channel).evaluateFlags(request(FLAG).setIncludeDetails(true).build());
    var detail = answer.getDetailsOrThrow(FLAG);
    System.out.printf("value %s %s %s%n", answer.getFlagsOrThrow(FLAG), detail.getVariant(), detail.getReason());
  }

  /** What a program can read of an error: the reason and its variables, never the text. */
  static void refused(Channel channel) throws InvalidProtocolBufferException {
    try {
      evaluation(channel).evaluateFlags(request("?").build());
    } catch (StatusRuntimeException error) {
      for (var detail : StatusProto.fromThrowable(error).getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          System.out.printf("error %s %s %s%n",
              error.getStatus().getCode(), info.getReason(), info.getMetadataOrThrow("field"));
        }
      }
    }
  }

  /** Sends bytes as they are: those that were hashed. */
  static final class Serialised implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] body) {
      return new ByteArrayInputStream(body);
    }

    @Override
    public byte[] parse(InputStream stream) {
      throw new UnsupportedOperationException("only for requests");
    }
  }

  /** Evaluates in a signed call. Streams, WatchFlags too, are signed with "UNSIGNED" for the hash. */
  static EvaluateFlagsResponse signedCall(Channel channel, EvaluateFlagsRequest asked) throws GeneralSecurityException {
    var method = EvaluationServiceGrpc.getEvaluateFlagsMethod();
    byte[] body = asked.toByteArray(); // The message is serialised here, once.
    Metadata headers = signature("/" + method.getFullMethodName(), channel.authority(), body);
    return ClientCalls.blockingUnaryCall(
        ClientInterceptors.intercept(channel, MetadataUtils.newAttachHeadersInterceptor(headers)),
        method.toBuilder(new Serialised(), method.getResponseMarshaller()).build(),
        CallOptions.DEFAULT.withDeadlineAfter(DEADLINE_S, SECONDS),
        body);
  }

  static Metadata signature(String path, String authority, byte[] body) throws GeneralSecurityException {
    String key = System.getenv("KEY_ID");
    String timestamp = Long.toString(Instant.now().getEpochSecond());
    byte[] random = new byte[16];
    new SecureRandom().nextBytes(random);
    String nonce = HexFormat.of().formatHex(random);
    String content = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(body));
    String text = String.join("\n", key, timestamp, nonce, content, authority.toLowerCase(Locale.ROOT), path);
    Mac mac = Mac.getInstance("HmacSHA256");
    mac.init(new SecretKeySpec(System.getenv("KEY_SECRET").getBytes(UTF_8), "HmacSHA256"));
    Metadata headers = new Metadata();
    headers.put(header("x-gatekeeper-key-id"), key);
    headers.put(header("x-gatekeeper-timestamp"), timestamp);
    headers.put(header("x-gatekeeper-nonce"), nonce);
    headers.put(header("x-gatekeeper-content-sha256"), content);
    headers.put(header("x-gatekeeper-signature"), HexFormat.of().formatHex(mac.doFinal(text.getBytes(UTF_8))));
    return headers;
  }

  static Metadata.Key<String> header(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }

  static void signed(Channel channel) throws GeneralSecurityException {
    int answers = 0;
    for (; answers < 20; answers++) {
      signedCall(channel, request().build());
    }
    System.out.println("signed " + answers);
  }

  /**
   * Refreshes a login. Do that near access_token_expire_time or after UNAUTHENTICATED, in one process alone: a refresh
   * token works once, and using a spent one again ends the login.
   */
  static void tokens(Channel channel) {
    var auth = AuthServiceGrpc.newBlockingStub(channel);
    var login = auth.withDeadlineAfter(DEADLINE_S, SECONDS).login(
        LoginRequest.newBuilder().setUsername("admin").setPassword(System.getenv("ADMIN_PASSWORD")).build());
    var fresh = auth.withDeadlineAfter(DEADLINE_S, SECONDS).refreshToken(
        RefreshTokenRequest.newBuilder().setRefreshToken(login.getRefreshToken()).build());
    Metadata headers = new Metadata();
    headers.put(header("authorization"), "Bearer " + fresh.getAccessToken());
    var found = AdminServiceGrpc.newBlockingStub(channel)
        .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers))
        .withDeadlineAfter(DEADLINE_S, SECONDS)
        .getFlag(GetFlagRequest.newBuilder().setKey(FLAG).build());
    System.out.println("token " + found.getFlag().getKey());
  }

  /** Hears of changes until the sample flag changes. */
  static void watch(Channel channel) throws InterruptedException {
    Watcher watcher = new Watcher();
    while (watcher.cache.contains(FLAG)) {
      // A blocking stream that is not read to its end leaks, unless its context is cancelled.
      try (Context.CancellableContext context = Context.current().withCancellation()) {
        context.run(() -> watcher.read(channel));
      } catch (StatusRuntimeException error) {
        Status.Code code = error.getStatus().getCode();
        if (code != Status.Code.UNAVAILABLE && code != Status.Code.UNKNOWN && code != Status.Code.RESOURCE_EXHAUSTED) {
          throw error;
        }
        // Jitter: all clients of an instance lose it together.
        Thread.sleep(ThreadLocalRandom.current().nextLong(1000));
      }
    }
    System.out.println("changed " + FLAG);
  }

  /** The flags whose answers are kept, and the revision they are of. */
  static final class Watcher {
    private final Set<String> cache = new HashSet<>(Set.of(FLAG));
    private long revision = 0;

    void read(Channel channel) {
      // No deadline: the stream stays open, and something comes at least every 20 s.
      Iterator<WatchFlagsResponse> stream = EvaluationServiceGrpc.newBlockingStub(channel)
          .watchFlags(WatchFlagsRequest.newBuilder().setFromRevision(revision).build());
      while (cache.contains(FLAG) && stream.hasNext()) {
        apply(stream.next());
      }
    }

    void apply(WatchFlagsResponse message) {
      if (message.getReset()) { // The changes are unknown: forget everything.
        cache.clear();
      }
      message.getChangesList().forEach(change -> cache.remove(change.getFlagKey()));
      if (revision == 0) {
        System.out.println("watching");
      }
      revision = message.getRevision();
    }
  }
}
