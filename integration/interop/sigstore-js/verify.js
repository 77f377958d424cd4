// verify.js BUNDLE TRUSTED_ROOT IDENTITY ISSUER LOGS: verify a bundle with
// @sigstore/verify. It knows nothing of the artifact: the library does not read
// statements.
'use strict';

const { readFileSync } = require('node:fs');
const { bundleFromJSON } = require('@sigstore/bundle');
const { TrustedRoot } = require('@sigstore/protobuf-specs');
const { Verifier, toSignedEntity, toTrustMaterial } = require('@sigstore/verify');

const [bundle, root, identity, issuer, logs] = process.argv.slice(2);
const json = (file) => JSON.parse(readFileSync(file, 'utf8'));

try {
  const verifier = new Verifier(toTrustMaterial(TrustedRoot.fromJSON(json(root))), {
    ctlogThreshold: 0, // no certificate of ours is in a certificate log
    tlogThreshold: Number(logs),
    timestampThreshold: 1,
  });
  verifier.verify(toSignedEntity(bundleFromJSON(json(bundle))), {
    subjectAlternativeName: identity,
    extensions: { issuer },
  });
} catch (err) {
  console.error(`${err.name}: ${err.message}`);
  process.exit(1);
}
console.log('verified');
