// A client in Node, over gRPC: starts a run, follows it over a broken stream, and sends its
// idempotency key again. Prints what happened as one line of JSON.

import { create } from "@bufbuild/protobuf";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { AgentService, CreateRunRequestSchema } from "../gen/remit/api/agent/v1/agent_service_pb.js";
import { RunState } from "../gen/remit/api/agent/v1/run_pb.js";
import { follow, withKey } from "./follow.ts";

const { REMIT_ADDRESS: address, REMIT_API_KEY: key } = process.env;
if (!address || !key) throw new Error("REMIT_ADDRESS and REMIT_API_KEY must be set");

// [start begins]
const transport = createGrpcTransport({
  baseUrl: `http://${address}`,
  interceptors: [withKey(key)],
});
const agents = createClient(AgentService, transport);
const request = create(CreateRunRequestSchema, {
  agent: "agents/assistant",
  task: "What is 17 * 23?",
  requestId: crypto.randomUUID(),
});

const events = [];
const resumedAfter: string[] = [];
const onBreak = (after: bigint) => resumedAfter.push(`${after}`);
for await (const event of follow(agents, request, { onBreak })) events.push(event);
// [start ends]
const last = events.at(-1)?.event;
const run = last?.case === "ended" ? last.value.run : undefined;

// Behind the last event there is none, and nothing is waited for.
const after = events.at(-1)?.sequence ?? 0n;
const behind = [];
for await (const event of follow(agents, request, { after, onBreak })) behind.push(event);

// [errors begins]
// The same id and body: the same run. The same id with another body: refused.
const again = await agents.createRun(request);
const refusal = await agents.createRun({ ...request, task: "What is 1 + 1?" }).then(
  () => "accepted",
  (error) => ConnectError.from(error).findDetails(ErrorInfoSchema)[0]?.reason ?? `${error}`,
);
// [errors ends]

console.log(
  JSON.stringify({
    run: run?.name,
    state: RunState[run?.state ?? 0],
    result: run?.result,
    costNanos: `${run?.costNanos}`,
    sequences: events.map((event) => Number(event.sequence)),
    kinds: events.map((event) => event.event.case),
    resumedAfter,
    behind: behind.length,
    again: again.run?.name,
    refusal,
  }),
);
