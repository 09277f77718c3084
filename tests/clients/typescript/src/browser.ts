// A page of another origin than the gateway: runs an agent over gRPC-Web and over REST, and follows
// both streams. Writes what happened into itself as JSON, for the test.

import { create } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { AgentService, CreateRunRequestSchema } from "../gen/remit/api/agent/v1/agent_service_pb.js";
import { events } from "./events.ts";
import { follow, withKey } from "./follow.ts";

type Given = { baseUrl: string; key: string; task: string };

/** Runs the task over gRPC-Web, resuming the stream where it breaks. */
async function overGrpcWeb({ baseUrl, key, task }: Given) {
  // [start begins]
  const transport = createGrpcWebTransport({ baseUrl, interceptors: [withKey(key)] });
  const agents = createClient(AgentService, transport);
  const requestId = crypto.randomUUID();
  const request = create(CreateRunRequestSchema, { agent: "agents/assistant", task, requestId });
  // [start ends]
  const sequences: number[] = [];
  const resumedAfter: number[] = [];
  let result: string | undefined;
  const onBreak = (after: bigint) => resumedAfter.push(Number(after));
  for await (const { sequence, event } of follow(agents, request, { onBreak })) {
    // The test cuts the connection once it knows that this page has seen an event.
    if (sequences.push(Number(sequence)) === 1) await fetch("/seen");
    if (event.case === "ended") result = event.value.run?.result;
  }
  return { sequences, resumedAfter, result };
}

/** Runs the task over REST, leaves its stream after three events and goes on by `Last-Event-ID`. */
async function overRest({ baseUrl, key, task }: Given) {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const body = { agent: "agents/assistant", task, requestId: crypto.randomUUID() };
  const start = await fetch(`${baseUrl}/v1/runs:stream`, {
    method: "POST",
    headers,
    body: JSON.stringify(body),
  });
  const before: string[] = [];
  let run = "";
  for await (const { id, data } of events(start)) {
    before.push(id);
    run = JSON.parse(data).event.run;
    if (before.length === 3) break;
  }
  const rest = await fetch(`${baseUrl}/v1/${run}/events`, {
    headers: { ...headers, "last-event-id": before.at(-1) ?? "" },
  });
  const behind: string[] = [];
  let result: string | undefined;
  for await (const { id, data } of events(rest)) {
    behind.push(id);
    result = JSON.parse(data).event.ended?.run.result ?? result;
  }
  return { before, behind, result };
}

async function outcome<T>(work: Promise<T>): Promise<T | { error: string }> {
  return work.catch((error: unknown) => ({ error: `${error}` }));
}

const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1))) as Given;
const told = {
  origin: location.origin,
  grpcWeb: await outcome(overGrpcWeb(given)),
  rest: await outcome(overRest(given)),
};
const place = document.createElement("pre");
place.id = "outcome";
place.textContent = JSON.stringify(told);
document.body.append(place);
