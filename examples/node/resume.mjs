// A run that survives: killed and started again, it goes on where it was; it logs its loss, and stops by a rule.
//
// node examples/node/resume.mjs http://127.0.0.1:8000 run-7
import { setTimeout as sleep } from "node:timers/promises";
import { randomUUID } from "node:crypto";

const [base, name] = process.argv.slice(2);
const octets = { "Content-Type": "application/octet-stream", Accept: "application/octet-stream" };

// One call. What got no answer, 408, 429 or 503 is sent again for a minute: a step has a number, the creation a key.
async function call(method, path, headers, body) {
  const until = Date.now() + 60_000;
  for (;;) {
    const response = await fetch(base + path, { method, headers, body }).catch((error) => {
      if (Date.now() > until) throw error;
    });
    if (response && (![408, 429, 503].includes(response.status) || Date.now() > until)) return response;
    await sleep(100 + 400 * Math.random() + 1000 * Number(response?.headers.get("Retry-After") ?? 0));
  }
}

// The answer, or the end of the program with the server's words.
async function wanted(response) {
  if (!response.ok) throw new Error(await response.text());
  return response;
}

function encode(values) {
  const view = new DataView(new ArrayBuffer(8 * values.length));
  values.forEach((value, i) => view.setFloat64(8 * i, value, true)); // true: little-endian
  return view.buffer;
}
async function decode(response) {
  const view = new DataView(await response.arrayBuffer());
  return Array.from({ length: view.byteLength / 8 }, (_, i) => view.getFloat64(8 * i, true));
}

function lossAndGradient([x, y]) {
  const a = 1 - x;
  const t = y - x * x;
  return [a * a + 100 * (t * t), [-2 * a - 400 * x * t, 200 * t]];
}

const start = {
  name,
  parameters: [-1.2, 1.0],
  optimizer: { name: "adam", lr: 0.3, stop: { target_loss: 0.1, max_steps: 1000 } },
};
const keyed = { "Content-Type": "application/json", "Idempotency-Key": randomUUID() };
const made = await call("POST", "/v1/sessions", keyed, JSON.stringify(start));
if (made.status !== 409) await wanted(made); // 409 session_exists: this run has begun already

const session = `/v1/sessions/${name}`;
let answer = await wanted(await call("GET", `${session}/parameters`, octets));
while (!answer.headers.has("Adamd-Stop")) {
  const [loss, gradient] = lossAndGradient(await decode(answer));
  const step = Number(answer.headers.get("Adamd-Step")) + 1;
  const headers = { ...octets, "If-Match": answer.headers.get("ETag"), "Adamd-Metrics": JSON.stringify({ loss }) };
  answer = await wanted(await call("PUT", `${session}/steps/${step}`, headers, encode(gradient)));
  console.log(step, loss, ...(await decode(answer.clone())));
}
console.log("stop", answer.headers.get("Adamd-Stop"));
