"""Signs tokens with PyJWT, one for each algorithm, and writes the keys that check them as PEM."""

import json
import secrets
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
keys = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
keys |= {name: rsa_key for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")}
keys |= {name: secrets.token_hex(32) for name in ("HS256", "HS384", "HS512")}

now = int(time.time())
claims = {"sub": "ann", "iss": "https://issuer.example", "aud": ["push", "chat"], "iat": now, "nbf": now}
claims["events"] = ["mail", "chat.*"]
for name, key in keys.items():
    for end, left in (("jwt", 600), ("expired", -600)):
        token = jwt.encode(claims | {"exp": now + left}, key, algorithm=name, headers={"kid": name})
        Path(f"{name}.{end}").write_text(token + "\n")
    is_secret = isinstance(key, str)
    pem = key.encode() if is_secret else key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    Path(f"{name}.key").write_bytes(pem)

published = json.loads(get_default_algorithms()["ES256"].to_jwk(keys["ES256"].public_key()))
Path("jwks.json").write_text(json.dumps({"keys": [published | {"kid": "ES256", "use": "sig", "alg": "ES256"}]}))
