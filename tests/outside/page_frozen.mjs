// Freezes the gateway under a client in headless Chromium: the client gives up its silent connection, which a browser
// closes without a code, and goes on with the session on a new one. Run as page.mjs is.

import assert from "node:assert/strict";
import { becomes, newPage, push, run, startGateway, step } from "./browser.mjs";

await run(async (browser) => {
  step("start a gateway and a client that is impatient");
  const gateway = await startGateway();
  const { page, frames } = await newPage(browser, gateway, /WebSocket connection to .* failed|is closed before/);
  await page.goto(gateway.url);
  await page.evaluate(async (url) => {
    const { Pushgate } = await import("/pushgate.js");
    const impatient = { pingIntervalMs: 200, pongTimeoutMs: 200, connectTimeoutMs: 2_000 };
    const gate = new Pushgate(url, { token: "ann", events: ["mail"], backoff: { maxMs: 200 }, ...impatient });
    globalThis.told = { pushes: [], resumes: [], waits: [] };
    gate.addEventListener("push", ({ detail }) => told.pushes.push(detail.message));
    gate.addEventListener("resumed", ({ detail }) => told.resumes.push(detail.recovered));
    gate.addEventListener("state", ({ detail }) => detail.state === "waiting" && told.waits.push(detail.reason));
    await gate.bind("mail");
  }, `${gateway.url}ws`);
  const told = (what) => page.evaluate((what) => told[what], what);
  await push(gateway, "before");
  await becomes(() => told("pushes"), ["before"]);
  await becomes(() => frames.received.some(({ type }) => type === "pong"), true);

  step("give up a gateway that is frozen");
  gateway.child.kill("SIGSTOP");
  // On a machine that is busy, it may have been impatient before.
  const before = (await told("waits")).length;
  const silence = "nothing was heard from the gateway";
  await becomes(async () => (await told("waits")).slice(before).includes(silence), true);

  step("go on with the session when it thaws");
  gateway.child.kill("SIGCONT");
  await becomes(async () => (await told("resumes")).includes(true), true);
  await push(gateway, "after");
  await becomes(() => told("pushes"), ["before", "after"]);
  assert.ok(!(await told("resumes")).includes(false), "the session was never lost");
}, "page: gave up a frozen gateway, and went on with the session when it thawed");
