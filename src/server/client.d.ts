// The types of client.js, with descriptions for those who use it.

/**
 * Why something was refused or went wrong.
 *
 * `code` is a code of the gateway (`token_refused`, `not_allowed`, `check_unavailable`, `other_user`,
 * `too_many_events`, `too_many_connections`, `incomplete`, `last_event`, ...) or one of this client:
 * - `closed`: this client was closed, or stopped, before there was an answer
 * - `unbound`: `unbind()` was called before the bind was answered
 * - `token_unavailable`: the token function failed; `cause` is what it threw
 * - `no_subprotocol`: the server does not speak `pushgate.v1.json`
 * - `not_understood`: the gateway sent something that this client cannot read, or the gateway could not read this
 *   client
 *
 * No part of the error holds a token.
 */
export class PushgateError extends Error {
  readonly code: string;
  /** The event that the error is about, if there is one. */
  readonly event: string | undefined;
}

/** A token, or a function that gives a fresh one. */
export type TokenSource = string | (() => string | Promise<string>);

export interface PushgateOptions {
  /**
   * Says who this client is. A function is called for each connection, and again when 80% of a token's time is over, so
   * that a session outlives its tokens. If the function throws, it is called again later, with backoff. A fixed string
   * is never replaced: when its time is over the gateway closes, and the client comes back with the same string.
   */
  token: TokenSource;
  /**
   * The events to bind from the start. Add more with {@link Pushgate.bind}. The client connects only if there is one.
   */
  events?: readonly string[];
  /** The class to connect with. The default is the global one, which browsers and Node.js 22 and newer have. */
  WebSocket?: new (url: string, protocols: string[]) => unknown;
  /** The wait before attempt n + 1 is random, between 0 and `min(maxMs, minMs * 2 ** n)`. */
  backoff?: {
    /** 1000 by default. */
    minMs?: number;
    /** 60000 by default. */
    maxMs?: number;
  };
  /**
   * Who acknowledges that a push is handled. With `"auto"`, the default, the client does, once the `push` listeners
   * have returned. With `"manual"`, the application does, by {@link Pushgate.ack}. The gateway keeps what is not
   * acknowledged, within its limits. A service that waits for `ACKED` waits for this acknowledgement.
   */
  ack?: "auto" | "manual";
  /**
   * How long the gateway may be silent before the client pings it. The default is what the gateway says, often 25 s.
   */
  pingIntervalMs?: number;
  /**
   * How long the gateway may take to answer before the client gives the connection up for a new one. 10000 by default.
   */
  pongTimeoutMs?: number;
  /** How long an attempt may take, from asking for a token to the answer to the first bind. 20000 by default. */
  connectTimeoutMs?: number;
}

/**
 * - `connecting`: the client tries to connect
 * - `open`: the client is connected and bound, and receives pushes
 * - `waiting`: the client is not connected, and comes back by itself
 * - `closed`: the client has stopped for good; make a new `Pushgate` to start again
 */
export type PushgateState = "connecting" | "open" | "waiting" | "closed";

/** The state and its details. */
export type PushgateStatus =
  | { readonly state: "connecting" | "open" }
  | {
      readonly state: "waiting";
      /**
       * Milliseconds from the `state` event to the next attempt. `null` while the attempt needs something else first.
       */
      readonly retryMs: number | null;
      /** The close code of the last connection, if there was one. 1006 if it broke without a code. */
      readonly code?: number | null;
      /** The reason in words, for a log or a person. May be empty. */
      readonly reason: string;
    }
  | {
      readonly state: "closed";
      /**
       * Why the client stopped: 1000 after `close()`; 4401 if the token was refused; 4403 if the bind was not allowed;
       * 4409 if an operator dropped the connection, it made room for a newer one of the user, or the session goes on in
       * another one; 4400, 1002, 1007 or 1009 if one side is broken; `null` if there never was a usable connection.
       */
      readonly code: number | null;
      /** The reason in words, for a log or a person. May be empty. */
      readonly reason: string;
    };

