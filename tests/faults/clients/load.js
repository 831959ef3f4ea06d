// A load of calls by Node clients, with the options of the sample. tests/faults/programs.py has what every load reads
// and prints. It lies next to the sample when it runs.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const {setTimeout: sleep} = require('node:timers/promises');
const grpc = require('@grpc/grpc-js');
const {gatekeeper, options, request, waiting} = require('./sample.js');

const {ADDRESSES, CA_FILE, TOKEN, FLAG} = process.env;
const EVALUATORS = 4;
const BETWEEN_CALLS_MS = 40;
const BETWEEN_CHANGES_MS = 100;
const BEFORE_REPEAT_MS = 5;
// Twice what the documents ask for: servers that start share the cores with this.
const DEADLINE_MS = 10_000;
const GIVES_UP_AFTER_MS = 60_000;
const PRINT_INTERVAL_MS = 250;

const figures = {answered: {}, failed: {}, watches: {}, repeated: 0, seen_revision: 0, changed_revision: 0};
const count = (of, what) => { of[what] = (of[what] ?? 0) + 1; };
const print = () => process.stdout.write(`${JSON.stringify(figures)}\n`);
let stopped = false;

// In plaintext no evaluation needs a retry policy.
function serviceConfig(Service) {
  const config = JSON.parse(options['grpc.service_config']);
  if (!CA_FILE && Service === gatekeeper.EvaluationService) {
    for (const method of config.methodConfig) delete method.retryPolicy;
  }
  return JSON.stringify(config);
}

// A connection to every address that no other client shares.
function dial(Service) {
  const credentials = CA_FILE
    ? grpc.credentials.createSsl(fs.readFileSync(CA_FILE))
    : grpc.credentials.createInsecure();
  return new Service(`ipv4:${ADDRESSES}`, credentials, {
    ...options,
    'grpc.service_config': serviceConfig(Service),
    'grpc.use_local_subchannel_pool': 1,
    'grpc.default_authority': 'localhost',
    'grpc.ssl_target_name_override': 'localhost',
  });
}

function call(client, method, asked) {
  const metadata = waiting();
  if (method !== 'EvaluateFlags') metadata.set('authorization', `Bearer ${TOKEN}`);
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + DEADLINE_MS;
    client[method](asked, metadata, {deadline}, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

async function repeat(kind, pauseMs, once) {
  for (; !stopped; await sleep(pauseMs)) {
    try {
      await once();
      count(figures.answered, kind);
    } catch (error) {
      count(figures.failed, `${kind}: ${grpc.status[error.code]}: ${error.details}`);
    }
  }
}

// Changes the flag, and sends the same again while the answer is UNAVAILABLE.
async function change(admin) {
  const id = crypto.randomUUID();
  const asked = {flag: {key: FLAG, description: id}, updateMask: {paths: ['description']}, requestId: id};
  for (const end = Date.now() + GIVES_UP_AFTER_MS; ; figures.repeated += 1) {
    try {
      const {revision} = await call(admin, 'UpdateFlag', asked);
      figures.changed_revision = Math.max(figures.changed_revision, Number(revision));
      return;
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE || Date.now() > end) throw error;
      await sleep(BEFORE_REPEAT_MS);
    }
  }
}

async function watch() {
  const evaluation = dial(gatekeeper.EvaluationService);
  for (; ; await sleep(Math.random() * 1000)) {
    try {
      for await (const message of evaluation.WatchFlags({fromRevision: String(figures.seen_revision)}, waiting())) {
        figures.seen_revision = Math.max(figures.seen_revision, Number(message.revision));
      }
      count(figures.watches, 'OK');
    } catch (error) {
      count(figures.watches, grpc.status[error.code]);
    }
  }
}

async function main() {
  watch();
  const calls = Array.from({length: EVALUATORS}, () => {
    const evaluation = dial(gatekeeper.EvaluationService);
    return repeat('evaluate', BETWEEN_CALLS_MS, () => call(evaluation, 'EvaluateFlags', request()));
  });
  const [reader, changer] = [dial(gatekeeper.AdminService), dial(gatekeeper.AdminService)];
  calls.push(repeat('read', BETWEEN_CALLS_MS, () => call(reader, 'ListFlags', {pageSize: 1})));
  calls.push(repeat('change', BETWEEN_CHANGES_MS, () => change(changer)));
  process.stdin.resume().on('end', () => { stopped = true; });
  const printing = setInterval(print, PRINT_INTERVAL_MS);
  await Promise.all(calls);
  const end = Date.now() + GIVES_UP_AFTER_MS;
  while (figures.seen_revision < figures.changed_revision && Date.now() < end) await sleep(BEFORE_REPEAT_MS);
  clearInterval(printing);
  process.stdout.write(`${JSON.stringify(figures)}\n`, () => process.exit(0));
}

main();
