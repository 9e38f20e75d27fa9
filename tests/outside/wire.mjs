// A TCP proxy whose connections can be cut as a network does it: without a word to either side.

import { connect, createServer } from "node:net";

export class Wire {
  #pairs = new Set();
  #isCut = true;
  #to;

  /** Opens one that is cut, and leads nowhere yet. */
  static async open() {
    const wire = new Wire();
    const server = createServer((near) => wire.#carry(near));
    await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
    wire.port = server.address().port;
    return wire;
  }

  /** Leads to this port of this machine from now on. */
  to(port) {
    this.#to = port;
    this.mend();
  }

  #carry(near) {
    near.on("error", () => {});
    if (this.#isCut) return near.resetAndDestroy();
    const far = connect(this.#to, "127.0.0.1");
    far.on("error", () => {});
    const pair = [near, far];
    this.#pairs.add(pair);
    for (const end of pair) {
      end.on("close", () => {
        pair.forEach((other) => other.destroy());
        this.#pairs.delete(pair);
      });
    }
    near.pipe(far).pipe(near);
  }

  cut() {
    this.#isCut = true;
    for (const pair of this.#pairs) pair.forEach((end) => end.resetAndDestroy());
  }

  mend() {
    this.#isCut = false;
  }
}
