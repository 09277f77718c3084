// A client of Remit in Java, made from the contracts alone. It starts a run, follows it to its end
// over two streams and prints what it saw, a JSON object a line.

import static io.grpc.Metadata.ASCII_STRING_MARSHALLER;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Value;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.Code;
import com.google.rpc.ErrorInfo;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.util.Iterator;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import java.util.function.Predicate;
import remit.api.agent.v1.AgentServiceGrpc;
import remit.api.agent.v1.AgentServiceGrpc.AgentServiceBlockingStub;
import remit.api.agent.v1.AgentServiceOuterClass.CreateRunRequest;
import remit.api.agent.v1.AgentServiceOuterClass.GetRunRequest;
import remit.api.agent.v1.AgentServiceOuterClass.WatchRunRequest;
import remit.api.agent.v1.AgentServiceOuterClass.WatchRunResponse;
import remit.api.agent.v1.RunOuterClass.Run;
import remit.api.agent.v1.RunOuterClass.RunEvent;

public final class Client {
  private static final long PAUSE_MS = 200;

  private Client() {}

  public static void main(String[] arguments) throws Exception {
    String address = System.getenv("REMIT_ADDRESS");
    String key = System.getenv("REMIT_API_KEY");
    ManagedChannel channel = ManagedChannelBuilder.forTarget(address).usePlaintext().build();
    try {
      runAgent(channel, key);
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static void runAgent(ManagedChannel channel, String key) throws Exception {
    // [start begins]
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", ASCII_STRING_MARSHALLER), "Bearer " + key);
    AgentServiceBlockingStub agents =
        AgentServiceGrpc.newBlockingStub(channel)
            .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers))
            .withDeadline(Deadline.after(1, TimeUnit.MINUTES)); // of all that follows
    CreateRunRequest request =
        CreateRunRequest.newBuilder()
            .setAgent("agents/assistant")
            .setTask("What is 17 * 23?")
            .setRequestId(UUID.randomUUID().toString()) // keep it: sent again, it gets the same run
            .build();
    Run run = agents.createRun(request).getRun();
    // [start ends]
    show("run", run.getName());
    show("again", agents.createRun(request).getRun().getName());

    // The first stream is broken off on purpose after its second event; the second goes on there.
    long[] seen = {0};
    follow(
        agents,
        run.getName(),
        0,
        event -> {
          seen[0] = event.getSequence();
          showEvent(event);
          return seen[0] < 2;
        });
    System.out.printf("{\"resumed_after\":%d}%n", seen[0]);
    Run ended =
        follow(
            agents,
            run.getName(),
            seen[0],
            event -> {
              seen[0] = event.getSequence();
              showEvent(event);
              return true;
            });
    show("answer", ended.getResult());

    // Behind the last event there is none: the stream ends, and the run says how it ended.
    int[] behind = {0};
    ended = follow(agents, run.getName(), seen[0], event -> ++behind[0] > 0);
    System.out.printf("{\"behind\":%d}%n", behind[0]);
    show("answer_behind", ended.getResult());

    try {
      agents.getRun(
          GetRunRequest.newBuilder().setName("runs/00000000-0000-7000-8000-000000000000").build());
    } catch (StatusRuntimeException error) {
      show("code", Code.forNumber(error.getStatus().getCode().value()).name());
      show("reason", reasonOf(error));
    }
  }

  // [follow begins]
  /**
   * Gives every event after a sequence to {@code each}, until that returns false or the run has
   * ended; then returns the run. A stream that breaks is resumed until the deadline.
   */
  private static Run follow(
      AgentServiceBlockingStub agents, String name, long after, Predicate<RunEvent> each)
      throws InterruptedException {
    WatchRunRequest.Builder request = WatchRunRequest.newBuilder().setName(name);
    while (true) {
      Context.CancellableContext context = Context.current().withCancellation();
      Context previous = context.attach();
      try {
        request.setAfterSequence(after);
        Iterator<WatchRunResponse> stream = agents.watchRun(request.build());
        while (stream.hasNext()) {
          WatchRunResponse response = stream.next();
          if (!response.hasEvent()) continue; // a heartbeat
          RunEvent event = response.getEvent();
          after = event.getSequence();
          if (!each.test(event) || event.hasEnded()) return event.getEnded().getRun();
        }
        // Over without an error: the run ended at this sequence.
        return agents.getRun(GetRunRequest.newBuilder().setName(name).build()).getRun();
      } catch (StatusRuntimeException error) {
        Status.Code code = error.getStatus().getCode();
        if (code != Status.Code.UNAVAILABLE && code != Status.Code.INTERNAL) throw error;
      } finally {
        context.detach(previous);
        context.cancel(null); // ends a stream that we leave early
      }
      Thread.sleep(PAUSE_MS);
    }
  }
  // [follow ends]

  // [errors begins]
  /** Returns Remit's reason for an error; error.getStatus().getCode() is its canonical code. */
  private static String reasonOf(StatusRuntimeException error)
      throws InvalidProtocolBufferException {
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(ErrorInfo.class)) return detail.unpack(ErrorInfo.class).getReason();
    }
    return "";
  }
  // [errors ends]

  private static void show(String key, String value) throws InvalidProtocolBufferException {
    Value text = Value.newBuilder().setStringValue(value).build();
    System.out.printf("{\"%s\":%s}%n", key, JsonFormat.printer().print(text));
  }

  private static void showEvent(RunEvent event) {
    String chosen = event.getEventCase().name().toLowerCase(java.util.Locale.ROOT);
    System.out.printf("{\"sequence\":%d,\"event\":\"%s\"}%n", event.getSequence(), chosen);
  }
}
