// Keeps one session with a pushgate over connections that come and go: binds events, delivers each push once and in
// order, acknowledges, comes back after a loss, and tells what was missed. It prints nothing and stores nothing.
// The types, with a description of each part, are in client.d.ts, which gateways serve as /pushgate.d.ts.

const SUBPROTOCOL = "pushgate.v1.json";

// Close codes after which coming back would end in the same way.
const FINAL_CODES = new Set([1002, 1007, 1009, 4400, 4401, 4403, 4409]);

// Errors about frames that ask for nothing. Any other is the answer to a request, codes of later gateways included.
const NOT_ANSWERS = new Set(["not_understood", "unknown_type", "not_bound", "bad_ack"]);

const ACK_INTERVAL_MS = 50;
// How long a connection must have been bound before the next loss begins with the shortest wait again. A gateway that
// accepts and then closes must not be asked at full speed.
const STEADY_MS = 10_000;
const REFRESH_AT = 0.8;
const REFRESH_MS_MIN = 250;
// Longer ones overflow in setTimeout and would fire at once.
const TIMER_MS_MAX = 2 ** 31 - 1;

export class PushgateError extends Error {
  constructor(code, message, { event, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "PushgateError";
    this.code = code;
    this.event = event;
  }
}

export class Pushgate extends EventTarget {
  #url;
  #token;
  #WebSocket;
  #backoff;
  #acksItself;
  #pingIntervalMs;
  #pongTimeoutMs;
  #connectTimeoutMs;

  // What the application wants, over all connections.
  #wanted;
  #binding = new Map(); // event -> its promise, while a bind() waits for an answer
  #unbinding = new Map();

  // What outlives a connection: { epoch, resume, events, seq, acked, told }. `seq` is the last number received, `acked`
  // the last that the application acknowledged, `told` the last that the gateway knows of.
  #session = null;

  // The attempt or connection at hand. Events of any other are late and ignored.
  #connection = null;
  #bound = new Map(); // event -> the gateway's answer, on this connection
  #status = Object.freeze({ state: "connecting" });
  #timers = new Map();
  #failures = 0;
  #loss = { reason: "" }; // what the connection before ended with
  #notBefore = 0; // by performance.now(); a gateway that goes away says when to come back