/** The gateway's answer to a bind. */
export interface Bound {
  readonly event: string;
  /** The name of the connection, as services and operators see it. */
  readonly connectionId: string;
  /** The name of the session. */
  readonly epoch: string;
  /** The last number of the session that was used before this answer. */
  readonly seq: number;
  /** Whether nothing is missing. Set only in an answer that resumed a session, or tried to. */
  readonly recovered?: boolean;
  /** How long the tokens of all bound events are good for. Set only if one of them expires. */
  readonly expiresInMs?: number;
}

/** One message. */
export interface Push {
  /**
   * The name of the message, as its sender knows it. It is the same on every connection, and in a later session too.
   */
  readonly id: string;
  readonly event: string;
  /** The message's number in the session, over all events: 1, 2, 3, ... */
  readonly seq: number;
  /** The name of the session. Numbers of different sessions cannot be compared. */
  readonly epoch: string;
  /** The message, if it was pushed as text. */
  readonly message?: string;
  /** The message, if it was pushed as bytes. */
  readonly binary?: Uint8Array;
}

/** Messages that are lost. `from` is the first number, `to` the last. It is not known which events they belonged to. */
export interface Gap {
  readonly from: number;
  readonly to: number;
  readonly epoch: string;
}

/** What became of the session when the client came back after a loss. */
export interface Resumed {
  /**
   * `true`: nothing is missing, and messages that were pushed meanwhile follow. `false`: messages may be missing, so
   * reload what they would have told. If `epoch` is still `previousEpoch`, `gap` events say which are missing.
   * Otherwise nobody knows.
   */
  readonly recovered: boolean;
  readonly epoch: string;
  readonly previousEpoch: string;
  /** The last number before the messages that follow. */
  readonly seq: number;
}

export interface PushgateEventMap {
  /** The state or its details changed. */
  state: CustomEvent<PushgateStatus>;
  /** A message arrived. Each comes once, and in order. */
  push: CustomEvent<Push>;
  /** Messages are missing. */
  gap: CustomEvent<Gap>;
  /** The first connection after a loss was bound. */
  resumed: CustomEvent<Resumed>;
  /** Something was refused or went wrong. `state` says whether the client goes on. */
  error: CustomEvent<PushgateError>;
}

/**
 * A client that stays connected to a pushgate.
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
 * It connects at once, and comes back after every loss until {@link close} or a close code that forbids it. Between
 * connections the gateway keeps the session for a while. Pushes sent meanwhile follow when the client is back.
 * `resumed` and `gap` say when messages may be missing, so that nothing is lost silently.
 */
export class Pushgate extends EventTarget {
  /**
   * @param url The address of the gateway, `wss://host/ws`. `https:` means `wss:`. In a browser a path is enough.
   * @throws TypeError or RangeError when an option is not valid.
   */
  constructor(url: string | URL, options: PushgateOptions);

  readonly state: PushgateState;

  /** The state and its details, as in the last `state` event. */
  readonly status: PushgateStatus;

  /**
   * Binds another event, now or as soon as there is a connection, and on every connection after it. Resolves when the
   * gateway has bound it. Rejects with a {@link PushgateError} when it is refused. An `error` event reports that too,
   * so you may ignore the promise.
   */
  bind(event: string): Promise<Bound>;

  /**
   * Unbinds an event. No push of it is delivered after this call. Resolves when the gateway knows, or at once while
   * there is no connection. Rejects with code `last_event` for the last event; use `close()` instead.
   */
  unbind(event: string): Promise<void>;

  /**
   * With `ack: "manual"`, says that everything up to this push is handled. Pass the push itself, so that a push of an
   * ended session is told apart from one of the current session. A number always belongs to the current session.
   */
  ack(push: Push | number): void;

  /**
   * Comes back now instead of after the wait. Call it only when a person asks for it: nothing else may cut short the
   * wait that a gateway asked for. Does nothing unless the state is `waiting`, and nothing while there is no event to
   * bind.
   */
  reconnect(): void;

  /** Acknowledges what was handled, ends the session, and stops for good. */
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
