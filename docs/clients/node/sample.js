// A Node client of Gatekeeper, whole: evaluation, errors, signed calls, tokens, a watch. `make test-clients` runs it.
//
// It loads the protos at run time. Variables: PROTOS (their folder), ADDRESS (host:port), KEY_ID and KEY_SECRET of a
// signing key, ADMIN_PASSWORD.
'use strict';

const crypto = require('node:crypto');
const {setTimeout: sleep} = require('node:timers/promises');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const {PROTOS, ADDRESS, KEY_ID, KEY_SECRET, ADMIN_PASSWORD} = process.env;
const FLAG = 'sample';

const files = ['evaluation_service', 'auth_service', 'admin_service'].map((name) => `gatekeeper/v1/${name}.proto`);
// longs: int64, such as revision, as text. defaults: false and 0 are there, and not undefined. enums: by name.
const definition = loader.loadSync(files, {includeDirs: [PROTOS], longs: String, enums: String, defaults: true, oneofs: true});
const gatekeeper = grpc.loadPackageDefinition(definition).gatekeeper.v1;

// What grpc-js does not decode: the details of an error.
const rpc = protobuf.parse(`
  syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`, {keepCase: true}).root;

const options = {
  'grpc.service_config': JSON.stringify({
    // By default a client stays with one instance, however many a name has.
    loadBalancingConfig: [{round_robin: {}}],
    methodConfig: [{
      name: [
        {service: 'gatekeeper.v1.EvaluationService'},
        {service: 'gatekeeper.v1.AdminService', method: 'ListFlags'},
      ],
      retryPolicy: {
        maxAttempts: 5, initialBackoff: '0.05s', maxBackoff: '1s', backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE'],
      },
    }],
  }),
};
// Without TLS: for a trusted network. dns:/// uses all addresses of a name.
const connect = (Service) => new Service(`dns:///${ADDRESS}`, grpc.credentials.createInsecure(), options);
const deadline = () => ({deadline: Date.now() + 5000});
// A call waits for a connection only if its metadata says so: grpc-js ignores waitForReady in a service config.
const waiting = () => new grpc.Metadata({waitForReady: true});

const call = (client, method, request, metadata = waiting()) => new Promise((resolve, reject) => {
  client[method](request, metadata, deadline(), (error, answer) => (error ? reject(error) : resolve(answer)));
});

// proto-loader drops a plain object where a Struct belongs, without a word: the server then sees no attributes.
function value(plain) {
  if (plain === null || plain === undefined) return {nullValue: 'NULL_VALUE'};
  if (Array.isArray(plain)) return {listValue: {values: plain.map(value)}};
  switch (typeof plain) {
    case 'string': return {stringValue: plain};
    case 'number': return {numberValue: plain};
    case 'boolean': return {boolValue: plain};
    default: return {structValue: struct(plain)};
  }
}

function struct(plain) {
  return {fields: Object.fromEntries(Object.entries(plain).map(([name, item]) => [name, value(item)]))};
}

// The flags of alice, who has eight attributes. The names of fields are in camelCase, or dropped as well.
function request(fields = {}) {
  const attributes = {plan: 'pro'};
  for (let n = 0; n < 7; n += 1) attributes[`number_${n}`] = n;
  return {context: {userId: 'alice', attributes: struct(attributes)}, ...fields};
}

async function evaluate(evaluation) {
  const answer = await call(evaluation, 'EvaluateFlags', request({flagKeys: [FLAG], includeDetails: true}));
  const detail = answer.details[FLAG];
  console.log('value', answer.flags[FLAG], detail.variant, detail.reason);
}

// What a program can read of an error: the reason and its variables, never the text.
function errorInfo(error) {
  const [details] = error.metadata.get('grpc-status-details-bin');
  const found = rpc.lookupType('Status').decode(details).details.find((any) => any.type_url.endsWith('google.rpc.ErrorInfo'));
  return rpc.lookupType('ErrorInfo').decode(found.value);
}

async function refused(evaluation) {
  try {
    await call(evaluation, 'EvaluateFlags', request({flagKeys: ['?']}));
  } catch (error) {
    const info = errorInfo(error);
    console.log('error', grpc.status[error.code], info.reason, info.metadata.field);
  }
}

// The message is serialised here, once: the bytes that are hashed are the bytes that are sent. Streams, WatchFlags too,
// are signed with 'UNSIGNED' for the hash.
function signedCall(client, method, message) {
  const {path, requestSerialize, responseDeserialize} = client[method];
  const body = requestSerialize(message);
  const timestamp = String(Math.floor(Date.now() / 1000));
  const nonce = crypto.randomBytes(16).toString('hex');
  const content = crypto.createHash('sha256').update(body).digest('hex');
  const text = [KEY_ID, timestamp, nonce, content, ADDRESS.toLowerCase(), path].join('\n');
  const metadata = waiting();
  metadata.set('x-gatekeeper-key-id', KEY_ID);
  metadata.set('x-gatekeeper-timestamp', timestamp);
  metadata.set('x-gatekeeper-nonce', nonce);
  metadata.set('x-gatekeeper-content-sha256', content);
  metadata.set('x-gatekeeper-signature', crypto.createHmac('sha256', KEY_SECRET).update(text).digest('hex'));
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest(path, (bytes) => bytes, responseDeserialize, body, metadata, deadline(),
      (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

async function signed(evaluation) {
  let answers = 0;
  for (; answers < 20; answers += 1) await signedCall(evaluation, 'EvaluateFlags', request());
  console.log('signed', answers);
}

// Refresh near accessTokenExpireTime or after UNAUTHENTICATED, in one process alone: a refresh token works once, and
// using a spent one again ends the login.
async function tokens() {
  const auth = connect(gatekeeper.AuthService);
  const admin = connect(gatekeeper.AdminService);
  const login = await call(auth, 'Login', {username: 'admin', password: ADMIN_PASSWORD});
  const fresh = await call(auth, 'RefreshToken', {refreshToken: login.refreshToken});
  const metadata = waiting();
  metadata.set('authorization', `Bearer ${fresh.accessToken}`);
  const {flag} = await call(admin, 'GetFlag', {key: FLAG}, metadata);
  console.log('token', flag.key);
  auth.close();
  admin.close();
}

// Hears of changes until the sample flag changes.
async function watch(evaluation) {
  let revision = '0';
  const cache = new Map([[FLAG, true]]);
  for (;;) {
    // No deadline: the stream stays open, and something comes at least every 20 s.
    const stream = evaluation.WatchFlags({fromRevision: revision}, waiting());
    try {
      for await (const message of stream) {
        if (message.reset) cache.clear(); // The changes are unknown: forget everything.
        for (const change of message.changes) cache.delete(change.flagKey);
        if (revision === '0') console.log('watching');
        revision = message.revision;
        if (!cache.has(FLAG)) {
          console.log('changed', FLAG);
          stream.on('error', () => {}); // Of the cancellation.
          stream.cancel();
          return;
        }
      }
    } catch (error) {
      if (![grpc.status.UNAVAILABLE, grpc.status.RESOURCE_EXHAUSTED].includes(error.code)) throw error;
    }
    await sleep(Math.random() * 1000); // Jitter: all clients of an instance lose it together.
  }
}

async function main() {
  const evaluation = connect(gatekeeper.EvaluationService);
  await evaluate(evaluation);
  await refused(evaluation);
  await signed(evaluation);
  await tokens();
  await watch(evaluation);
  evaluation.close();
}

module.exports = {gatekeeper, options, request, waiting};
if (require.main === module) main();
