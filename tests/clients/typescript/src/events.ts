// Server-sent events over fetch: a browser's EventSource sends neither a key nor a body.

/** One event; `id` and `type` are empty where the stream names none. */
export type ServerSentEvent = { id: string; type: string; data: string };

/**
 * The events of an answer (WHATWG HTML, section 9.2.6), comments left out.
 *
 * Throws when the answer is no stream, when the server tells an error (`event: error`), or when the
 * stream breaks off: one that is whole ends with `event: end`.
 */
export async function* events(answer: Response): AsyncGenerator<ServerSentEvent> {
  if (!answer.ok || answer.body === null) {
    throw new Error(`HTTP ${answer.status}: ${await answer.text()}`);
  }
  let text = "";
  const decoder = new TextDecoder();
  for await (const bytes of answer.body) {
    text += decoder.decode(bytes, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      const event = parsed(block);
      if (event.type === "end") return;
      if (event.type === "error") throw new Error(`the stream failed: ${event.data}`);
      if (event.data !== "") yield event;
    }
  }
  throw new Error("the stream broke off");
}

function parsed(block: string): ServerSentEvent {
  const event = { id: "", type: "", data: "" };
  for (const line of block.split("\n")) {
    const [name, value] = [line.split(":", 1)[0], line.replace(/^[^:]*:? ?/, "")];
    if (name === "id") event.id = value;
    if (name === "event") event.type = value;
    if (name === "data") event.data += value;
  }
  return event;
}
