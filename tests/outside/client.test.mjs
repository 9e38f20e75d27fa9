// The client module by itself, against a WebSocket and a clock that the tests hold in their hands: node --test

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { Pushgate, PushgateError } from "../../src/server/client.js";

const URL = "wss://push.example.com/ws";
const SECRET = "a-secret-token";

let clock, network, random, gates;

/** Time that passes when a test says so. */
class Clock {
  now = 5_000;
  timers = new Map();
  #last = 0;

  set = (act, ms) => {
    // A real one overflows.
    const inMs = ms >= 2 ** 31 ? 1 : Math.max(ms, 0);
    this.timers.set(++this.#last, { act, at: this.now + inMs });
    return this.#last;
  };
  clear = (id) => this.timers.delete(id);

  async pass(ms) {
    const end = this.now + ms;
    for (;;) {
      const due = [...this.timers].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at);
      if (!due.length) break;
      const [id, { act, at }] = due[0];
      this.timers.delete(id);
      this.now = Math.max(this.now, at);
      act();
      await settled();
    }
    this.now = end;
    await settled();
  }
}

/** Until all promises that can be done are. */
const settled = () => new Promise((done) => setImmediate(done));

class FakeSocket {
  static all = [];
  sent = [];
  protocol = "";
  closed = null;

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    FakeSocket.all.push(this);
  }
  send(text) {
    this.sent.push(JSON.parse(text));
  }
  close(code) {
    this.closed ??= { code };
  }

  // The gateway's side.
  async open(protocol = "pushgate.v1.json") {
    this.protocol = protocol;
    this.onopen({});
    this.say({ type: "welcome", bind_timeout_ms: 10_000, ping_interval_ms: 30_000 });
    await settled();
  }
  say(frame) {
    this.onmessage({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
  }
  async drop(code = 1006, reason = "") {
    this.onclose({ code, reason });
    await settled();
  }
  of(type) {
    return this.sent.filter((frame) => frame.type === type);
  }
  async bound(more = {}) {
    const { event } = this.of("bind")[0];
    const answer = { connection_id: "c-1", epoch: "e-1", resume: "r-1", seq: 0 };
    this.say({ type: "bound", event, ...answer, ...more });
    await settled();
  }
  push(seq, message = `m${seq}`, event = "mail") {
    this.say({ type: "push", seq, id: `id-${seq}`, event, message });
  }
}

const latest = () => FakeSocket.all.at(-1);

/** An error's message and cause are not among what is spread. */
const wordsOf = (told) => (told instanceof Error ? { message: told.message, cause: String(told.cause) } : {});

/** A client, and all that it told. */
function start(options = {}) {
  const gate = new Pushgate(URL, { token: SECRET, events: ["mail"], WebSocket: FakeSocket, ...options });
  const told = [];
  for (const type of ["state", "push", "gap", "resumed", "error"]) {
    gate.addEventListener(type, ({ detail }) => told.push({ type, ...detail, ...wordsOf(detail) }));
  }
  gates.push(gate);
  gate.told = (type) => told.filter((entry) => entry.type === type);
  gate.messages = () => gate.told("push").map(({ seq, message }) => [seq, message]);
  gate.everything = told;
  return gate;
}

/** A client that is bound. */
async function started(options) {
  const gate = start(options);
  await settled();
  await latest().open();
  await latest().bound();
  assert.equal(gate.state, "open");
  return gate;
}

/** Passes the wait of the latest client, which comes back and is bound. */
async function back(answer) {
  const before = FakeSocket.all.length;
  await clock.pass(gates.at(-1).status.retryMs);
  assert.equal(FakeSocket.all.length, before + 1, "it came back once");
  await latest().open();
  await latest().bound(answer);
}

const real = {};
const GLOBALS = ["setTimeout", "clearTimeout", "addEventListener", "removeEventListener", "navigator"];

beforeEach(() => {
  clock = new Clock();
  network = new EventTarget();
  network.listeners = 0;
  random = 0;
  gates = [];
  FakeSocket.all = [];
  for (const name of GLOBALS) real[name] = Object.getOwnPropertyDescriptor(globalThis, name);
  real.random = Math.random;
  const set = (name, value) => Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  set("setTimeout", clock.set);
  set("clearTimeout", clock.clear);
  set("addEventListener", (...args) => (network.listeners++, network.addEventListener(...args)));
  set("removeEventListener", (...args) => (network.listeners--, network.removeEventListener(...args)));
  set("navigator", { onLine: true });
  Object.defineProperty(performance, "now", { value: () => clock.now, configurable: true });
  Math.random = () => random;
});

afterEach(() => {
  gates.forEach((gate) => gate.close());
  const left = clock.timers.size;
  for (const name of GLOBALS) {
    if (real[name]) Object.defineProperty(globalThis, name, real[name]);
    else delete globalThis[name];
  }
  delete performance.now;
  Math.random = real.random;
  assert.equal(left, 0, "a closed client has no timers");
  assert.equal(network.listeners, 0, "a closed client listens to nothing");
  assert.ok(!JSON.stringify(gates.map((gate) => gate.everything)).includes(SECRET), "no token is told");
});

function setOnline(isOnline) {
  navigator.onLine = isOnline;
  network.dispatchEvent(new Event(isOnline ? "online" : "offline"));
}

test("binds all events, and tells when it is open", async () => {
  const gate = start({ events: ["mail", "chat"] });
  assert.equal(gate.state, "connecting");
  await settled();
  assert.deepEqual([latest().url, latest().protocols], [URL, ["pushgate.v1.json"]]);
  await latest().open();
  assert.deepEqual(latest().sent, ["mail", "chat"].map((event) => ({ type: "bind", token: SECRET, event })));
  await latest().bound({ expires_in_ms: 60_000 });
  assert.deepEqual(gate.told("state"), [{ type: "state", state: "open" }]);
  assert.deepEqual(await gate.bind("mail"), {
    event: "mail", connectionId: "c-1", epoch: "e-1", seq: 0, expiresInMs: 60_000,
  });
  assert.equal(latest().sent.length, 2, "what is bound is not bound again");
});

test("delivers text and bytes in order", async () => {
  const gate = await started();
  latest().push(1, "one");
  latest().say({ type: "push", seq: 2, id: "id-2", event: "mail", binary: "AP+AfwA=" });
  const [one, two] = gate.told("push");
  assert.deepEqual(one, { type: "push", id: "id-1", event: "mail", seq: 1, epoch: "e-1", message: "one" });
  assert.deepEqual([two.message, two.binary], [undefined, new Uint8Array([0, 255, 128, 127, 0])]);
});

test("drops what it has, and tells of a jump in the numbers as of a gap", async () => {
  const gate = await started();
  for (const seq of [1, 2, 2, 1, 3]) latest().push(seq);
  latest().say({ type: "gap", from: 4, to: 6 });
  latest().say({ type: "gap", from: 4, to: 6 });
  for (const seq of [5, 7, 10]) latest().push(seq);
  assert.deepEqual(gate.messages().map(([seq]) => seq), [1, 2, 3, 7, 10]);
  const gaps = gate.told("gap").map(({ from, to }) => [from, to]);
  assert.deepEqual(gaps, [[4, 6], [8, 9]]);
});

test("goes on with its session after a loss", async () => {
  const gate = await started({ events: ["mail", "chat"] });
  latest().push(1);
  latest().push(2);
  await latest().drop(1006);
  await back({ seq: 2, recovered: true, resume: "r-2" });
  const [first, second] = latest().of("bind");
  assert.deepEqual(first, { type: "bind", token: SECRET, event: "mail", resume: { token: "r-1", seq: 2 } });
  assert.deepEqual(second, { type: "bind", token: SECRET, event: "chat" });
  for (const seq of [2, 3, 4]) latest().push(seq);
  assert.deepEqual(gate.messages().map(([seq]) => seq), [1, 2, 3, 4]);
  assert.deepEqual(gate.told("resumed"), [
    { type: "resumed", recovered: true, epoch: "e-1", previousEpoch: "e-1", seq: 2 },
  ]);
  assert.deepEqual(gate.told("gap"), []);
  await latest().drop();
  await back({ seq: 4, recovered: true });
  assert.deepEqual(latest().of("bind")[0].resume, { token: "r-2", seq: 4 });
});

test("says so when the session is gone, and counts afresh", async () => {
  const gate = await started();
  latest().push(1);
  latest().push(2);
  await latest().drop(1001);
  await back({ epoch: "e-2", seq: 0, recovered: false });
  latest().push(1, "of the new session");
  assert.deepEqual(gate.messages().at(-1), [1, "of the new session"]);
  const { recovered, epoch, previousEpoch } = gate.told("resumed")[0];
  assert.deepEqual([recovered, epoch, previousEpoch], [false, "e-2", "e-1"]);
  assert.deepEqual(gate.told("gap"), []);
});

test("tells what a resumed session skips", async () => {
  const gate = await started();
  latest().push(1);
  await latest().drop();
  await back({ seq: 4, recovered: false });
  latest().push(5);
  assert.deepEqual(gate.told("gap").map(({ from, to }) => [from, to]), [[2, 4]]);
  assert.deepEqual(gate.told("resumed")[0].recovered, false);
  assert.deepEqual(gate.messages().map(([seq]) => seq), [1, 5]);
});

test("acknowledges the first push at once, and others at most every 50 ms", async () => {
  await started();
  const acks = () => latest().of("ack").map(({ seq }) => seq);
  latest().push(1);
  assert.deepEqual(acks(), [1]);
  for (const seq of [2, 3, 4]) latest().push(seq);
  await clock.pass(49);
  assert.deepEqual(acks(), [1]);
  await clock.pass(1);
  assert.deepEqual(acks(), [1, 4]);
  await clock.pass(1_000);
  latest().say({ type: "gap", from: 5, to: 9 });
  assert.deepEqual(acks(), [1, 4, 9], "a gap is done with too");
});

test("acknowledges when the listeners have run, and before it closes", async () => {
  const gate = await started();
  const acks = () => latest().of("ack").map(({ seq }) => seq);
  const seen = [];
  gate.addEventListener("push", ({ detail }) => {
    seen.push([detail.seq, acks()]);
    if (detail.seq === 3) gate.close();
  });
  for (const seq of [1, 2, 3]) latest().push(seq);
  assert.deepEqual(seen, [[1, []], [2, [1]], [3, [1]]]);
  assert.deepEqual(acks(), [1, 3]);
  assert.deepEqual(latest().closed, { code: 1000 });
});

test("acknowledges without delay to a gateway that goes away", async () => {
  await started();
  const acks = () => latest().of("ack").map(({ seq }) => seq);
  for (const seq of [1, 2]) latest().push(seq);
  assert.deepEqual(acks(), [1]);
  latest().say({ type: "goaway", retry_after_ms: 1_000 });
  assert.deepEqual(acks(), [1, 2]);
  for (const seq of [3, 4]) latest().push(seq);
  assert.deepEqual(acks(), [1, 2, 3, 4]);
});

test("leaves acknowledging to the application where it wants to", async () => {
  const gate = await started({ ack: "manual" });
  const acks = () => latest().of("ack").map(({ seq }) => seq);
  for (const seq of [1, 2, 3]) latest().push(seq);
  const pushes = gate.told("push");
  await clock.pass(100);
  assert.deepEqual(acks(), []);
  gate.ack(2);
  gate.ack(1);
  gate.ack(99);
  assert.deepEqual(acks(), [2]);
  await latest().drop();
  await back({ seq: 2, recovered: true });
  assert.deepEqual(latest().of("bind")[0].resume.seq, 2, "what is not acknowledged is not said to be");
  for (const seq of [3, 4]) latest().push(seq);
  assert.deepEqual(gate.messages().map(([seq]) => seq), [1, 2, 3, 4], "and not delivered twice");
  gate.ack(pushes[2]);
  assert.deepEqual(acks(), [3]);
  await latest().drop();
  await back({ epoch: "e-2", seq: 0, recovered: false });
  for (const seq of [1, 2, 3]) latest().push(seq);
  gate.ack(pushes[2]);
  await clock.pass(100);
  assert.deepEqual(acks(), [], "an old session's push is not taken for the new one's");
});

test("waits between nothing and a ceiling that doubles", async () => {
  for (const [drawn, share] of [[0, 0], [0.5, 0.5], [0.999, 0.999]]) {
    FakeSocket.all = [];
    random = drawn;
    const gate = start({ backoff: { minMs: 100, maxMs: 1_000 } });
    await settled();
    for (const ceiling of [100, 200, 400, 800, 1_000, 1_000]) {
      await latest().drop();
      const expected = ceiling * share;
      assert.deepEqual([gate.status.state, gate.status.code], ["waiting", 1006]);
      assert.ok(Math.abs(gate.status.retryMs - expected) < 0.001, `${gate.status.retryMs} of ${ceiling}`);
      const attempts = FakeSocket.all.length;
      if (expected > 1) await clock.pass(expected - 1);
      assert.equal(FakeSocket.all.length, attempts);
      await clock.pass(1.001);
      assert.equal(FakeSocket.all.length, attempts + 1);
    }
    gate.close();
  }
});

test("begins with the shortest wait again only after a connection that held", async () => {
  random = 1;
  const gate = start({ backoff: { minMs: 100, maxMs: 10_000 } });
  await settled();
  for (const [heldMs, waitMs] of [[9_999, 100], [9_999, 200], [9_999, 400], [10_000, 100], [0, 200]]) {
    await latest().open();
    await latest().bound();
    await clock.pass(heldMs);
    await latest().drop();
    assert.equal(gate.status.retryMs, waitMs);
    await clock.pass(waitMs);
  }
});

test("comes back exactly when a gateway that goes away says", async () => {
  const gate = await started();
  latest().say({ type: "goaway", retry_after_ms: 12_345 });
  assert.equal(gate.state, "open");
  latest().push(1);
  await latest().drop(1012, "drain");
  assert.deepEqual(gate.status, { state: "waiting", retryMs: 12_345, code: 1012, reason: "drain" });
  await clock.pass(1_000);
  setOnline(true);
  assert.equal(gate.status.retryMs, 11_345, "the network is no reason to come sooner");
  await clock.pass(11_344);
  assert.equal(FakeSocket.all.length, 1);
  await clock.pass(1);
  assert.equal(FakeSocket.all.length, 2);
});

test("comes back at once when a person asks for it, whatever the wait is for", async () => {
  random = 1;
  const gate = await started();
  latest().push(1);
  gate.reconnect();
  assert.equal(FakeSocket.all.length, 1, "it is open");
  latest().say({ type: "goaway", retry_after_ms: 12_345 });
  await latest().drop(1012, "drain");
  assert.equal(gate.status.retryMs, 12_345);
  gate.reconnect();
  gate.reconnect();
  await settled();
  assert.deepEqual([gate.state, FakeSocket.all.length], ["connecting", 2]);
  await latest().open();
  assert.deepEqual(latest().of("bind")[0].resume, { token: "r-1", seq: 1 });
  await latest().bound({ recovered: true, seq: 1 });
  await clock.pass(20_000);
  assert.deepEqual([gate.state, FakeSocket.all.length], ["open", 2], "the wait is over too");

  navigator.onLine = false;
  await latest().drop();
  assert.equal(gate.status.retryMs, null);
  gate.reconnect();
  await settled();
  assert.deepEqual([gate.state, FakeSocket.all.length], ["connecting", 3], "a browser may be wrong about the network");

  const idle = start({ events: [] });
  idle.reconnect();
  await settled();
  assert.deepEqual([idle.state, FakeSocket.all.length], ["waiting", 3], "nothing to connect for");
  gate.close();
  gate.reconnect();
  assert.equal(gate.state, "closed");
});

test("stops where coming back would end the same way, and says why", async () => {
  for (const code of [1002, 1007, 1009, 4400, 4401, 4403, 4409]) {
    const gate = await started();
    await latest().drop(code, "because");
    assert.deepEqual(gate.status, { state: "closed", code, reason: "because" });
    assert.equal(clock.timers.size, 0);
    await assert.rejects(gate.bind("chat"), { code: "closed" });
  }
  for (const code of [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4408, 4410, 4429]) {
    const gate = await started();
    await latest().drop(code);
    assert.equal(gate.state, "waiting", String(code));
    gate.close();
  }
});

test("asks for a token for each connection", async () => {
  let calls = 0;
  await started({ token: async () => `token ${++calls}` });
  await latest().drop(4410);
  await back();
  assert.deepEqual(FakeSocket.all.map((socket) => socket.of("bind")[0].token), ["token 1", "token 2"]);
});

test("refreshes a token before its time is over, and binds with the new one", async () => {
  let calls = 0;
  const gate = start({ token: () => `token ${++calls}` });
  await settled();
  await latest().open();
  await latest().bound({ expires_in_ms: 10_000 });
  await clock.pass(7_999);
  assert.deepEqual(latest().of("refresh"), []);
  await clock.pass(1);
  assert.deepEqual(latest().of("refresh"), [{ type: "refresh", token: "token 2" }]);
  latest().say({ type: "refreshed", expires_in_ms: 20_000 });
  gate.bind("chat");
  assert.deepEqual(latest().of("bind").at(-1), { type: "bind", token: "token 2", event: "chat" });
  await latest().bound({ event: "chat", expires_in_ms: 90_000 });
  await clock.pass(16_000);
  assert.equal(latest().of("refresh").at(-1).token, "token 3");
  latest().say({ type: "error", code: "check_unavailable", message: "later" });
  await clock.pass(3_200);
  assert.equal(latest().of("refresh").at(-1).token, "token 4", "a refused one is tried again while there is time");
});

test("does not refresh a token that lasts for months at once", async () => {
  let calls = 0;
  start({ token: () => `token ${++calls}` });
  await settled();
  await latest().open();
  await latest().bound({ expires_in_ms: 2 ** 33 });
  await clock.pass(20_000);
  assert.deepEqual(latest().of("refresh"), []);
});

test("a token function that fails is called again later", async () => {
  random = 1;
  let calls = 0;
  const answers = [() => { throw new Error("no"); }, () => Promise.reject(new Error("no")), () => "", () => SECRET];
  const gate = start({ token: () => answers[calls++](), backoff: { minMs: 100, maxMs: 1_000 } });
  for (const waitMs of [100, 200, 400]) {
    await settled();
    const { retryMs, reason } = gate.status;
    assert.deepEqual([gate.state, retryMs, reason], ["waiting", waitMs, "there is no token"]);
    await clock.pass(waitMs);
  }
  assert.deepEqual(gate.told("error").map(({ code }) => code), Array(3).fill("token_unavailable"));
  assert.equal(FakeSocket.all.length, 1);
});

test("closing while a token is fetched leaves nothing behind", async () => {
  let give;
  const gate = start({ token: () => new Promise((resolve) => (give = resolve)) });
  const bind = gate.bind("chat");
  gate.close();
  assert.equal(clock.timers.size, 0);
  give(SECRET);
  await settled();
  assert.equal(FakeSocket.all.length, 0);
  await assert.rejects(bind, { code: "closed" });
  assert.deepEqual(gate.status, { state: "closed", code: 1000, reason: "closed by this client" });
});

test("closing while connecting, waiting and when closed", async () => {
  const connecting = start();
  await settled();
  connecting.close();
  assert.deepEqual(latest().closed, { code: 1000 });
  const waiting = await started();
  await latest().drop();
  waiting.close();
  waiting.close();
  assert.equal(clock.timers.size, 0);
  assert.deepEqual(waiting.told("state").map(({ state }) => state), ["open", "waiting", "closed"]);
});

test("what an old socket says late is ignored", async () => {
  const gate = await started();
  const old = latest();
  old.push(1);
  random = 0.5;
  await clock.pass(30_000);
  await clock.pass(10_000);
  assert.deepEqual([gate.status.state, old.closed], ["waiting", { code: undefined }]);
  old.push(2);
  await clock.pass(gate.status.retryMs);
  await old.drop(4409);
  assert.equal(gate.state, "connecting");
  await latest().open();
  await latest().bound({ seq: 1, recovered: true });
  old.push(3);
  await old.drop(4401);
  assert.equal(gate.state, "open");
  assert.deepEqual(gate.messages(), [[1, "m1"]]);
});

test("asks for a sign of life after a silence, and comes back when there is none", async () => {
  const gate = await started();
  await clock.pass(20_000);
  latest().push(1);
  await clock.pass(29_999);
  assert.deepEqual(latest().of("ping"), []);
  await clock.pass(1);
  assert.deepEqual(latest().of("ping"), [{ type: "ping" }]);
  latest().say({ type: "pong" });
  await clock.pass(10_000);
  assert.equal(gate.state, "open");
  await clock.pass(20_000);
  assert.equal(latest().of("ping").length, 2);
  await clock.pass(9_999);
  assert.equal(gate.state, "open");
  random = 0.5;
  await clock.pass(1);
  assert.deepEqual([gate.state, gate.status.reason], ["waiting", "nothing was heard from the gateway"]);
  assert.deepEqual(latest().closed, { code: undefined }, "a close without a code keeps the session");
});

test("an attempt that is not answered is given up", async () => {
  const gate = start({ connectTimeoutMs: 5_000, backoff: { minMs: 100, maxMs: 100 } });
  await settled();
  await latest().open();
  random = 1;
  await clock.pass(5_000);
  assert.deepEqual([gate.state, latest().closed], ["waiting", { code: undefined }]);
  const slow = start({ connectTimeoutMs: 5_000, token: () => new Promise(() => {}) });
  await clock.pass(5_000);
  assert.equal(slow.state, "waiting");
});

test("waits for the network where there is none, and asks whether an open connection still lives", async () => {
  random = 0.5;
  const gate = await started({ backoff: { minMs: 100, maxMs: 1_000 } });
  navigator.onLine = false;
  await latest().drop();
  assert.deepEqual([gate.status.retryMs, gate.status.reason], [null, "the browser is offline"]);
  await clock.pass(3_600_000);
  assert.equal(FakeSocket.all.length, 1);
  setOnline(true);
  assert.equal(gate.status.retryMs, 50);
  setOnline(false);
  assert.equal(gate.status.retryMs, null);
  setOnline(true);
  await clock.pass(50);
  assert.equal(FakeSocket.all.length, 2);
  await latest().open();
  await latest().bound({ recovered: true });
  setOnline(true);
  assert.deepEqual(latest().of("ping"), [{ type: "ping" }]);
});

test("a gateway on this machine needs no network", async () => {
  navigator.onLine = false;
  for (const host of ["localhost", "127.0.0.1", "[::1]"]) {
    gates.push(new Pushgate(`ws://${host}:12345/ws`, { token: SECRET, events: ["mail"], WebSocket: FakeSocket }));
    await settled();
    assert.equal(latest()?.url, `ws://${host}:12345/ws`);
  }
  assert.equal(start().state, "waiting");
});

test("stops at a server that does not pick the subprotocol", async () => {
  const gate = start();
  await settled();
  await latest().open("").catch(() => {});
  assert.equal(gate.state, "closed");
  assert.match(gate.status.reason, /pushgate\.v1\.json/);
  assert.deepEqual(gate.told("error").map(({ code }) => code), ["no_subprotocol"]);
  assert.deepEqual(latest().sent, [], "no token is sent to it");
});

test("stops where a WebSocket may not be opened at all", async () => {
  class Forbidden {
    constructor() {
      throw new Error("an insecure WebSocket from a secure page");
    }
  }
  const gate = start({ WebSocket: Forbidden });
  await settled();
  assert.deepEqual([gate.status.state, gate.status.reason], ["closed", "an insecure WebSocket from a secure page"]);
});

test("a WebSocket that tells of an error alone is lost too", async () => {
  const gate = start();
  await settled();
  latest().onerror({});
  random = 1;
  await clock.pass(1_000);
  assert.equal(gate.state, "waiting");
});

test("binds while it connects, while it waits and while it is open", async () => {
  const gate = start();
  const chat = gate.bind("chat");
  await settled();
  const news = gate.bind("news");
  await latest().open();
  const late = gate.bind("late");
  assert.deepEqual(latest().of("bind").map(({ event }) => event), ["mail", "chat", "news", "late"]);
  await latest().bound();
  for (const event of ["chat", "news", "late"]) await latest().bound({ event });
  for (const [event, bind] of [["chat", chat], ["news", news], ["late", late]]) assert.equal((await bind).event, event);
  await latest().drop();
  const away = gate.bind("away");
  await back({ recovered: true });
  assert.equal(latest().of("bind").length, 5);
  await latest().bound({ event: "away" });
  assert.equal((await away).event, "away");
});

test("connects with the first event there is", async () => {
  const gate = start({ events: [] });
  assert.deepEqual(gate.status, { state: "waiting", retryMs: null, reason: "there is no event to bind" });
  const bind = gate.bind("mail");
  await settled();
  await latest().open();
  await latest().bound();
  assert.equal((await bind).event, "mail");
});

test("a refused bind is told and not repeated, and the connection stays", async () => {
  const gate = await started();
  const bind = gate.bind("chat");
  gate.bind("left alone");
  gate.bind("x".repeat(1_000));
  latest().say({ type: "error", code: "not_allowed", message: "no", event: "chat" });
  latest().say({ type: "error", code: "too_many_events", message: "no", event: "left alone" });
  latest().say({ type: "error", code: "incomplete", message: "no" });
  await assert.rejects(bind, (error) => error instanceof PushgateError && error.code === "not_allowed");
  const refused = gate.told("error").map(({ code, event }) => [code, event.slice(0, 12)]);
  assert.deepEqual(refused, [
    ["not_allowed", "chat"], ["too_many_events", "left alone"], ["incomplete", "xxxxxxxxxxxx"],
  ]);
  assert.equal(gate.state, "open");
  await latest().drop();
  await back({ recovered: true });
  assert.deepEqual(latest().of("bind").map(({ event }) => event), ["mail"]);
  gate.bind("chat");
  await latest().bound({ event: "chat" });
  assert.equal((await gate.bind("chat")).event, "chat", "it may be asked for again");
});

test("a bind whose token cannot be checked just now is repeated", async () => {
  const gate = await started({ backoff: { minMs: 1_000 } });
  const bind = gate.bind("chat");
  latest().say({ type: "error", code: "check_unavailable", message: "later", event: "chat" });
  await clock.pass(1_000);
  assert.deepEqual(latest().of("bind").map(({ event }) => event), ["mail", "chat", "chat"]);
  await latest().bound({ event: "chat" });
  assert.equal((await bind).event, "chat");
});

test("a first bind that is refused rejects with the gateway's code", async () => {
  const gate = start({ events: [] });
  const [mail, chat] = [gate.bind("mail"), gate.bind("chat")];
  await settled();
  await latest().open();
  latest().say({ type: "error", code: "token_refused", message: "no", event: "mail" });
  await latest().drop(4401, "token refused");
  await assert.rejects(mail, { code: "token_refused" });
  await assert.rejects(chat, { code: "closed" });
  assert.deepEqual(gate.status, { state: "closed", code: 4401, reason: "token refused" });
});

test("unbinds, and delivers nothing of it from then on", async () => {
  const gate = await started({ events: ["mail", "chat"] });
  await latest().bound({ event: "chat" });
  const unbind = gate.unbind("chat");
  latest().push(1, "too late", "chat");
  latest().push(2, "still wanted");
  assert.deepEqual(latest().of("unbind"), [{ type: "unbind", event: "chat" }]);
  latest().say({ type: "unbound", event: "chat" });
  await unbind;
  assert.deepEqual(gate.messages(), [[2, "still wanted"]]);
  assert.deepEqual(gate.told("gap"), []);
  await assert.rejects(gate.unbind("mail"), { code: "last_event" });
  await gate.unbind("never bound");
});

test("what was unbound while away is unbound when it is back", async () => {
  const gate = await started({ events: ["mail", "chat"] });
  await latest().bound({ event: "chat" });
  await latest().drop();
  await gate.unbind("mail");
  await back({ event: "chat", recovered: true });
  assert.deepEqual(latest().of("bind").map(({ event }) => event), ["chat"]);
  assert.deepEqual(latest().of("unbind"), [{ type: "unbind", event: "mail" }]);
  latest().push(1, "unwanted");
  assert.deepEqual(gate.messages(), []);
});

test("an event that was good before is bound first, so that a new one cannot end the session", async () => {
  const gate = await started();
  await latest().drop();
  gate.bind("new");
  await gate.unbind("mail");
  gate.bind("mail");
  await back({ recovered: true });
  assert.deepEqual(latest().of("bind").map(({ event }) => event), ["mail", "new"]);
});

test("what cannot be read is told, and a push in it is a gap", async () => {
  const gate = await started();
  latest().push(1);
  latest().say(SECRET);
  latest().say("null");
  latest().say({ type: "push", seq: 2, id: "x", event: "mail", binary: "?" });
  latest().say({ type: "from a later version" });
  latest().push(3);
  assert.deepEqual(gate.told("error").map(({ code }) => code), Array(3).fill("not_understood"));
  assert.deepEqual(gate.told("gap").map(({ from, to }) => [from, to]), [[2, 2]]);
  assert.deepEqual(gate.messages().map(([seq]) => seq), [1, 3]);
});

/** The gateway's side of sessions, which keeps a few messages and forgets a session now and then. */
class FakeGateway {
  constructor(draw) {
    Object.assign(this, { draw, epochs: 0, sessions: new Map(), here: null, session: null, asked: 0 });
  }

  push() {
    const session = this.session;
    if (!session) return;
    const seq = ++session.seq;
    session.log.push(this.draw(8) === 0 ? { type: "gap", from: seq, to: seq } : frameOf(session, seq));
    if (this.here) this.here.say(session.log.at(-1));
  }

  /** Answers the binds and acknowledgements that the latest socket sent. */
  async serve() {
    const socket = latest();
    if (this.here !== socket || this.asked === socket.sent.length) return;
    for (const frame of socket.sent.splice(0)) {
      if (frame.type !== "bind") continue;
      const known = frame.resume && this.draw(4) > 0 ? this.sessions.get(frame.resume.token) : undefined;
      const epoch = `e-${known ? known.number : ++this.epochs}`;
      this.session = known ?? { number: this.epochs, seq: 0, log: [], epoch };
      this.sessions.set(epoch, this.session);
      const seq = known ? frame.resume.seq : 0;
      const missed = this.session.log.filter(({ seq: at, to }) => (at ?? to) > seq);
      const lost = missed.splice(0, Math.max(0, missed.length - 5));
      const recovered = Boolean(known) && lost.length === 0;
      socket.say({
        type: "bound", event: "mail", connection_id: "c", epoch, resume: epoch, seq, ...(frame.resume && { recovered }),
      });
      if (lost.length) socket.say({ type: "gap", from: seq + 1, to: seq + lost.length });
      missed.forEach((frame) => socket.say(frame));
      await settled();
    }
  }
}

const frameOf = ({ epoch }, seq) => ({ type: "push", seq, id: "i", event: "mail", message: `${epoch} ${seq}` });

test("whatever happens, each message is delivered once and in order, or told to be missing", async () => {
  for (let seed = 1; seed <= 200; seed++) {
    let state = seed;
    const draw = (below) => (state = (state * 48_271) % 2_147_483_647) % below;
    const gateway = new FakeGateway(draw);
    FakeSocket.all = [];
    const gate = start({ ack: draw(2) ? "auto" : "manual" });
    await settled();
    for (let turn = 0; turn < 60; turn++) {
      const socket = latest();
      const { here, session } = gateway;
      const pushes = gate.told("push");
      const what = draw(10);
      if (what < 4) {
        gateway.push();
      } else if (what === 4 && here) {
        gateway.here = null;
        await socket.drop();
      } else if (what === 5) {
        await clock.pass(draw(40_000));
      } else if (what === 6 && session?.seq) {
        here?.say(frameOf(session, 1 + draw(session.seq)));
      } else if (what === 7 && pushes.length) {
        gate.ack(pushes[draw(pushes.length)]);
      } else if (here !== socket && !socket.closed && gate.state === "connecting") {
        gateway.here = socket;
        await socket.open();
      }
      if (gateway.here?.closed) gateway.here = null;
      await gateway.serve();
    }
    const next = new Map();
    for (const { type, epoch, seq, message, from, to } of gate.everything) {
      if (type === "push") assert.equal(message, `${epoch} ${seq}`);
      if (type !== "push" && type !== "gap") continue;
      assert.equal(from ?? seq, next.get(epoch) ?? 1, `seed ${seed}: nothing twice and nothing skipped`);
      next.set(epoch, (to ?? seq) + 1);
    }
    assert.deepEqual(gate.told("error"), []);
    gate.close();
  }
});

test("a listener may close at any time", async () => {
  for (const type of ["push", "gap", "resumed", "state", "error"]) {
    const gate = await started();
    gate.addEventListener(type, () => gate.close());
    latest().say({ type: "error", code: "bad_ack", message: "no" });
    latest().push(1);
    latest().push(3);
    await latest().drop();
    await clock.pass(1_000);
    if (gate.state !== "closed") {
      await latest().open();
      await latest().bound({ epoch: "e-2", recovered: false });
    }
    assert.equal(gate.state, "closed", type);
    assert.equal(clock.timers.size, 0, type);
  }
});

test("refuses options that make no sense", () => {
  const options = { token: SECRET, events: ["mail"], WebSocket: FakeSocket };
  const refused = (change, url = URL) => {
    assert.throws(() => new Pushgate(url, { ...options, ...change }), /must|Invalid/);
  };
  refused({ token: "" });
  refused({ token: 7 });
  refused({ events: "mail" });
  refused({ events: [""] });
  refused({ ack: "never" });
  refused({ backoff: { minMs: -1 } });
  refused({ pingIntervalMs: 0 });
  refused({}, "ftp://push.example.com/ws");
  refused({}, "/ws");
  assert.throws(() => new Pushgate(URL), TypeError);
});

test("an http address is a WebSocket's too", async () => {
  gates.push(new Pushgate("https://push.example.com/ws", { token: SECRET, events: ["mail"], WebSocket: FakeSocket }));
  await settled();
  assert.equal(latest().url, URL);
});
