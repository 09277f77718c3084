// Following a run to its end over as many streams as it takes; the same in Node and the browser.

import { Code, ConnectError, type Client, type Interceptor } from "@connectrpc/connect";
import type { AgentService, CreateRunRequest } from "../gen/remit/api/agent/v1/agent_service_pb.js";
import type { RunEvent } from "../gen/remit/api/agent/v1/run_pb.js";

/** Codes of a stream that broke while its run goes on. */
const BROKEN = new Set([Code.Unavailable, Code.Internal, Code.ResourceExhausted, Code.Unknown]);
// Node's HTTP/2 calls a connection that was cut "canceled", as if the caller had said so.
const CUT = Code.Canceled;
const MAX_BREAKS_IN_A_ROW = 4;
const FIRST_PAUSE_MS = 100;

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
 * Throws the ConnectError of a refusal, or of the last break when five came without an event.
 */
export async function* follow(
  agents: Client<typeof AgentService>,
  request: CreateRunRequest,
  { signal, onBreak }: { signal?: AbortSignal; onBreak?: (after: bigint) => void } = {},
): AsyncGenerator<RunEvent> {
  const options = signal === undefined ? {} : { signal };
  let after = 0n;
  for (let breaks = 0; ; breaks++) {
    try {
      for await (const { event } of agents.streamRun({ request, afterSequence: after }, options)) {
        if (event === undefined) continue; // a heartbeat
        after = event.sequence;
        breaks = 0;
        yield event;
        if (event.event.case === "ended") return;
      }
    } catch (error) {
      if (signal?.aborted || !isBreak(error) || breaks >= MAX_BREAKS_IN_A_ROW) throw error;
      onBreak?.(after);
    }
    await new Promise((resolve) => setTimeout(resolve, FIRST_PAUSE_MS * 2 ** breaks));
  }
}
// [follow ends]

function isBreak(error: unknown): boolean {
  const { code, details } = ConnectError.from(error);
  return BROKEN.has(code) || (code === CUT && details.length === 0); // Remit's errors have details
}