  constructor(url, options) {
    super();
    const { token, events = [], backoff = {}, ack = "auto" } = options ?? {};
    if (typeof token !== "function") checkToken(token);
    if (!Array.isArray(events)) throw new TypeError("events must be an array");
    events.forEach(checkEvent);
    if (ack !== "auto" && ack !== "manual") throw new TypeError('ack must be "auto" or "manual"');
    this.#url = socketUrl(url);
    this.#token = token;
    this.#wanted = new Set(events);
    this.#acksItself = ack === "auto";
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (!this.#WebSocket) throw new TypeError("there is no WebSocket here, give one as an option");
    this.#backoff = {
      minMs: milliseconds("backoff.minMs", backoff.minMs, 1_000),
      maxMs: milliseconds("backoff.maxMs", backoff.maxMs, 60_000),
    };
    this.#pingIntervalMs = milliseconds("pingIntervalMs", options.pingIntervalMs, null);
    this.#pongTimeoutMs = milliseconds("pongTimeoutMs", options.pongTimeoutMs, 10_000);
    this.#connectTimeoutMs = milliseconds("connectTimeoutMs", options.connectTimeoutMs, 20_000);
    globalThis.addEventListener?.("online", this.#cameOnline);
    globalThis.addEventListener?.("offline", this.#wentOffline);
    this.#start();
  }

  get state() {
    return this.#status.state;
  }

  get status() {
    return this.#status;
  }

  bind(event) {
    checkEvent(event);
    if (this.state === "closed") return refused("closed", "this client is closed", event);
    if (this.#bound.has(event)) return Promise.resolve(this.#bound.get(event));
    const isNew = !this.#wanted.has(event);
    this.#wanted.add(event);
    if (!this.#binding.has(event)) this.#binding.set(event, deferred());
    const { promise } = this.#binding.get(event);
    if (this.#connection?.isOpen) {
      if (isNew) this.#sendBind(event);
    } else if (this.#wanted.size === 1 && !this.#connection && !this.#timers.has("retry")) {
      this.#start();
    }
    return promise;
  }

  unbind(event) {
    checkEvent(event);
    if (this.state === "closed") return refused("closed", "this client is closed", event);
    if (!this.#wanted.has(event)) return this.#unbinding.get(event)?.promise ?? Promise.resolve();
    if (this.#wanted.size === 1) return refused("last_event", "the last event stays bound, close() instead", event);
    this.#wanted.delete(event);
    this.#bound.delete(event);
    this.#settle(this.#binding, event, new PushgateError("unbound", "unbound before it was bound", { event }));
    // While away, nothing needs to be sent before the session is resumed: its pushes are not delivered from now on.
    if (!this.#connection?.isOpen) return Promise.resolve();
    if (!this.#unbinding.has(event)) this.#unbinding.set(event, deferred());
    this.#ask({ type: "unbind", event });
    return this.#unbinding.get(event).promise;
  }

  ack(push) {
    const { seq, epoch } = typeof push === "number" ? { seq: push } : push;
    if (!Number.isSafeInteger(seq)) throw new TypeError("ack takes a push or its seq");
    const session = this.#session;
    if (!session || (epoch !== undefined && epoch !== session.epoch) || seq > session.seq) return;
    if (this.#acksItself || seq <= session.acked) return;
    session.acked = seq;
    this.#ackSoon();
  }

  reconnect() {
    if (this.state !== "waiting" || this.#wanted.size === 0) return;
    this.#cancel("retry");
    this.#connect();
  }

  close() {
    if (this.state === "closed") return;
    const connection = this.#connection;
    if (connection?.isBound) this.#sendAck();
    connection?.socket?.close(1000);
    this.#stop(1000, "closed by this client");
  }

  // Connecting and waiting.

  #start() {
    const reason = this.#whyNotNow();
    if (reason) this.#show({ state: "waiting", retryMs: null, reason });
    else this.#connect();
  }

  #whyNotNow() {
    if (this.#wanted.size === 0) return "there is no event to bind";
    // A gateway on this machine is reached without any network.
    if (globalThis.navigator?.onLine === false && !isLoopback(this.#url)) return "the browser is offline";
    return null;
  }

  async #connect() {
    const connection = {
      socket: null,
      token: null,
      unanswered: [], // { type, event?, token? } of the requests on their way, which are answered in their order
      expiresAt: Infinity,
      isOpen: false,
      isBound: false,
      isResuming: false,
      isLeaving: false,
      refusal: null,
      pingIntervalMs: this.#pingIntervalMs ?? 30_000,
      heardAt: 0,
      wasHeard: true,
      ackedAt: -Infinity,
      retryAfterMs: null,
    };
    const isCurrent = () => this.#connection === connection;
    this.#connection = connection;
    this.#after("deadline", this.#connectTimeoutMs, () => this.#abandon("the gateway did not answer in time"));
    this.#show({ state: "connecting" });
    if (!isCurrent()) return;
    try {
      const token = await this.#freshToken();
      if (!isCurrent()) return;
      connection.token = token;
    } catch (cause) {
      if (!isCurrent()) return;
      this.#reportToken(cause);
      if (isCurrent()) this.#lost(null, "there is no token");
      return;
    }
    let socket;
    try {
      socket = new this.#WebSocket(this.#url, [SUBPROTOCOL]);
    } catch (cause) {
      // The browser does not allow this address here, and will not later.
      this.#stop(null, cause.message);
      return;
    }
    connection.socket = socket;
    socket.onopen = () => isCurrent() && this.#opened();
    socket.onmessage = ({ data }) => isCurrent() && this.#received(data);
    socket.onclose = ({ code, reason }) => isCurrent() && this.#lost(code, reason);
    // Says nothing that the close event behind it does not say, but not every WebSocket sends one when it never opened.
    socket.onerror = () => isCurrent() && this.#after("failed", 1_000, () => this.#lost(1006, ""));
  }

  #opened() {
    const connection = this.#connection;
    if (connection.socket.protocol !== SUBPROTOCOL) {
      connection.socket.close(1000);
      const reason = `the server does not speak ${SUBPROTOCOL}`;
      this.#report(new PushgateError("no_subprotocol", reason));
      if (this.#connection === connection) this.#stop(null, reason);
      return;
    }
    connection.isOpen = true;
    const session = this.#session;
    // A refused first bind ends the connection, so one that was good before goes first.
    const known = [...this.#wanted].filter((event) => session?.events.has(event));
    const order = new Set([...known, ...this.#wanted]);
    let resume;
    if (session) {
      connection.isResuming = true;
      session.told = this.#ackable();
      resume = { token: session.resume, seq: session.told };
    }
    for (const event of order) {
      this.#sendBind(event, resume);
      resume = undefined;
    }
  }

  // Gives the connection up without ending the session: a close without a code leaves it there to be resumed.
  #abandon(reason) {
    const { socket } = this.#connection;
    this.#lost(1006, reason);
    socket?.close();
  }

  #lost(code, reason) {
    const { retryAfterMs } = this.#connection;
    if (FINAL_CODES.has(code)) return this.#stop(code, reason);
    this.#disconnected();
    this.#loss = { code, reason };
    let delayMs;
    if (retryAfterMs !== null) {
      delayMs = retryAfterMs;
      this.#notBefore = performance.now() + retryAfterMs;
    } else {
      // Full jitter: clients that were lost together do not come back together.
      delayMs = Math.random() * Math.min(this.#backoff.maxMs, this.#backoff.minMs * 2 ** this.#failures);
      this.#failures += 1;
    }
    this.#wait(delayMs);
  }

  #wait(delayMs) {
    const reason = this.#whyNotNow();
    if (reason) {
      this.#cancel("retry");
      this.#show({ state: "waiting", retryMs: null, ...this.#loss, reason });
      return;
    }
    const retryMs = Math.max(delayMs, this.#notBefore - performance.now());
    this.#after("retry", retryMs, () => this.#connect());
    this.#show({ state: "waiting", retryMs, ...this.#loss });
  }

  #stop(code, reason) {
    const refusal = this.#connection?.refusal;
    this.#disconnected();
    globalThis.removeEventListener?.("online", this.#cameOnline);
    globalThis.removeEventListener?.("offline", this.#wentOffline);
    for (const event of [...this.#binding.keys()]) {
      const closed = () => new PushgateError("closed", reason || "the connection was closed", { event });
      this.#settle(this.#binding, event, refusal?.event === event ? refusal : closed());
    }
    this.#show({ state: "closed", code, reason });
  }

  #disconnected() {
    this.#connection = null;
    for (const name of [...this.#timers.keys()]) this.#cancel(name);
    this.#bound.clear();
    for (const event of [...this.#unbinding.keys()]) this.#settle(this.#unbinding, event);
  }

  #cameOnline = () => {
    if (this.#connection) {
      // The network may be another one than before, on which this connection goes nowhere.
      if (this.#connection.isBound) this.#probe();
    } else {
      this.#wait(Math.random() * this.#backoff.minMs);
    }
  };

  #wentOffline = () => {
    if (!this.#connection && this.#whyNotNow()) this.#wait(0);
  };

  // What the gateway says.

  #received(data) {
    const connection = this.#connection;
    connection.heardAt = performance.now();
    connection.wasHeard = true;
    try {
      const frame = read(data);
      switch (frame.type) {
        case "welcome": return this.#welcomed(frame);
        case "bound": return this.#onBound(frame);
        case "push": return this.#onPush(frame);
        case "gap": return this.#onGap(frame);
        case "unbound": return this.#onUnbound(frame);
        case "refreshed": return this.#onRefreshed(frame);
        case "goaway": return this.#onGoaway(frame);
        case "error": return this.#onError(frame);
      }
    } catch (cause) {
      // A push that is lost by this leaves a gap in the numbers, which is told with the next one.
      this.#report(new PushgateError("not_understood", "the gateway sent what this client cannot read", { cause }));
    }
  }

  #welcomed({ ping_interval_ms: pingIntervalMs }) {
    if (this.#pingIntervalMs === null && pingIntervalMs > 0) this.#connection.pingIntervalMs = pingIntervalMs;
  }

  #onBound(frame) {
    const connection = this.#connection;
    const { event, epoch, seq } = frame;
    if (!isCount(seq) || typeof epoch !== "string") throw new TypeError("a bound without epoch or seq");
    const isFirst = !connection.isBound;
    const before = this.#session;
    if (isFirst) {
      connection.isBound = true;
      this.#cancel("deadline");
      this.#after("steady", STEADY_MS, () => (this.#failures = 0));
      this.#watch();
      if (before?.epoch !== epoch) this.#session = { epoch, events: new Set(), seq, acked: seq, told: seq };
    }
    this.#answered("bind", event);
    const session = this.#session;
    session.resume = frame.resume;
    session.events.add(event);
    const answer = { event, connectionId: frame.connection_id, epoch, seq };
    if (frame.recovered !== undefined) answer.recovered = frame.recovered;
    if (frame.expires_in_ms !== undefined) answer.expiresInMs = frame.expires_in_ms;
    if (this.#wanted.has(event)) {
      this.#bound.set(event, Object.freeze(answer));
      this.#settle(this.#binding, event, answer);
    }
    // The earliest, where a token is not good for each event as long.
    const expiresAt = performance.now() + (frame.expires_in_ms ?? Infinity);
    if (expiresAt < connection.expiresAt) this.#expiresAt(expiresAt);
    if (!isFirst) return;
    // What was unbound while away is still bound there.
    for (const known of session.events) if (!this.#wanted.has(known)) this.#ask({ type: "unbind", event: known });
    this.#show({ state: "open" });
    if (connection.isResuming && this.#connection === connection) {
      this.#tell("resumed", { recovered: frame.recovered === true, epoch, previousEpoch: before.epoch, seq });
      // The next number is seq + 1, so whatever is between the last one we have and it does not come any more.
      if (this.#connection === connection) this.#missing(session.seq + 1, seq);
      this.#ackSoon();
    }
  }

  #onPush({ seq, id, event, message, binary }) {
    const connection = this.#connection;
    const session = this.#session;
    if (!connection.isBound) return;
    if (!isCount(seq)) throw new TypeError("a push without seq");
    if (seq <= session.seq) return;
    const push = { id, event, seq, epoch: session.epoch };
    if (binary === undefined) push.message = message;
    else push.binary = Uint8Array.from(atob(binary), (character) => character.charCodeAt(0));
    this.#missing(session.seq + 1, seq - 1);
    if (this.#connection !== connection) return;
    session.seq = seq;
    if (this.#wanted.has(event)) this.#tell("push", push);
    this.#ackSoon();
  }

  #onGap({ from, to }) {
    if (!this.#connection.isBound) return;
    if (!isCount(from) || !isCount(to)) throw new TypeError("a gap without numbers");
    // From the last one we have, and not from where the gateway says: it may not know how far we are.
    this.#missing(this.#session.seq + 1, to);
    this.#ackSoon();
  }

  #missing(from, to) {
    if (from > to) return;
    this.#session.seq = to;
    this.#tell("gap", { from, to, epoch: this.#session.epoch });
  }

  #onUnbound({ event }) {
    this.#answered("unbind", event);
    this.#session?.events.delete(event);
    this.#settle(this.#unbinding, event);
  }

  #onGoaway({ retry_after_ms: retryAfterMs }) {
    const connection = this.#connection;
    if (retryAfterMs >= 0) connection.retryAfterMs = retryAfterMs;
    // The gateway closes soon, and takes acknowledgements until then.
    connection.isLeaving = true;
    this.#cancel("ack");
    this.#ackSoon();
  }

  #onError({ code, message, event }) {
    const connection = this.#connection;
    const { unanswered } = connection;
    // An event that the gateway cannot read is not named in its answer, which is then to the first request.
    const at = event === undefined ? 0 : unanswered.findIndex((request) => request.event === event);
    const [request] = NOT_ANSWERS.has(code) || at < 0 ? [] : unanswered.splice(at, 1);
    const error = new PushgateError(String(code), String(message), { event: event ?? request?.event });
    if (!connection.isBound) {
      // The gateway closes behind it. Whether to come back is for the close code to say.
      connection.refusal = error;
    } else if (request?.type === "refresh") {
      this.#refreshAgain();
    } else if (request?.type === "unbind") {
      this.#wanted.add(request.event);
      this.#sendBind(request.event);
      this.#settle(this.#unbinding, request.event, error);
    } else if (request?.type === "bind" && code === "check_unavailable") {
      this.#after("rebind", this.#backoff.minMs * (1 + Math.random()), () => this.#bindMissing());
    } else if (request?.type === "bind") {
      this.#wanted.delete(request.event);
      this.#settle(this.#binding, request.event, error);
    }
    this.#report(error);
  }

  // What this client says.

  #send(frame) {
    this.#connection.socket.send(JSON.stringify(frame));
  }

  #ask(request) {
    this.#connection.unanswered.push(request);
    this.#send(request);
  }

  #answered(type, event) {
    const { unanswered } = this.#connection;
    const at = unanswered.findIndex((request) => request.type === type && request.event === event);
    return at < 0 ? undefined : unanswered.splice(at, 1)[0];
  }

  #sendBind(event, resume) {
    this.#ask({ type: "bind", token: this.#connection.token, event, resume });
  }

  #bindMissing() {
    const binds = this.#connection.unanswered.filter((request) => request.type === "bind");
    const asked = new Set(binds.map((request) => request.event));
    for (const event of this.#wanted) if (!this.#bound.has(event) && !asked.has(event)) this.#sendBind(event);
  }

  // The last number that the application is done with. Listeners have run when anything else does.
  #ackable() {
    return this.#acksItself ? this.#session.seq : this.#session.acked;
  }

  // The first goes at once, so that a lone message is acknowledged even where the browser holds timers back.
  #ackSoon() {
    const connection = this.#connection;
    if (!connection?.isBound || this.#timers.has("ack")) return;
    const waitMs = connection.isLeaving ? 0 : ACK_INTERVAL_MS - (performance.now() - connection.ackedAt);
    if (waitMs <= 0) this.#sendAck();
    else this.#after("ack", waitMs, () => this.#sendAck());
  }

  #sendAck() {
    const seq = this.#ackable();
    if (seq <= this.#session.told) return;
    this.#session.told = seq;
    this.#connection.ackedAt = performance.now();
    this.#send({ type: "ack", seq });
  }

  // Browsers answer the gateway's pings without showing them, so silence has to be asked about.
  #watch() {
    const { pingIntervalMs, heardAt } = this.#connection;
    const quietMs = performance.now() - heardAt;
    if (quietMs < pingIntervalMs) this.#after("watch", pingIntervalMs - quietMs, () => this.#watch());
    else this.#probe();
  }

  #probe() {
    const connection = this.#connection;
    connection.wasHeard = false;
    this.#send({ type: "ping" });
    this.#after("watch", this.#pongTimeoutMs, () => {
      if (connection.wasHeard) this.#watch();
      else this.#abandon("nothing was heard from the gateway");
    });
  }

  // Tokens.

  async #freshToken() {
    return checkToken(typeof this.#token === "function" ? await this.#token() : this.#token);
  }

  #expiresAt(time) {
    this.#connection.expiresAt = time;
    // A fixed token cannot be exchanged. The gateway closes with 4410 when its time is over.
    if (time === Infinity || typeof this.#token !== "function") return this.#cancel("refresh");
    this.#refreshIn(time - performance.now());
  }

  async #refresh() {
    const connection = this.#connection;
    const isCurrent = () => this.#connection === connection;
    try {
      const token = await this.#freshToken();
      if (!isCurrent()) return;
      this.#ask({ type: "refresh", token });
    } catch (cause) {
      if (!isCurrent()) return;
      this.#refreshAgain();
      this.#reportToken(cause);
    }
  }

  #onRefreshed({ expires_in_ms: expiresInMs }) {
    // Binds that follow are for the new token to allow.
    this.#connection.token = this.#answered("refresh")?.token ?? this.#connection.token;
    this.#expiresAt(performance.now() + (expiresInMs ?? Infinity));
  }

  // The old token's time still runs. When it is over, the gateway closes and we come back with a fresh one.
  #refreshAgain() {
    const leftMs = this.#connection.expiresAt - performance.now();
    if (leftMs > 0) this.#refreshIn(leftMs);
  }

  #refreshIn(leftMs) {
    this.#after("refresh", Math.max(leftMs * REFRESH_AT, REFRESH_MS_MIN), () => this.#refresh());
  }

  // What the application is told.

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail: Object.freeze(detail) }));
  }

  #show({ state, ...more }) {
    this.#status = Object.freeze({ state, ...more });
    this.#tell("state", this.#status);
  }

  #report(error) {
    this.dispatchEvent(new CustomEvent("error", { detail: error }));
  }

  #reportToken(cause) {
    this.#report(new PushgateError("token_unavailable", "there is no fresh token", { cause }));
  }

  #settle(promises, event, answer) {
    const waiting = promises.get(event);
    promises.delete(event);
    if (answer instanceof Error) waiting?.reject(answer);
    else waiting?.resolve(answer);
  }

  // Timers by name, so that none outlives what it is for.

  #after(name, ms, act) {
    this.#cancel(name);
    const fire = () => {
      this.#timers.delete(name);
      act();
    };
    this.#timers.set(name, setTimeout(fire, Math.min(ms, TIMER_MS_MAX)));
  }

  #cancel(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}

