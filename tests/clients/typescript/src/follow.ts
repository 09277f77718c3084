// Following a run to its end over as many streams as it takes; the same in Node and the browser.

import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Client, type Interceptor } from "@connectrpc/connect";
import { RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import type { AgentService, CreateRunRequest } from "../gen/remit/api/agent/v1/agent_service_pb.js";
import type { RunEvent } from "../gen/remit/api/agent/v1/run_pb.js";

const MAX_BREAKS_IN_A_ROW = 4;
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;

type Options = { signal?: AbortSignal; after?: bigint; onBreak?: (after: bigint) => void };

// [key begins]
/** Presents the API key with every call. */
export function withKey(key: string): Interceptor {
  return (next) => (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
}
// [key ends]

// [follow begins]
/**
 * Every event of a run, once and in order. A stream that breaks is resumed behind the last event
 * that arrived, with the same request: its `requestId` makes sure that no second run starts.
 *
 * Ends without `ended` where that stood before `after`: the run had ended already, and `getRun`
 * says how. Throws the ConnectError of a refusal, or of the last break when five came without an event.
 */
export async function* follow(
  agents: Client<typeof AgentService>,
  request: CreateRunRequest,
  { signal, after = 0n, onBreak }: Options = {},
): AsyncGenerator<RunEvent> {
  const options = signal === undefined ? {} : { signal };
  for (let breaks = 0; ; breaks++) {
    let pauseMs: number | undefined;
    try {
      for await (const { event } of agents.streamRun({ request, afterSequence: after }, options)) {
        if (event === undefined) continue; // a heartbeat
        after = event.sequence;
        breaks = 0;
        yield event;
        if (event.event.case === "ended") return;
      }
      return; // over without an error: nothing follows
    } catch (error) {
      pauseMs = pauseAfter(error, breaks);
      if (signal?.aborted || breaks >= MAX_BREAKS_IN_A_ROW || pauseMs === undefined) throw error;
      onBreak?.(after);
    }
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

/**
 * Codes of a connection that broke. Node's HTTP/2 calls one that was cut "canceled", as if the
 * caller had said so; a browser knows no more than that the network failed.
 */
const BROKEN = new Set([Code.Unavailable, Code.Internal, Code.Unknown, Code.Canceled]);

/** How long to wait before the stream is resumed; undefined where the error is an answer. */
function pauseAfter(error: unknown, breaks: number): number | undefined {
  const known = ConnectError.from(error);
  // Remit's errors have details, those that time may cure a RetryInfo. A broken connection has none.
  if (known.details.length === 0) return BROKEN.has(known.code) ? pause(breaks) : undefined;
  const delay = known.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return delay && Math.max(durationMs(delay), pause(breaks));
}
// [follow ends]

function pause(breaks: number): number {
  return Math.min(FIRST_PAUSE_MS * 2 ** breaks, LONGEST_PAUSE_MS);
}
