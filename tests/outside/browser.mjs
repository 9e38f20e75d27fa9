// What the page's tests share: gateways in processes of their own, Chromium, what is on the page, and waits that end.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { createInterface } from "node:readline";

const TIMEOUT_MS = 120_000;
export const CONDITION_MS = 20_000;
const FRAMES_LATE_MS = 100;

const [pushgate] = process.argv.slice(2);
const modules = process.env.PUSHGATE_TEST_NODE_MODULES;
if (!pushgate || !modules) {
  console.error("usage: PUSHGATE_TEST_NODE_MODULES=<folder that has playwright-core> node SCRIPT PUSHGATE");
  process.exit(2);
}

let doing = "start";
const mishaps = [];
const pages = new Set();
const gateways = new Set();

/** Says what the test is at, for when it fails there. */
export function step(what) {
  doing = what;
}

/** No setting from the environment that the tests run in. */
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("PUSHGATE_")));

/** Starts a gateway with these arguments and settings, and waits until it serves. */
export async function startGateway(args = [], settings = {}) {
  const variables = Object.entries(settings).map(([name, value]) => [`PUSHGATE_${name.toUpperCase()}`, value]);
  const options = { env: { ...env, ...Object.fromEntries(variables) }, stdio: ["ignore", "pipe", "ignore"] };
  const child = spawn(pushgate, args.includes("--listen") ? args : ["--listen", "127.0.0.1:0", ...args], options);
  const gateway = { child, ended: new Promise((ended) => child.once("exit", ended)) };
  gateways.add(gateway);
  child.once("error", (error) => fail(error));
  for await (const line of createInterface({ input: child.stdout })) {
    const [, clients, address] = line.match(/^pushgate is up\..* wss?:\/\/([^\s/]+).* https?:\/\/(\S+) /) ?? [];
    if (!address) continue;
    child.stdout.resume();
    const scheme = line.includes(" wss://") ? "https" : "http";
    return Object.assign(gateway, { address, url: `${scheme}://${address}/`, port: Number(clients.split(":").at(-1)) });
  }
  throw new Error("the gateway did not start");
}

/** A certificate that nobody trusts, and its key. */
export function certificate() {
  const args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
  const options = { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] };
  return execFileSync("openssl", [...args, "-subj", "/CN=localhost", "-keyout", "-", "-out", "-"], options);
}

/** Ends a gateway without giving it the time to say a word. */
export async function kill(gateway) {
  gateway.child.kill("SIGKILL");
  await gateway.ended;
  gateways.delete(gateway);
}

/** Runs the command, as an operator would. */
export async function command(...args) {
  const code = await new Promise((ended) => spawn(pushgate, args, { env, stdio: "ignore" }).once("exit", ended));
  assert.equal(code, 0, `pushgate ${args.join(" ")}`);
}

/** Waits until `read` gives what is expected, or what a pattern matches. If it never does, says what it gave last. */
export async function becomes(read, expected) {
  const fits = (value) =>
    expected instanceof RegExp ? expected.test(value) : JSON.stringify(value) === JSON.stringify(expected);
  const deadline = Date.now() + CONDITION_MS;
  let last;
  do {
    last = await read();
    if (fits(last)) return;
    await new Promise((next) => setTimeout(next, 10));
  } while (Date.now() < deadline);
  if (expected instanceof RegExp) assert.match(last, expected);
  else assert.deepEqual(last, expected);
}

/** The frames of one type, as far as they are known of by now: the browser tells of them a moment after it draws. */
export const of = (type, frames) => frames.filter((frame) => frame.type === type);

/** In the page: what an entry of a list is about, and its text. */
const parts = (entries) =>
  entries.map((entry) => [".about", ".text"].map((part) => entry.querySelector(part).textContent));

/** A page of the browser, watched for mishaps. Those that the test makes happen are `expected`. */
export async function newPage(browser, gateway, expected = /^$/, options = {}) {
  const page = await browser.newPage(options);
  // Frames come late, so that a test which does not wait for what is drawn fails each time, and not now and then.
  await page.addInitScript((lateMs) => {
    const frame = requestAnimationFrame;
    globalThis.requestAnimationFrame = (draw) => setTimeout(() => frame(draw), lateMs);
  }, FRAMES_LATE_MS);
  pages.add(page);
  page.setDefaultTimeout(CONDITION_MS);
  const mishap = (text) => expected.test(text) || mishaps.push(text);
  const { hostname } = new URL(gateway.url);
  const isOurs = (address) => address.startsWith("data:") || new URL(address).hostname === hostname;
  const frames = { sent: [], received: [] };
  page.on("console", (message) => message.type() === "error" && mishap(`console error: ${message.text()}`));
  page.on("pageerror", (error) => mishap(`page error: ${error.message}`));
  page.on("crash", () => mishap("the page crashed"));
  page.on("request", (request) => isOurs(request.url()) || mishap(`request to another host: ${request.url()}`));
  page.on("requestfailed", (request) => mishap(`${request.failure()?.errorText}: ${request.url()}`));
  page.on("websocket", (socket) => {
    if (!isOurs(socket.url())) mishap(`WebSocket to another host: ${socket.url()}`);
    socket.on("framesent", ({ payload }) => frames.sent.push(JSON.parse(payload)));
    socket.on("framereceived", ({ payload }) => frames.received.push(JSON.parse(payload)));
  });
  return {
    page,
    frames,
    state: () => page.locator("#state").textContent(),
    detail: () => page.locator("#detail").textContent(),
    messages: () => page.locator("#messages > .message").evaluateAll(parts),
    notes: () => page.locator("#messages > :not(.message)").evaluateAll(parts),
    answers: () => page.locator("#answers > *").evaluateAll(parts),
    /** Pushes what the form holds, and gives the answer without the message's name, which is new each time. */
    push: async () => {
      const answers = page.locator("#answers > *");
      await page.click("#clear-answers");
      await becomes(() => answers.count(), 0);
      await page.click("#push-button");
      await becomes(() => answers.count(), 1);
      const [[status, text]] = await answers.evaluateAll(parts);
      return `${status} ${text}`.replace(/; message [0-9a-f]{16}-\d+$/, "");
    },
  };
}

/** Pushes to ann's mail as a service does. */
export async function push({ url }, message) {
  const body = JSON.stringify({ userId: "ann", event: "mail", message });
  const answer = await fetch(`${url}push`, { method: "POST", body });
  assert.equal(answer.status, 200);
}

function fail(problem) {
  console.error(`could not ${doing}: ${problem.stack ?? problem}`);
  mishaps.forEach((mishap) => console.error(`mishap: ${mishap}`));
  gateways.forEach(({ child }) => child.kill("SIGKILL"));
  process.exit(1);
}

/** Runs a test in a browser, says that all is well and exits with 0, or says what was wrong and exits with 1. */
export async function run(drive, well) {
  setTimeout(() => fail(`not done after ${TIMEOUT_MS / 1000} s`), TIMEOUT_MS).unref();
  try {
    step("load playwright-core");
    const { chromium } = createRequire(resolve(modules) + "/")("playwright-core");
    step("start the browser");
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
    step("look for mishaps");
    // What the pages have to tell comes before the answer to what they are asked.
    for (const page of pages) await page.evaluate(() => new Promise(requestAnimationFrame));
    assert.equal(mishaps.length, 0, "there were some");
    await browser.close();
    for (const gateway of gateways) await kill(gateway);
  } catch (error) {
    fail(error);
  }
  console.log(well);
  process.exit(0);
}
