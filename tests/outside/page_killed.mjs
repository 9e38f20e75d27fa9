// Kills the gateway under an open page in headless Chromium, and starts another on the same address: the page comes
// back by itself, and says that messages may be missing, as the new gateway does not know. Run as page.mjs is.

import { becomes, kill, newPage, push, run, startGateway, step } from "./browser.mjs";

await run(async (browser) => {
  step("start a gateway");
  const first = await startGateway();
  const expected = /WebSocket connection to .* failed|net::ERR_CONNECTION_REFUSED/;
  const { page, frames, state, detail, messages, notes } = await newPage(browser, first, expected);
  await page.goto(first.url);
  await page.click("#connect");
  await becomes(detail, "Bound: mail.");

  step("receive before the kill");
  await push(first, "before");
  await becomes(messages, [["#1 mail", "before"]]);

  step("see that the gateway is gone");
  await kill(first);
  await becomes(async () => (await notes()).at(-1), ["lost", "1006"]);
  await becomes(state, /^Waiting, \d+ s$/);
  await becomes(detail, /^1006\. The connection broke/);

  step("come back when there is one again");
  const second = await startGateway(["--listen", first.address]);
  await becomes(state, "Connected");
  const told = [["lost", "1006"], ["connected", ""], ["not recovered", "messages may be missing"]];
  await becomes(async () => (await notes()).slice(-3), told);
  await becomes(detail, "Bound: mail.");

  step("receive from the new gateway");
  await push(second, "after");
  await becomes(messages, [["#1 mail", "before"], ["#1 mail", "after"]]);

  step("look at what went over the wire");
  const resumes = () => frames.sent.filter(({ resume }) => resume);
  await becomes(() => resumes().map(({ type, event, resume }) => [type, event, resume.seq]), [["bind", "mail", 1]]);
}, "page: survived the kill of its gateway, and did not claim to have missed nothing");
