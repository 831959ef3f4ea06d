import static java.util.concurrent.TimeUnit.SECONDS;

import com.google.protobuf.FieldMask;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import com.google.protobuf.util.JsonFormat;
import com.google.protobuf.util.Values;
import gatekeeper.v1.AdminServiceGrpc;
import gatekeeper.v1.AdminServiceGrpc.AdminServiceBlockingStub;
import gatekeeper.v1.EvaluationServiceGrpc;
import gatekeeper.v1.Flag;
import gatekeeper.v1.ListFlagsRequest;
import gatekeeper.v1.UpdateFlagRequest;
import gatekeeper.v1.WatchFlagsRequest;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.EquivalentAddressGroup;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Metadata;
import io.grpc.NameResolver;
import io.grpc.NameResolverProvider;
import io.grpc.NameResolverRegistry;
import io.grpc.Status;
import io.grpc.StatusOr;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.net.URI;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.ThreadLocalRandom;
import java.util.stream.Stream;

/**
 * A load of calls by Java clients, with the service config of the sample. tests/faults/programs.py has what every load
 * reads and prints. It is compiled together with the sample.
 */
public final class Load {
  private static final int EVALUATORS = 4;
  private static final long BETWEEN_CALLS_MS = 40;
  private static final long BETWEEN_CHANGES_MS = 100;
  private static final long BEFORE_REPEAT_MS = 5;
  // Twice what the documents ask for: servers that start share the cores with this.
  private static final long DEADLINE_S = 10;
  private static final long GIVES_UP_AFTER_MS = 60_000;
  private static final long PRINT_INTERVAL_MS = 250;
  private static final Set<Status.Code> REPEATED = EnumSet.of(Status.Code.UNAVAILABLE, Status.Code.UNKNOWN);
  private static final String CA_FILE = System.getenv("CA_FILE");

  private static final Figures FIGURES = new Figures();
  private static volatile boolean stopped;

  /** What is printed. */
  private static final class Figures {
    final Map<String, Integer> answered = new TreeMap<>();
    final Map<String, Integer> failed = new TreeMap<>();
    final Map<String, Integer> watches = new TreeMap<>();
    int repeated;
    long seenRevision;
    long changedRevision;

    synchronized void count(Map<String, Integer> of, String what) {
      of.merge(what, 1, Integer::sum);
    }

    synchronized void repeat() {
      repeated++;
    }

    synchronized void see(long revision) {
      seenRevision = Math.max(seenRevision, revision);
    }

    synchronized void change(long revision) {
      changedRevision = Math.max(changedRevision, revision);
    }

    synchronized boolean hasSeenAll() {
      return seenRevision >= changedRevision;
    }

    synchronized void print() {
      Struct.Builder all = Struct.newBuilder()
          .putFields("answered", json(answered))
          .putFields("failed", json(failed))
          .putFields("watches", json(watches))
          .putFields("repeated", Values.of(repeated))
          .putFields("seen_revision", Values.of(seenRevision))
          .putFields("changed_revision", Values.of(changedRevision));
      try {
        System.out.println(JsonFormat.printer().omittingInsignificantWhitespace().print(all));
      } catch (InvalidProtocolBufferException error) {
        throw new IllegalStateException(error);
      }
    }

    private static Value json(Map<String, Integer> counts) {
      Struct.Builder all = Struct.newBuilder();
      counts.forEach((what, count) -> all.putFields(what, Values.of(count)));
      return Values.of(all.build());
    }
  }

  public static void main(String[] arguments) throws Exception {
    NameResolverRegistry.getDefaultRegistry().register(new Fleet());
    start(Load::watch);
    List<Thread> calls = new ArrayList<>();
    for (int n = 0; n < EVALUATORS; n++) {
      calls.add(start(() -> {
        var evaluation = EvaluationServiceGrpc.newBlockingStub(dial(withoutNeedlessRetries()));
        var asked = Sample.request().build();
        repeat("evaluate", BETWEEN_CALLS_MS,
            () -> evaluation.withDeadlineAfter(DEADLINE_S, SECONDS).evaluateFlags(asked));
      }));
    }
    calls.add(start(() -> {
      var admin = admin();
      var asked = ListFlagsRequest.newBuilder().setPageSize(1).build();
      repeat("read", BETWEEN_CALLS_MS, () -> admin.withDeadlineAfter(DEADLINE_S, SECONDS).listFlags(asked));
    }));
    calls.add(start(() -> {
      var admin = admin();
      repeat("change", BETWEEN_CHANGES_MS, () -> change(admin));
    }));
    start(Load::printUntilStopped);
    System.in.transferTo(OutputStream.nullOutputStream());
    stopped = true;
    for (Thread call : calls) {
      call.join();
    }
    for (long end = System.currentTimeMillis() + GIVES_UP_AFTER_MS;
        !FIGURES.hasSeenAll() && System.currentTimeMillis() < end;) {
      sleep(BEFORE_REPEAT_MS);
    }
    FIGURES.print();
    System.out.flush();
    Runtime.getRuntime().halt(0);
  }

  private static Thread start(Runnable body) {
    Thread thread = new Thread(body);
    thread.setDaemon(true);
    thread.start();
    return thread;
  }

