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
  const { page, frames, state, detail, messages, notes, answers, push } =
    await newPage(browser, gateway, /the server responded with a status of [45]\d\d/);

  const count = () => page.locator("#count").textContent();
  const invalid = () => page.locator("[aria-invalid]").evaluateAll((fields) => fields.map(({ id }) => id));
  const taken = "200 OK matched 1, accepted 1, held 0";
  const nobody = "200 OK matched 0, accepted 0, held 0";

  /** Pushes until nobody takes it: the gateway learns of a close a moment after the page. */
  async function pushToNobody() {
    const deadline = Date.now() + CONDITION_MS;
    let told;
    do told = await push(); while (told !== nobody && Date.now() < deadline);
    assert.equal(told, nobody);
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
  assert.equal(await push(), taken);
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
  assert.equal(await push(), taken);
  await becomes(messages, [["#1 mail", "hello"], ["#2 chat", text]]);
  await becomes(count, "2 received");

  step("push to the first event again, by keyboard");
  await page.fill("#push-event", "mail");
  await page.fill("#push-message", "third");
  await page.click("#clear-answers");
  await page.locator("#push-message").press("Control+Enter");
  await becomes(async () => (await answers()).join(" "), /^200 OK,matched 1, accepted 1, held 0; message \S+$/);
  await becomes(messages, [["#1 mail", "hello"], ["#2 chat", text], ["#3 mail", "third"]]);

  step("push to a user who is not connected");
  await page.fill("#push-user", "eve");
  assert.equal(await push(), nobody);

  step("push with a time to live, to a user who is not connected and for whom it is held");
  await page.fill("#ttl", "60");
  await page.fill("#push-message", "for eve");
  assert.equal(await push(), "200 OK matched 0, accepted 0, held 1");
  await page.fill("#ttl", "");
  await page.fill("#push-user", "ann");

  step("wait until a push is written, and until it is acknowledged");
  await page.selectOption("#wait-for", "written");
  assert.equal(await push(), "200 OK matched 1, accepted 1, written 1, held 0");
  await page.selectOption("#wait-for", "acknowledged");
  assert.equal(await push(), "200 OK matched 1, accepted 1, written 1, acked 1, held 0");
  await page.selectOption("#wait-for", "accepted");
  const three = [["#1 mail", "hello"], ["#2 chat", text], ["#3 mail", "third"]];
  await becomes(messages, [...three, ["#4 mail", "for eve"], ["#5 mail", "for eve"]]);

  step("push what cannot be pushed");
  await page.fill("#push-message", "");
  assert.equal(await push(), "400 Bad Request INVALID_ARGUMENT message: the message is empty");
  assert.deepEqual(await invalid(), ["push-message"]);
  await page.fill("#push-user", "");
  assert.match(await push(), /^400 Bad Request INVALID_ARGUMENT user_?[iI]d: the user id is empty$/);
  assert.deepEqual(await invalid(), ["push-user"]);
  await page.fill("#push-user", "ann");
  await page.fill("#push-message", "x".repeat(300_000));
  assert.match(await push(), /^4\d\d .* INVALID_ARGUMENT message: /);
  await page.fill("#push-message", "hello");
  assert.equal(await push(), taken);
  assert.deepEqual(await invalid(), []);

  step("bind an event that cannot be");
  await page.fill("#event", "");
  await page.click("#connect");
  await becomes(async () => (await notes()).at(-1)[0], "not possible");
  await becomes(state, "Connected");

  step("tell of all that a push can come to");
  const none = { matched: "0", accepted: "0", dropped: "0", drops: [], written: "0", losses: [], held: "0", acked: "0" };
  const drops = [{ reason: "DROP_REASON_QUEUE_FULL", count: "2" }, { reason: "DROP_REASON_CLOSED", count: "1" }];
  const losses = [{ reason: "DROP_REASON_EXPIRED", count: "1" }];
  const some = { ...none, matched: "9", accepted: "6", dropped: "3", drops, written: "4", losses };
  const told = { messageId: "0123456789abcdef-1", cannotAck: "0", replayed: false };
  for (const [status, body, expected] of [
    [200, { ...told, ...some, level: "LEVEL_WRITTEN" },
      "200 OK matched 9, accepted 6, written 4, held 0, dropped 3 (queue full 2, closed 1), lost 1 (expired 1), " +
      "still on its way to 1"],
    [200, { ...told, ...none, matched: "4", accepted: "4", written: "4", acked: "1", cannotAck: "1", level: "LEVEL_ACKED" },
      "200 OK matched 4, accepted 4, written 4, acked 1, held 0, not acked in time by 2, 1 cannot ack"],
    [200, { ...told, ...none, held: "2", level: "LEVEL_ACCEPTED", replayed: true },
      "200 OK matched 0, accepted 0, held 2, replayed"],
    [503, { code: 8, message: "too many pushes are waiting", field: "" },
      "503 Service Unavailable RESOURCE_EXHAUSTED too many pushes are waiting"],
    [413, "the request is over the limit", "413 Payload Too Large the request is over the limit"],
    [401, "", "401 Unauthorized (no text)"],
  ]) {
    const contentType = typeof body === "string" ? "text/plain" : "application/json";
    const given = typeof body === "string" ? body : JSON.stringify(body);
    await page.route("**/push", (route) => route.fulfill({ status, contentType, body: given }), { times: 1 });
    assert.equal(await push(), expected);
  }

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
  assert.equal(await push(), taken);
  await becomes(messages, [["#1 mail", "for bob"]]);
  await page.click("#disconnect");
  await becomes(state, "Closed");
  await becomes(detail, "1000 closed by this client.");
  await pushToNobody();

  step("see that nothing came after the disconnect, by what comes after it");
  await page.click("#connect");
  await becomes(state, "Connected");
  await page.fill("#push-message", "for bob again");
  assert.equal(await push(), taken);
  await becomes(messages, [["#1 mail", "for bob"], ["#1 mail", "for bob again"]]);

  step("look at what went over the wire");
  const binds = [["ann", "mail"], ["ann", "chat"], ["bob", "mail"], ["bob", "mail"]];
  await becomes(() => of("bind", frames.sent).map(({ token, event }) => [token, event]), binds);
  assert.ok(of("bind", frames.sent).every(({ resume }) => resume === undefined), "a client that was closed resumed");
  const pushed = ["hello", text, "third", "for eve", "for eve", "hello", "for bob", "for bob again"];
  await becomes(() => of("push", frames.received).map(({ message }) => message), pushed);
  // Two that come one soon after the other are acknowledged in one.
  const acked = () => of("ack", frames.sent).map(({ seq }) => seq);
  await becomes(() => acked().slice(acked().indexOf(6)), [6, 1, 1]);
}, "page: connected, pushed, dropped and disconnected as a person would see it");
