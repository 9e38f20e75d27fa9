// The types of client.js, described for those who use it.

/**
 * Why something was refused or went wrong.
 *
 * `code` is the gateway's (`token_refused`, `not_allowed`, `check_unavailable`, `other_user`, `too_many_events`,
 * `too_many_connections`, `incomplete`, `last_event`, ...) or one of the client's own:
 * - `closed`: this client was closed, or stopped, before there was an answer
 * - `unbound`: `unbind()` was called before the bind was answered
 * - `token_unavailable`: the token function failed; `cause` is what it threw
 * - `no_subprotocol`: the server does not speak `pushgate.v1.json`
 * - `not_understood`: the gateway sent what this client cannot read, or the other way round
 *
 * Tokens are in none of its parts.
 */
export class PushgateError extends Error {
  readonly code: string;
  /** The event that it is about, if it is about one. */
  readonly event: string | undefined;
}

/** A token, or a function that gives a fresh one. */
export type TokenSource = string | (() => string | Promise<string>);

export interface PushgateOptions {
  /**
   * Says who this client is. A function is called for each connection, and again when 80% of a token's time is over, so
   * that a session outlives its tokens. One that throws is called again later, with backoff. A fixed string is never
   * exchanged: when its time is over the gateway closes, and the client comes back with the same string.
   */
  token: TokenSource;
  /** The events to bind from the start. More with {@link Pushgate.bind}. Nothing is connected while there is none. */
  events?: readonly string[];
  /** The class to connect with. By default the global one, which browsers and Node.js 22 and newer have. */
  WebSocket?: new (url: string, protocols: string[]) => unknown;
  /** The wait before attempt n + 1 is drawn between 0 and `min(maxMs, minMs * 2 ** n)`. */
  backoff?: {
    /** 1000 by default. */
    minMs?: number;
    /** 60000 by default. */
    maxMs?: number;
  };
  /**
   * Who says that a push is handled. `"auto"`, the default: the client, once the `push` listeners have returned.
   * `"manual"`: the application, with {@link Pushgate.ack}. What is not acknowledged is kept by the gateway, within its
   * bounds, and a service that waits for `ACKED` waits for this.
   */
  ack?: "auto" | "manual";
  /** After how long a silence the gateway is asked for a sign of life. By default what the gateway says, often 25 s. */
  pingIntervalMs?: number;
  /** How long that sign may take before the connection is given up for a new one. 10000 by default. */
  pongTimeoutMs?: number;
  /** How long an attempt may take from the call for a token to the first bind's answer. 20000 by default. */
  connectTimeoutMs?: number;
}

/**
 * - `connecting`: an attempt is on its way
 * - `open`: connected and bound, pushes come in
 * - `waiting`: not connected, comes back by itself
 * - `closed`: over for good; make a new `Pushgate` to start again
 */
export type PushgateState = "connecting" | "open" | "waiting" | "closed";

/** The state, and what there is to say about it. */
export type PushgateStatus =
  | { readonly state: "connecting" | "open" }
  | {
      readonly state: "waiting";
      /** How long from the `state` event to the next attempt; `null` while that needs something else first. */
      readonly retryMs: number | null;
      /** The close code of the connection before, if there was one; 1006 when it broke without. */
      readonly code?: number | null;
      /** In words, for a log or a person. May be empty. */
      readonly reason: string;
    }
  | {
      readonly state: "closed";
      /**
       * Why: 1000 after `close()`; 4401 the token was refused; 4403 not allowed; 4409 dropped by an operator, or the
       * session goes on in another connection; 4400, 1002, 1007, 1009 one side is broken; `null` when there never was a
       * usable connection.
       */
      readonly code: number | null;
      /** In words, for a log or a person. May be empty. */
      readonly reason: string;
    };

/** The gateway's answer to a bind. */
export interface Bound {
  readonly event: string;
  /** The connection, as services and operators name it. */
  readonly connectionId: string;
  /** The session. */
  readonly epoch: string;
  /** The last number of the session given out before the answer. */
  readonly seq: number;
  /** Only in an answer that resumed, or tried to. */
  readonly recovered?: boolean;
  /** How long the tokens of all events that are bound are good for, where one of them expires. */
  readonly expiresInMs?: number;
}

