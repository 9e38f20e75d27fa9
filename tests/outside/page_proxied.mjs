// Opens the page in headless Chromium behind a proxy that speaks TLS and serves the gateway below a path of its own: all
// goes through the proxy, and nothing to the gateway's own address. Run as page.mjs is; needs openssl.

import assert from "node:assert/strict";
import { request } from "node:http";
import { createServer } from "node:https";
import { becomes, certificate, newPage, run, startGateway, step } from "./browser.mjs";

const PREFIX = "/gate";

/** Passes requests and upgrades on to a port of this machine, and answers for nothing but what is below the prefix. */
async function proxyTo(port) {
  const onward = ({ method, url, headers }) => {
    const path = url.startsWith(`${PREFIX}/`) ? url.slice(PREFIX.length) : "/not-below-the-prefix";
    return request({ host: "127.0.0.1", port, method, path, headers });
  };
  const pem = certificate();
  const server = createServer({ key: pem, cert: pem }, (asked, answer) => {
    const inner = onward(asked);
    inner.on("response", (given) => given.pipe(answer.writeHead(given.statusCode, given.headers)));
    asked.pipe(inner);
  });
  server.on("upgrade", (asked, near) => {
    const inner = onward(asked);
    inner.on("response", () => near.destroy());
    inner.on("upgrade", ({ rawHeaders }, far) => {
      const lines = rawHeaders.map((text, at) => (at % 2 ? `${text}\r\n` : `${text}: `)).join("");
      near.write(`HTTP/1.1 101 Switching Protocols\r\n${lines}\r\n`);
      for (const end of [near, far]) end.on("error", () => {}).on("close", () => (near.destroy(), far.destroy()));
      near.pipe(far).pipe(near);
    });
    inner.end();
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  return server.address().port;
}

await run(async (browser) => {
  step("start a gateway and a proxy");
  const gateway = await startGateway();
  const port = await proxyTo(gateway.port);
  const { page, detail, messages, push } = await newPage(browser, gateway, /^$/, { ignoreHTTPSErrors: true });
  const asked = [];
  page.on("request", (request) => asked.push(request.url()));
  page.on("websocket", (socket) => asked.push(socket.url()));

  step("open the page, connect and push");
  await page.goto(`https://127.0.0.1:${port}${PREFIX}/`);
  await page.click("#connect");
  await becomes(detail, "Bound: mail.");
  assert.equal(await push(), "200 OK matched 1, accepted 1, held 0");
  await becomes(messages, [["#1 mail", "hello"]]);

  step("look at what was asked for, and where");
  const paths = ["", "pushgate.js", "ws", "push"];
  await becomes(() => paths.filter((path) => !asked.some((url) => url.endsWith(`:${port}${PREFIX}/${path}`))), []);
  const elsewhere = asked.filter((url) => !/^(https|wss|data):/.test(url));
  assert.deepEqual(elsewhere, []);
  assert.equal(await page.locator("#ws-url").textContent(), `wss://127.0.0.1:${port}${PREFIX}/ws`);
  const metrics = await page.evaluate(async () => (await fetch(document.querySelector("header a").href)).status);
  assert.equal(metrics, 200);
}, "page: worked behind a proxy with TLS and a path of its own");
