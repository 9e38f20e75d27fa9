// Drives the page at `/` in headless Chromium, as a person would: connect, push, see it arrive, bind more, be closed.
//
//   PUSHGATE_TEST_NODE_MODULES=<folder where playwright-core is installed> node tests/outside/page.mjs URL
//
// The gateway must have no other clients, no token check and no push check. CHROMIUM names the browser, by default
// /usr/bin/chromium. Prints one line and exits 0 when all is well; says what was wrong and exits 1 otherwise.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const TIMEOUT_MS = 60_000;
const CONDITION_MS = 15_000;

const [url] = process.argv.slice(2);
const modules = process.env.PUSHGATE_TEST_NODE_MODULES;
if (!url || !modules) {
  console.error("usage: PUSHGATE_TEST_NODE_MODULES=<folder that has playwright-core> node page.mjs URL");
  process.exit(2);
}

let doing = "load playwright-core";
const mishaps = [];
const frames = { sent: [], received: [] };

/** Whether the address is on the page's own host. The WebSocket may be on another port than the page. */
function isOurs(address) {
  const { protocol, hostname } = new URL(address);
  return protocol === "data:" || hostname === new URL(url).hostname;
}

function watch(page) {
  page.on("console", (message) => message.type() === "error" && mishaps.push(`console error: ${message.text()}`));
  page.on("pageerror", (error) => mishaps.push(`page error: ${error.message}`));
  page.on("crash", () => mishaps.push("the page crashed"));
  page.on("request", (request) => isOurs(request.url()) || mishaps.push(`request to another host: ${request.url()}`));
  page.on("requestfailed", (request) => mishaps.push(`${request.failure()?.errorText}: ${request.url()}`));
  page.on("websocket", (socket) => {
    if (!isOurs(socket.url())) mishaps.push(`WebSocket to another host: ${socket.url()}`);
    socket.on("framesent", ({ payload }) => frames.sent.push(payload));
    socket.on("framereceived", ({ payload }) => frames.received.push(payload));
  });
}

/** Waits until `read` gives `expected`; if it never does, says what it gave last. */
async function becomes(read, expected) {
  const deadline = Date.now() + CONDITION_MS;
  let last;
  do {
    last = await read();
    if (JSON.stringify(last) === JSON.stringify(expected)) return;
    await new Promise((next) => setTimeout(next, 20));
  } while (Date.now() < deadline);
  assert.deepEqual(last, expected);
}

/** In the page: what an entry of a list is about, and its text. */
const parts = (entries) =>
  entries.map((entry) => [".about", ".text"].map((part) => entry.querySelector(part).textContent));

async function drive(browser) {
  const page = await browser.newPage();
  page.setDefaultTimeout(CONDITION_MS);
  watch(page);

  const state = () => page.locator("#state").textContent();
  const detail = () => page.locator("#detail").textContent();
  const messages = () => page.locator("#messages > .message .text").allTextContents();
  const notes = () => page.locator("#messages > :not(.message)").evaluateAll(parts);
  const answers = () => page.locator("#answers > *").evaluateAll(parts);

  /** Pushes what the form holds and gives the answer's text. */
  async function push() {
    await page.click("#clear-answers");
    await becomes(answers, []);
    await page.click("#push-button");
    await page.locator("#answers > *").waitFor();
    const [[status, text]] = await answers();
    assert.equal(status, "200 OK", text);
    return text;
  }

  /** Pushes until the bind, which is not acknowledged, has come through. What reached nobody is not kept for later. */
  async function pushToOne() {
    const deadline = Date.now() + CONDITION_MS;
    let text;
    do text = await push(); while (text === "message sent to 0 clients" && Date.now() < deadline);
    assert.equal(text, "message sent to 1 clients");
  }

  doing = "open the page";
  const answer = await page.goto(url);
  assert.equal(answer.status(), 200);
  assert.match(answer.headers()["content-security-policy"] ?? "", /default-src 'none'/);
  assert.equal(await state(), "Not connected");

  doing = "connect";
  await page.click("#connect");
  await becomes(state, "Connected");

  doing = "push with the form as it is";
  await pushToOne();
  await becomes(messages, ["hello"]);

  doing = "bind a second event on the same connection";
  await page.fill("#event", "chat");
  await page.click("#connect");
  await becomes(notes, [["connected", ""], ["bind sent", "mail"], ["bind sent", "chat"]]);
  assert.match(await detail(), /^Bind sent: mail, chat\./);

  doing = "push to the second event";
  const text = '  <b>two</b> lines &amp; "more"\n\u00e9\u{1f600} $& end  ';
  await page.fill("#push-event", "chat");
  await page.fill("#push-message", text);
  await pushToOne();
  await becomes(messages, ["hello", text]);
  assert.equal(await page.locator("#count").textContent(), "2 received");

  doing = "push to the first event again, by keyboard";
  await page.fill("#push-event", "mail");
  await page.fill("#push-message", "third");
  await page.click("#clear-answers");
  await page.locator("#push-message").press("Control+Enter");
  await becomes(answers, [["200 OK", "message sent to 1 clients"]]);
  await becomes(messages, ["hello", text, "third"]);

  doing = "push to a user who is not connected";
  await page.fill("#push-user", "nobody");
  assert.equal(await push(), "message sent to 0 clients");

  doing = "bind another user's token, which the gateway refuses with a close";
  await page.fill("#token", "bob");
  await page.click("#connect");
  await becomes(state, "Closed");
  assert.equal(await detail(), "4403 bound to another user. The token is good, but not for this bind.");
  await becomes(async () => (await notes()).at(-1), ["closed", "4403 bound to another user"]);

  doing = "push to the closed connection";
  await page.fill("#push-user", "ann");
  assert.equal(await push(), "message sent to 0 clients");

  doing = "clear, connect again as another user, and disconnect";
  await page.click("#clear-messages");
  await becomes(notes, []);
  await page.fill("#event", "mail");
  await page.locator("#event").press("Enter");
  await becomes(state, "Connected");
  await page.fill("#push-user", "bob");
  await page.fill("#push-message", "for bob");
  await pushToOne();
  await becomes(messages, ["for bob"]);
  await page.click("#disconnect");
  await becomes(state, "Closed");
  assert.match(await detail(), /^1000/);
  assert.equal(await push(), "message sent to 0 clients");
  assert.deepEqual(await messages(), ["for bob"]);

  doing = "look at what went over the wire";
  const binds = [["ann", "mail"], ["ann", "chat"], ["bob", "chat"], ["bob", "mail"]];
  assert.deepEqual(frames.sent, binds.map(([token, event]) => JSON.stringify({ token, event })));
  assert.deepEqual(frames.received, ["hello", text, "third", "for bob"]);

  doing = "look for mishaps";
  assert.equal(mishaps.length, 0, "there were some");
}

function fail(problem) {
  console.error(`page: could not ${doing}: ${problem}`);
  mishaps.forEach((mishap) => console.error(`page: ${mishap}`));
  process.exit(1);
}

setTimeout(() => fail(`not done after ${TIMEOUT_MS / 1000} s`), TIMEOUT_MS).unref();
try {
  const { chromium } = createRequire(resolve(modules) + "/")("playwright-core");
  doing = "start the browser";
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
  await drive(browser);
  await browser.close();
} catch (error) {
  fail(error.message);
}
console.log("page: connected, pushed and was closed as a person would see it");
