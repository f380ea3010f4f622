// All that the page asks of the server.

import { say } from "./words.js";

export class ServerAway extends Error {}
export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}
export class KeyRefused extends Refused {
  constructor(message) { super(401, message); }
}

const NO_HEADER_LETTER = /[^\t\x20-\x7e\x80-\xff]/u; // fetch() throws for the others as if there were no server
let key = sessionStorage.getItem("key");

export function setKey(given) {
  key = given;
  sessionStorage.setItem("key", given);
}

async function ask(path, options = {}) {
  const [letter] = key?.match(NO_HEADER_LETTER) ?? [];
  if (letter) throw new KeyRefused(say("key_letter", letter));
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerAway();
  }
  if (response.ok) return response;
  if (response.status === 401 && key) throw new KeyRefused(say("key_unknown"));
  const body = await response.json().catch(() => null);
  throw new Refused(response.status, body?.error?.message ?? `${response.status}`);
}

const json = (body, signal) => ({
  method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal,
});

export const isAlive = () => fetch("health").then((response) => response.ok, () => false);
export const model = async () => (await (await ask("v1/models")).json()).data[0];
export const examples = async () => (await (await ask("v1/examples")).json()).data;
export const example = async (name) => (await ask(`v1/examples/${name}`)).blob();
export const frame = async (file, number) => createImageBitmap(await (await ask(`v1/files/${file}/frames/${number}`)).blob());
export const segment = async (body, signal) => (await ask("v1/segment", json(body, signal))).json();

export const overlay = async (file, regions, signal) => (await ask(`v1/files/${file}/overlay`, json({ regions }, signal))).blob();

export async function upload(blob, name, signal) {
  // A folder, or a file that may not be read, makes fetch() fail as if there were no server.
  const reader = blob.stream().getReader();
  await reader.read().catch(() => { throw new Refused(0, say("unreadable", name)); });
  reader.cancel();
  const form = new FormData();
  form.append("file", blob, name);
  return (await ask("v1/files", { method: "POST", body: form, signal })).json();
}

export async function* chat(body, signal) {
  for await (const line of lines(await ask("v1/chat/completions", json({ ...body, stream: true }, signal)), signal)) {
    if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
    yield checked(JSON.parse(line.slice(6)));
  }
}

// Follows phrases through a video that was uploaded; the session is closed however it ends, with the page too.
export async function* follow(file, phrases, probabilities, signal) {
  const session = await (await ask("v1/video/sessions", json({ video: { file_id: file } }, signal))).json();
  const path = `v1/video/sessions/${session.id}`;
  const end = () => ask(path, { method: "DELETE", keepalive: true }).catch(() => {});
  window.addEventListener("pagehide", end);
  try {
    for (const phrase of phrases) await ask(`${path}/phrases`, json({ phrase }, signal));
    for await (const line of lines(await ask(`${path}/follow`, json({ probabilities }, signal)), signal)) if (line) yield checked(JSON.parse(line));
  } finally {
    window.removeEventListener("pagehide", end);
    end();
  }
}

function checked(event) {
  if (event.error) throw new Refused(500, event.error.message);
  return event;
}

// The lines of an answer as they come; none after `signal`, though more of them may have come by then.
async function* lines(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      signal.throwIfAborted();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerAway();
  } finally {
    reader.cancel().catch(() => {});
  }
}
