// Rosenbrock's valley from Node over HTTP: fetch and octet-stream, nothing to install.
import { setTimeout as sleep } from "node:timers/promises";
import { randomUUID } from "node:crypto";

const sessions = (process.argv[2] ?? process.env.ADAMD_URL ?? "http://127.0.0.1:8000") + "/v1/sessions";
const octets = { "Content-Type": "application/octet-stream", Accept: "application/octet-stream" };

// One call. What got no answer, or 429 or 503, is sent again: a step has a number, and the creation a key.
async function call(method, path, headers, body) {
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(sessions + path, { method, headers, body });
    } catch (error) {
      if (attempt === 10) throw error;
      await sleep(200 * attempt);
      continue;
    }
    if (response.ok) return response;
    const problem = await response.json();
    if (![429, 503].includes(response.status) || attempt === 10) throw new Error(`${problem.code}: ${problem.detail}`);
    await sleep(1000 * Number(response.headers.get("Retry-After") ?? 1));
  }
}

// A DataView says its byte order; a Float64Array has the machine's, which is the protocol's on all but a few.
function encode(values) {
  const view = new DataView(new ArrayBuffer(8 * values.length));
  values.forEach((value, i) => view.setFloat64(8 * i, value, true));
  return view.buffer;
}
function decode(buffer) {
  const view = new DataView(buffer);
  return Array.from({ length: buffer.byteLength / 8 }, (_, i) => view.getFloat64(8 * i, true));
}

function gradient([x, y]) {
  const t = y - x * x;
  return [-2 * (1 - x) - 400 * x * t, 200 * t];
}

const start = { parameters: [-1.2, 1.0], optimizer: { name: "adam", lr: 0.05 } };
const made = await call(
  "POST", "", { "Content-Type": "application/json", "Idempotency-Key": randomUUID() }, JSON.stringify(start),
);
const { id } = await made.json();
let answer = await call("GET", `/${id}/parameters`, octets);
for (let step = 1; step <= 20; step++) {
  const parameters = decode(await answer.arrayBuffer());
  // If-Match: the step shall build on the history that we know, not on another of the same length.
  const known = { ...octets, "If-Match": answer.headers.get("ETag") };
  answer = await call("PUT", `/${id}/steps/${step}`, known, encode(gradient(parameters)));
  console.log(answer.headers.get("Adamd-Step"), ...decode(await answer.clone().arrayBuffer()));
}
await call("DELETE", `/${id}`);
