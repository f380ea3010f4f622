// Does what asks the server, and tells when it is away or wants a key.

import * as api from "./api.js";
import { $, state, tell } from "./state.js";

let begin = () => {};
export const onBack = (work) => { begin = work; };

// Does something that asks the server; whether it went well. A server that is away, or wants a key, is told of.
export async function guarded(work, failed = (error) => tell(error)) {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof api.ServerAway) wait();
    if (error instanceof api.Refused && error.status === 401) wantKey(error instanceof api.KeyRefused ? error.message : "");
    if (!(error instanceof api.ServerAway || error instanceof api.Refused || error.name === "AbortError")) console.error(error);
    failed(error);
    return false;
  }
}

function wantKey(fault) {
  $("key_fault").textContent = fault;
  if (!$("key_dialog").open) $("key_dialog").showModal();
}

async function wait() {
  if (!$("away").hidden) return;
  $("away").hidden = false;
  // The pause comes first: a server may live and yet not answer what the page begins with.
  do await new Promise((done) => setTimeout(done, 1500)); while (!(await api.isAlive()));
  $("away").hidden = true;
  if (!state.served) begin();
}
