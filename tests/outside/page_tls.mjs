// Opens the page of a gateway that speaks TLS in headless Chromium: it is bound over wss, and pushes over https. Run as
// page.mjs is; needs openssl.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { becomes, certificate, newPage, run, startGateway, step } from "./browser.mjs";

await run(async (browser) => {
  step("start a gateway with TLS");
  const folder = mkdtempSync(join(tmpdir(), "pushgate-"));
  const pem = join(folder, "both.pem");
  writeFileSync(pem, certificate());
  const gateway = await startGateway([], { tls_cert_file: pem, tls_key_file: pem });
  rmSync(folder, { recursive: true });
  const { page, detail, messages, push } = await newPage(browser, gateway, /^$/, { ignoreHTTPSErrors: true });
  const sockets = [];
  page.on("websocket", (socket) => sockets.push(socket.url()));

  step("open the page, connect and push");
  await page.goto(gateway.url);
  await page.click("#connect");
  await becomes(detail, "Bound: mail.");
  // A browser speaks HTTP/2 over TLS, which has no words for a status.
  assert.equal(await push(), "200 matched 1, accepted 1, held 0");
  await becomes(messages, [["#1 mail", "hello"]]);
  assert.deepEqual(sockets, [`wss://${gateway.address}/ws`]);
}, "page: worked over TLS");
