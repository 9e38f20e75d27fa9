// Cuts the connection of an open page in headless Chromium and pushes while it is away: the page comes back by itself,
// gets what it missed in order and once, and says that it did. Run as page.mjs is.

import { becomes, newPage, push, run, startGateway, step } from "./browser.mjs";
import { Wire } from "./wire.mjs";

await run(async (browser) => {
  step("start a gateway");
  const gateway = await startGateway();
  const wire = await Wire.open();
  wire.to(gateway.port);
  const { page, frames, state, detail, messages, notes } =
    await newPage(browser, gateway, /WebSocket connection to .* failed/);

  step("open the page, with its WebSocket over a wire that can be cut");
  const redirect = ([from, to]) => {
    globalThis.WebSocket = class extends WebSocket {
      constructor(url, protocols) {
        super(url.replace(`:${from}/`, `:${to}/`), protocols);
      }
    };
  };
  await page.addInitScript(redirect, [gateway.port, wire.port]);
  await page.goto(gateway.url);
  await page.click("#connect");
  await becomes(detail, "Bound: mail.");
  await push(gateway, "1");
  const arrived = (to) => Array.from({ length: to }, (_, at) => [`#${at + 1} mail`, String(at + 1)]);
  await becomes(messages, arrived(1));

  let pushed = 1;
  for (const round of ["once", "again"]) {
    step(`cut the wire ${round}`);
    wire.cut();
    await becomes(state, /^Waiting/);

    step(`push while it is away ${round}`);
    for (let count = 0; count < 3; count++) await push(gateway, String(++pushed));

    step(`mend the wire ${round}`);
    wire.mend();
    await becomes(state, "Connected");
    await becomes(messages, arrived(pushed));
    const told = [["lost", "1006"], ["connected", ""], ["recovered", "nothing missed"]];
    await becomes(async () => (await notes()).slice(-3), told);

    step(`push when it is back ${round}`);
    await push(gateway, String(++pushed));
    await becomes(messages, arrived(pushed));
  }

  step("see that it came back without what was pushed while it was away");
  const resumes = () => frames.sent.filter(({ resume }) => resume).map(({ event, resume }) => [event, resume.seq]);
  await becomes(resumes, [["mail", 1], ["mail", 5]]);
}, "page: came back over a mended wire with all that it missed, in order and once");