  private static void printUntilStopped() {
    for (; !stopped; sleep(PRINT_INTERVAL_MS)) {
      FIGURES.print();
    }
  }

  /** Opens a connection to every address. */
  private static Channel dial(Map<String, ?> serviceConfig) {
    return Grpc.newChannelBuilder("fleet:///localhost", credentials())
        .defaultServiceConfig(serviceConfig)
        .build();
  }

  private static ChannelCredentials credentials() {
    try {
      return CA_FILE == null
          ? InsecureChannelCredentials.create()
          : TlsChannelCredentials.newBuilder().trustManager(new File(CA_FILE)).build();
    } catch (IOException error) {
      throw new IllegalStateException(error);
    }
  }

  /** The config of the sample. In plaintext no evaluation needs a retry policy. */
  private static Map<String, ?> withoutNeedlessRetries() {
    if (CA_FILE != null) {
      return Sample.SERVICE_CONFIG;
    }
    Map<String, Object> config = new HashMap<>(Sample.SERVICE_CONFIG);
    config.put("methodConfig", ((List<?>) config.get("methodConfig")).stream().map(Load::withoutRetries).toList());
    return config;
  }

  private static Map<?, ?> withoutRetries(Object method) {
    Map<?, ?> copy = new HashMap<>((Map<?, ?>) method);
    copy.remove("retryPolicy");
    return copy;
  }

  private static AdminServiceBlockingStub admin() {
    Metadata headers = new Metadata();
    headers.put(Sample.header("authorization"), "Bearer " + System.getenv("TOKEN"));
    return AdminServiceGrpc.newBlockingStub(dial(Sample.SERVICE_CONFIG))
        .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
  }

  private static void repeat(String kind, long pauseMs, Runnable once) {
    for (; !stopped; sleep(pauseMs)) {
      try {
        once.run();
        FIGURES.count(FIGURES.answered, kind);
      } catch (StatusRuntimeException error) {
        Status status = error.getStatus();
        FIGURES.count(FIGURES.failed, kind + ": " + status.getCode() + ": " + status.getDescription());
      }
    }
  }

  /** Changes the flag, and sends the same again while the answer is UNAVAILABLE, or it could not be sent. */
  private static void change(AdminServiceBlockingStub admin) {
    String id = UUID.randomUUID().toString();
    UpdateFlagRequest asked = UpdateFlagRequest.newBuilder()
        .setFlag(Flag.newBuilder().setKey(System.getenv("FLAG")).setDescription(id))
        .setUpdateMask(FieldMask.newBuilder().addPaths("description"))
        .setRequestId(id)
        .build();
    for (long end = System.currentTimeMillis() + GIVES_UP_AFTER_MS; ; FIGURES.repeat()) {
      try {
        var stub = admin.withDeadlineAfter(DEADLINE_S, SECONDS).withWaitForReady();
        FIGURES.change(stub.updateFlag(asked).getRevision());
        return;
      } catch (StatusRuntimeException error) {
        if (!REPEATED.contains(error.getStatus().getCode()) || System.currentTimeMillis() > end) {
          throw error;
        }
        sleep(BEFORE_REPEAT_MS);
      }
    }
  }

  private static void watch() {
    var evaluation = EvaluationServiceGrpc.newBlockingStub(dial(Sample.SERVICE_CONFIG));
    for (; ; sleep(ThreadLocalRandom.current().nextLong(1_000))) {
      try {
        var asked = WatchFlagsRequest.newBuilder().setFromRevision(FIGURES.seenRevision).build();
        evaluation.watchFlags(asked).forEachRemaining(message -> FIGURES.see(message.getRevision()));
        FIGURES.count(FIGURES.watches, "OK");
      } catch (StatusRuntimeException error) {
        FIGURES.count(FIGURES.watches, error.getStatus().getCode().name());
      }
    }
  }

  private static void sleep(long milliseconds) {
    try {
      Thread.sleep(milliseconds);
    } catch (InterruptedException error) {
      throw new IllegalStateException(error);
    }
  }

  /** Resolves `fleet:///localhost` to all addresses: gRPC for Java has no scheme for a list of them. */
  private static final class Fleet extends NameResolverProvider {
    @Override
    protected boolean isAvailable() {
      return true;
    }

    @Override
    protected int priority() {
      return 5;
    }

    @Override
    public String getDefaultScheme() {
      return "fleet";
    }

    @Override
    public NameResolver newNameResolver(URI target, NameResolver.Args arguments) {
      return "fleet".equals(target.getScheme()) ? new Addresses() : null;
    }
  }

  private static final class Addresses extends NameResolver {
    private Listener2 listener;

    @Override
    public String getServiceAuthority() {
      return "localhost";
    }

    @Override
    public void start(Listener2 listener) {
      this.listener = listener;
      refresh();
    }

    @Override
    public void refresh() {
      List<EquivalentAddressGroup> groups = Stream.of(System.getenv("ADDRESSES").split(","))
          .map(address -> address.split(":"))
          .map(parts -> new EquivalentAddressGroup(new InetSocketAddress(parts[0], Integer.parseInt(parts[1]))))
          .toList();
      listener.onResult(ResolutionResult.newBuilder().setAddressesOrError(StatusOr.fromValue(groups)).build());
    }

    @Override
    public void shutdown() {}
  }
}
