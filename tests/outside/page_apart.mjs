// Opens the page in headless Chromium where clients have an address of their own: the page asks there, or where
// public_ws_url says; says so when nothing answers; and comes back when it is told to. Run as page.mjs is.

import assert from "node:assert/strict";
import { becomes, newPage, push, run, startGateway, step } from "./browser.mjs";
import { Wire } from "./wire.mjs";

const FAILED = /WebSocket connection to .* failed/;

await run(async (browser) => {
  step("start a gateway with two addresses, and connect");
  const apart = ["--control-listen", "127.0.0.1:0"];
  const plain = await startGateway(apart);
  {
    const { page, detail } = await newPage(browser, plain);
    await page.goto(plain.url);
    assert.equal(await page.locator("#ws-url").textContent(), `ws://127.0.0.1:${plain.port}/ws`);
    await page.click("#connect");
    await becomes(detail, "Bound: mail.");
  }

  step("start one whose clients come by another address, where nothing answers yet");
  const wire = await Wire.open();
  const address = `ws://127.0.0.1:${wire.port}/ws`;
  const gateway = await startGateway(apart, { public_ws_url: address });
  const { page, state, detail, messages, notes } = await newPage(browser, gateway, FAILED);
  // Each wait is drawn to be of days, so that the page does not come back before it is told to.
  await page.addInitScript(() => (Math.random = () => 1e6));
  await page.goto(gateway.url);
  const reconnect = page.locator("#reconnect");
  assert.equal(await reconnect.isVisible(), false);
  await page.click("#connect");
  await becomes(state, /^Waiting, \d+ s$/);
  await becomes(detail, /^1006\. No connection to ws:\/\/127\.0\.0\.1:\d+\/ws: .* public_ws_url /);
  assert.ok((await detail()).includes(address));

  step("try again in vain, by keyboard");
  await becomes(() => reconnect.getAttribute("aria-disabled"), "false");
  const attempt = page.waitForEvent("websocket");
  await reconnect.press("Enter");
  await attempt;
  await becomes(state, /^Waiting, \d+ s$/);

  step("try again when something answers");
  wire.to(gateway.port);
  await becomes(() => reconnect.getAttribute("aria-disabled"), "false");
  await reconnect.press("Enter");
  await becomes(state, "Connected");
  await becomes(() => reconnect.isVisible(), false);
  await becomes(() => page.evaluate(() => document.activeElement.id), "disconnect");
  await push(gateway, "1");
  await becomes(messages, [["#1 mail", "1"]]);

  step("lose the connection, and come back to what was missed");
  wire.cut();
  await becomes(state, /^Waiting, \d+ s$/);
  await becomes(detail, /^1006\. The connection broke/);
  await push(gateway, "2");
  wire.mend();
  await reconnect.click();
  await becomes(messages, [["#1 mail", "1"], ["#2 mail", "2"]]);
  await becomes(async () => (await notes()).at(-1), ["recovered", "nothing missed"]);
}, "page: asked where it was told to, said when nothing answered there, and came back when asked to");
