// Rosenbrock's valley from Node over gRPC, from the .proto alone: ten unary steps, then ten on one stream.
import { randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const address = (process.argv[2] ?? process.env.ADAMD_URL ?? "grpc://127.0.0.1:50051").replace("grpc://", "");
const proto = fileURLToPath(new URL("../../client/adamd/wire/v1/adamd.proto", import.meta.url));
// longs: String, because a step is a uint64 and a JavaScript number holds integers up to 2^53 only.
const definition = loader.loadSync(proto, { keepCase: true, longs: String, enums: String, defaults: true });
const { OptimizerService } = grpc.loadPackageDefinition(definition).adamd.v1;

// UNAVAILABLE is sent again by gRPC itself: safe, because a step has a number and the creation a key.
const retry = { maxAttempts: 5, initialBackoff: "0.2s", maxBackoff: "5s", backoffMultiplier: 2, retryableStatusCodes: ["UNAVAILABLE"] };
const client = new OptimizerService(address, grpc.credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify({ methodConfig: [{ name: [{ service: "adamd.v1.OptimizerService" }], retryPolicy: retry }] }),
  "grpc.max_receive_message_length": (4 << 20) + (256 << 10), // a unary answer may have 4 MiB of parameters
});

function unary(method, request) {
  return new Promise((resolve, reject) => {
    client[method](request, { deadline: Date.now() + 60_000 }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

function encode(values) {
  const bytes = Buffer.alloc(8 * values.length);
  values.forEach((value, i) => bytes.writeDoubleLE(value, 8 * i));
  return bytes;
}
function decode(bytes) {
  return Array.from({ length: bytes.length / 8 }, (_, i) => bytes.readDoubleLE(8 * i));
}

function gradient([x, y]) {
  const t = y - x * x;
  return [-2 * (1 - x) - 400 * x * t, 200 * t];
}

const { session } = await unary("CreateSession", {
  optimizer: { fields: { name: { stringValue: "adam" }, lr: { numberValue: 0.05 } } },
  layout: { vector: true, tensors: [{ name: "parameters", shape: [2] }] },
  dtype: "DTYPE_FLOAT64",
  parameters: encode([-1.2, 1.0]),
  idempotency_key: randomUUID(),
});
let parameters = [-1.2, 1.0];
let chain = session.chain;

for (let step = 1; step <= 10; step++) {
  const header = { session: session.id, step: String(step), if_match: chain };
  const answer = await unary("Step", { header, gradient: encode(gradient(parameters)) });
  chain = answer.standing.chain;
  parameters = decode(answer.parameters);
  console.log(answer.standing.step, ...parameters);
}

// One stream: each step is a header with the first (here the only) piece of its body, and so is each answer.
const stream = client.StepStream({ deadline: Date.now() + 60_000 });
const answers = stream[Symbol.asyncIterator]();
for (let step = 11; step <= 20; step++) {
  const data = encode(gradient(parameters));
  stream.write({ header: { session: session.id, step: String(step), if_match: chain, nbytes: String(data.length) }, offset: "0", data });
  let standing, pieces = [], have = 0;
  do {
    const { value } = await answers.next();
    standing ??= value.standing;
    pieces.push(value.data);
    have += value.data.length;
  } while (have < Number(standing.nbytes));
  chain = standing.chain;
  parameters = decode(Buffer.concat(pieces));
  console.log(standing.step, ...parameters);
}
stream.end();
await unary("DeleteSession", { session: session.id });
client.close();
