// Drives the page at `/` in headless Chromium, as a person would: connect, push, see it arrive, bind more, be dropped.
//
//   PUSHGATE_TEST_NODE_MODULES=<folder where playwright-core is installed> node tests/outside/page.mjs PUSHGATE
//
// CHROMIUM names the browser, by default /usr/bin/chromium.

import assert from "node:assert/strict";
import { becomes, CONDITION_MS, command, newPage, of, run, startGateway, step } from "./browser.mjs";

await run(async (browser) => {
  step("start a gateway");
  const gateway = await startGateway();
  const { page, frames, state, detail, messages, notes, answers } = await newPage(browser, gateway);

  const count = () => page.locator("#count").textContent();

  /** Pushes what the form holds and gives the answer's text. */
  async function push() {
    await page.click("#clear-answers");
    await becomes(answers, []);
    await page.click("#push-button");
    await becomes(async () => (await answers()).length, 1);
    const [[status, text]] = await answers();
    assert.equal(status, "200 OK", text);
    return text;
  }

  /** Pushes until nobody takes it: the gateway learns of a close a moment after the page. */
  async function pushToNobody() {
    const deadline = Date.now() + CONDITION_MS;
    let text;
    do text = await push(); while (text !== "message sent to 0 clients" && Date.now() < deadline);
    assert.equal(text, "message sent to 0 clients");
  }

  step("open the page");
  const answer = await page.goto(gateway.url);
  assert.equal(answer.status(), 200);
  assert.match(answer.headers()["content-security-policy"] ?? "", /default-src 'none'/);
  assert.equal(await state(), "Not connected");

  step("connect");
  await page.click("#connect");
  await becomes(state, "Connected");
  await becomes(notes, [["connected", ""], ["bound", "mail"]]);

  step("push with the form as it is");
  assert.equal(await push(), "message sent to 1 clients");
  await becomes(messages, [["#1 mail", "hello"]]);

  step("bind a second event on the same connection");
  await page.fill("#event", "chat");
  await page.click("#connect");
  await becomes(detail, "Bound: mail, chat.");
  await becomes(notes, [["connected", ""], ["bound", "mail"], ["bound", "chat"]]);

  step("push to the second event");
  const text = '  <b>two</b> lines &amp; "more"\n\u00e9\u{1f600} $& end  ';
  await page.fill("#push-event", "chat");
  await page.fill("#push-message", text);
  assert.equal(await push(), "message sent to 1 clients");
  await becomes(messages, [["#1 mail", "hello"], ["#2 chat", text]]);
  await becomes(count, "2 received");

  step("push to the first event again, by keyboard");
  await page.fill("#push-event", "mail");
  await page.fill("#push-message", "third");
  await page.click("#clear-answers");
  await page.locator("#push-message").press("Control+Enter");
  await becomes(answers, [["200 OK", "message sent to 1 clients"]]);
  await becomes(messages, [["#1 mail", "hello"], ["#2 chat", text], ["#3 mail", "third"]]);

  step("see that all three are acknowledged");
  // Two that come one soon after the other are acknowledged in one.
  const acked = () => of("ack", frames.sent).map(({ seq }) => seq);
  await becomes(() => acked().at(-1), 3);

  step("push to a user who is not connected");
  await page.fill("#push-user", "nobody");
  assert.equal(await push(), "message sent to 0 clients");

  step("bind an event that cannot be");
  await page.fill("#event", "");
  await page.click("#connect");
  await becomes(async () => (await notes()).at(-1)[0], "not possible");
  await becomes(state, "Connected");

  step("be dropped by an operator, which is no reason to come back");
  await command("drop", "ann", "--address", `http://${gateway.address}`);
  await becomes(state, "Closed");
  await becomes(detail, /^4409 .*A service or an operator dropped the connection/);
  await becomes(async () => (await notes()).at(-1).join(" "), /^closed 4409 /);
  await page.fill("#push-user", "ann");
  await pushToNobody();

  step("clear, connect again as another user, and disconnect");
  await page.click("#clear-messages");
  await becomes(notes, []);
  await page.fill("#token", "bob");
  await page.fill("#event", "mail");
  await page.locator("#event").press("Enter");
  await becomes(detail, "Bound: mail.");
  await page.fill("#push-user", "bob");
  await page.fill("#push-message", "for bob");
  assert.equal(await push(), "message sent to 1 clients");
  await becomes(messages, [["#1 mail", "for bob"]]);
  await page.click("#disconnect");
  await becomes(state, "Closed");
  await becomes(detail, "1000 closed by this client.");
  await pushToNobody();

  step("see that nothing came after the disconnect, by what comes after it");
  await page.click("#connect");
  await becomes(state, "Connected");
  await page.fill("#push-message", "for bob again");
  assert.equal(await push(), "message sent to 1 clients");
  await becomes(messages, [["#1 mail", "for bob"], ["#1 mail", "for bob again"]]);

  step("look at what went over the wire");
  const binds = [["ann", "mail"], ["ann", "chat"], ["bob", "mail"], ["bob", "mail"]];
  await becomes(() => of("bind", frames.sent).map(({ token, event }) => [token, event]), binds);
  assert.ok(of("bind", frames.sent).every(({ resume }) => resume === undefined), "a client that was closed resumed");
  const pushed = ["hello", text, "third", "for bob", "for bob again"];
  await becomes(() => of("push", frames.received).map(({ message }) => message), pushed);
  await becomes(() => acked().slice(acked().indexOf(3)), [3, 1, 1]);
}, "page: connected, pushed, dropped and disconnected as a person would see it");