/** One message. */
export interface Push {
  /** The message's name, as its sender knows it: the same on every connection, and in a later session too. */
  readonly id: string;
  readonly event: string;
  /** The message's number in the session, over all events: 1, 2, 3, ... */
  readonly seq: number;
  /** The session. Numbers of different sessions have nothing to do with each other. */
  readonly epoch: string;
  /** The message, if it was pushed as text. */
  readonly message?: string;
  /** The message, if it was pushed as bytes. */
  readonly binary?: Uint8Array;
}

/** Messages that are lost: `from` is the first number, `to` the last. Of which events they were is not known. */
export interface Gap {
  readonly from: number;
  readonly to: number;
  readonly epoch: string;
}

/** How coming back after a loss went. */
export interface Resumed {
  /**
   * `true`: nothing is missing, what was pushed meanwhile follows. `false`: messages may be missing, so load afresh
   * what they would have told. When `epoch` is still `previousEpoch`, `gap` events tell which; otherwise nobody knows.
   */
  readonly recovered: boolean;
  readonly epoch: string;
  readonly previousEpoch: string;
  /** The last number before what follows. */
  readonly seq: number;
}

export interface PushgateEventMap {
  /** The state changed, or there is something new to say about it. */
  state: CustomEvent<PushgateStatus>;
  /** A message, each once and in order. */
  push: CustomEvent<Push>;
  /** Messages are missing. */
  gap: CustomEvent<Gap>;
  /** The first connection after a loss is bound. */
  resumed: CustomEvent<Resumed>;
  /** Something was refused or went wrong; `state` tells whether the client goes on. */
  error: CustomEvent<PushgateError>;
}

/**
 * A client of a pushgate that stays connected.
 *
 * ```js
 * import { Pushgate } from "https://push.example.com/pushgate.js";
 *
 * const gate = new Pushgate("wss://push.example.com/ws", { token: fetchToken, events: ["mail"] });
 * gate.addEventListener("push", ({ detail }) => show(detail.event, detail.message));
 * gate.addEventListener("gap", reloadEverything);
 * gate.addEventListener("resumed", ({ detail }) => detail.recovered || reloadEverything());
 * gate.addEventListener("state", ({ detail }) => {
 *   if (detail.state === "closed") console.log("stopped:", detail.code, detail.reason);
 * });
 * ```
 *
 * It connects at once and comes back after every loss until {@link close} or a close code that says not to. Between
 * connections the gateway keeps the session for a while: pushes sent meanwhile follow when the client is back.
 * `resumed` and `gap` say when that did not work; nothing is lost in silence.
 */
export class Pushgate extends EventTarget {
  /**
   * @param url Where the gateway is, `wss://host/ws`. `https:` is taken for `wss:`, and in a browser a path will do.
   * @throws TypeError or RangeError when an option makes no sense.
   */
  constructor(url: string | URL, options: PushgateOptions);

  readonly state: PushgateState;

  /** The state with its details, as the last `state` event had it. */
  readonly status: PushgateStatus;

  /**
   * Binds a further event, now or as soon as there is a connection, and on every connection after it. Resolves when the
   * gateway has bound it. Rejects with a {@link PushgateError} when it is refused; an `error` event tells that too, so
   * the promise may be left alone.
   */
  bind(event: string): Promise<Bound>;

  /**
   * Unbinds an event: no push of it is delivered from this call on. Resolves when the gateway knows, or at once while
   * there is no connection. Rejects with code `last_event` for the last one: `close()` instead.
   */
  unbind(event: string): Promise<void>;

  /**
   * With `ack: "manual"`: everything up to this push is handled. Give the push itself, so that one of a session that is
   * over is told from the present one's; a number is taken to be of the present session.
   */
  ack(push: Push | number): void;

  /**
   * Comes back now instead of after the wait, for a person who asks for it: nothing else may end the wait that a gateway
   * asked for. Does nothing unless the state is `waiting`, or while there is no event to bind.
   */
  reconnect(): void;

  /** Ends the session and stops for good. What was handled is acknowledged before. */
  close(): void;

  addEventListener<K extends keyof PushgateEventMap>(
    type: K,
    listener: (this: Pushgate, event: PushgateEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: Parameters<EventTarget["addEventListener"]>[1],
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof PushgateEventMap>(
    type: K,
    listener: (this: Pushgate, event: PushgateEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: Parameters<EventTarget["removeEventListener"]>[1],
    options?: boolean | EventListenerOptions,
  ): void;
}