function socketUrl(url) {
  const parsed = new URL(url, globalThis.location?.href);
  parsed.protocol = parsed.protocol.replace(/^http/, "ws");
  if (!/^wss?:$/.test(parsed.protocol)) throw new TypeError("the url must be a WebSocket's");
  parsed.hash = "";
  return parsed.href;
}

function isLoopback(url) {
  return /^(localhost|.*\.localhost|127(\.\d+){3}|\[::1\])$/.test(new URL(url).hostname);
}

function checkToken(token) {
  if (typeof token !== "string" || token === "") throw new TypeError("the token must be a string that is not empty");
  return token;
}

function checkEvent(event) {
  if (typeof event !== "string" || event === "") throw new TypeError("an event must be a string that is not empty");
}

function milliseconds(name, value = undefined, otherwise) {
  if (value === undefined || value === null) return otherwise;
  if (!(Number.isFinite(value) && value > 0)) throw new RangeError(`${name} must be a positive number`);
  return value;
}

function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    // The parser's own error would quote the text, and secrets with it.
    throw new TypeError("not JSON");
  }
}

function isCount(value) {
  return Number.isSafeInteger(value) && value >= 0;
}

// A promise that may be left alone: who does not wait for the answer is told by the error event.
function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {});
  return made;
}

function refused(code, message, event) {
  const { promise, reject } = deferred();
  reject(new PushgateError(code, message, { event }));
  return promise;
}
