// What an application in TypeScript writes, for the compiler to check against client.d.ts. It is not run.

import { Pushgate, PushgateError } from "../../src/server/client.js";
import type { Bound, Gap, Push, PushgateStatus } from "../../src/server/client.js";

async function fetchToken(): Promise<string> {
  const answer = await fetch("/token");
  return answer.text();
}

const gate = new Pushgate("wss://push.example.com/ws", {
  token: fetchToken,
  events: ["mail", "chat"] as const,
  WebSocket,
  backoff: { minMs: 100, maxMs: 10_000 },
  ack: "manual",
  pingIntervalMs: 20_000,
});

gate.addEventListener("push", ({ detail }) => {
  const push: Push = detail;
  const size: number = push.binary?.byteLength ?? push.message?.length ?? 0;
  console.log(push.event, push.seq, push.id, size);
  gate.ack(push);
  gate.ack(push.seq);
  // @ts-expect-error A push is not changed.
  push.seq = 7;
});
gate.addEventListener("gap", function ({ detail }) {
  const { from, to }: Gap = detail;
  console.log(this.state, to - from + 1);
});
gate.addEventListener("resumed", ({ detail }) => detail.recovered || location.reload(), { once: true });
gate.addEventListener("error", ({ detail }) => console.log(detail.code, detail.event?.length, detail.cause));
gate.addEventListener("something else", (event: Event) => console.log(event.type));

function say(status: PushgateStatus): string {
  switch (status.state) {
    case "connecting":
    case "open":
      return status.state;
    case "waiting":
      return status.retryMs === null ? status.reason : `back in ${Math.ceil(status.retryMs / 1000)} s`;
    case "closed":
      return `${status.code ?? ""} ${status.reason}`;
  }
}
const listener = ({ detail }: CustomEvent<PushgateStatus>) => console.log(say(detail));
gate.addEventListener("state", listener);
gate.removeEventListener("state", listener);

try {
  const bound: Bound = await gate.bind("news");
  console.log(bound.connectionId, bound.epoch, bound.expiresInMs);
  await gate.unbind("news");
} catch (error) {
  if (error instanceof PushgateError && error.code === "not_allowed") console.log(error.event);
}
gate.reconnect();
gate.close();
console.log(say(gate.status));

new Pushgate(new URL("/ws", location.href), { token: "a fixed one" });
// @ts-expect-error There is no client without a token.
new Pushgate("/ws", { events: ["mail"] });
// @ts-expect-error No such way to acknowledge.
new Pushgate("/ws", { token: "t", ack: "never" });
// @ts-expect-error The state is for reading.
gate.state = "open";
