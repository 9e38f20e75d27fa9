// Signs tokens with jose, one for each algorithm, and writes the keys that check them as JWKS.

import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { SignJWT, exportJWK, generateKeyPair } from "jose";

const claims = { events: "mail chat.*" };

for (const alg of ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]) {
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true });
  await write(alg, privateKey, await exportJWK(publicKey));
}
for (const alg of ["HS256", "HS384", "HS512"]) {
  const secret = randomBytes(64);
  await write(alg, secret, { kty: "oct", k: secret.toString("base64url") });
}

async function write(alg, key, jwk) {
  for (const [end, expires] of [["jwt", "10m"], ["expired", "-10m"]]) {
    const token = new SignJWT(claims).setProtectedHeader({ alg, kid: `${alg}/1` }).setSubject("ann");
    token.setIssuer("https://issuer.example").setAudience("push").setIssuedAt().setExpirationTime(expires);
    writeFileSync(`${alg}.${end}`, await token.sign(key));
  }
  const others = [{ ...jwk, kid: "another", alg: "RSA-OAEP", use: "enc" }];
  writeFileSync(`${alg}.key`, JSON.stringify({ keys: [...others, { ...jwk, kid: `${alg}/1`, alg }] }, null, 2));
}
