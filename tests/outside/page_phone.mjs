// Opens the page in headless Chromium as on a phone: messages, push form and answers are on one screen, nothing has to be
// scrolled sideways, and there is no word of keys. Run as page.mjs is. With PUSHGATE_TEST_SHOTS, a folder, it leaves
// pictures there of what it saw, and of the page on a desktop.

import assert from "node:assert/strict";
import { becomes, newPage, push as pushTo, run, startGateway, step } from "./browser.mjs";

const PHONE = { viewport: { width: 375, height: 812 }, hasTouch: true, isMobile: true };
const DESKTOP = { viewport: { width: 1280, height: 800 } };
const shots = process.env.PUSHGATE_TEST_SHOTS;

await run(async (browser) => {
  step("start a gateway");
  const gateway = await startGateway();

  /** The page with a client that is bound and has had a message of its own. */
  async function open(options) {
    const seen = await newPage(browser, gateway, /^$/, options);
    await seen.page.goto(gateway.url);
    await seen.page.click("#connect");
    await becomes(seen.detail, "Bound: mail.");
    assert.match(await seen.push(), /^200 OK matched \d+/);
    await becomes(async () => (await seen.messages()).length, 1);
    return seen;
  }

  step("use the page on a phone");
  const { page } = await open(PHONE);
  const keys = page.locator(".keys");
  assert.equal(await keys.isVisible(), false, "a phone has no Ctrl key");
  const sideways = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.equal(sideways, 0, "nothing is to be scrolled sideways");

  step("measure what is in reach");
  for (let count = 0; count < 20; count++) await pushTo(gateway, `${count} ${"and so on ".repeat(20)}`);
  await becomes(() => page.locator("#messages > .message").count(), 21);
  const [top, bottom] = await page.evaluate(() => {
    const box = (id) => document.getElementById(id).getBoundingClientRect();
    return [box("messages-title").top, box("answers").bottom];
  });
  const height = Math.ceil(bottom - top);
  assert.ok(height <= PHONE.viewport.height, `messages, form and answers take ${height} px, more than a screen`);

  step("use the page on a desktop");
  const desktop = await open(DESKTOP);
  assert.equal(await desktop.page.locator(".keys").isVisible(), true);

  if (shots) {
    await page.evaluate(() => document.getElementById("messages-title").scrollIntoView());
    for (const [name, { page: shown }] of Object.entries({ phone: { page }, desktop })) {
      for (const colorScheme of ["light", "dark"]) {
        await shown.emulateMedia({ colorScheme });
        await shown.screenshot({ path: `${shots}/${name}-${colorScheme}.png` });
        await shown.screenshot({ path: `${shots}/${name}-${colorScheme}-full.png`, fullPage: true });
      }
    }
  }
}, "page: messages, form and answers are on one screen of a phone");
