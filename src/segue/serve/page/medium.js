// The image or video that is looked at.

import * as api from "./api.js";
import { drawRegions } from "./regions.js";
import { guarded } from "./server.js";
import { $, changed, state, stop, tell } from "./state.js";
import { say } from "./words.js";

const MOST_PROBABLE = 64; // frames of a video for which the server tells probabilities

let opening = new AbortController();

// Shows what was chosen; whether it could. The last choice counts: what is still on its way to the server is given up
// for it.
export async function open(blob, name, phrases = []) {
  opening.abort();
  const { signal } = opening = new AbortController();
  tell("uploading");
  const isOpen = await guarded(async () => {
    const uploaded = await api.upload(blob, name, signal);
    signal.throwIfAborted();
    clear();
    state.file = { id: uploaded.id, media: uploaded.media, name: name.replace(/\.\w+$/, ""), fileName: name };
    state.ideas = phrases;
    $("frame").max = state.file.media.frames - 1;
    await showFrame(0);
    if (!signal.aborted) tell();
  }, (error) => { if (!signal.aborted) tell(error); });
  changed();
  if (state.file && !signal.aborted) goOn("words");
  return isOpen && !signal.aborted;
}

export function close() {
  opening.abort();
  clear();
  goOn("file");
}

// The focus goes where one goes on, unless it stands on something that is still to be seen.
function goOn(id) {
  const { activeElement } = document;
  if (activeElement === document.body || !activeElement.checkVisibility()) $(id).focus({ preventScroll: true });
}

function clear() {
  stop();
  pause();
  [state.file, state.dialogue, state.turn, state.pictures, state.frameNumber, state.marks] = [null, [], null, new Map(), 0, []];
  state.ideas = [];
  $("log").replaceChildren();
  tell();
  changed();
}

export async function showFrame(number) {
  if (!state.file) return;
  const { id } = state.file;
  state.frameNumber = number;
  if (!state.pictures.has(number)) state.pictures.set(number, await api.frame(id, number));
  if (state.file?.id !== id || state.frameNumber !== number) return;
  $("canvas").picture = state.pictures.get(number);
  $("frame").value = number;
  $("frame_number").value = say("frame_of", number + 1, state.file.media.frames);
  drawRegions();
}

export function play() {
  if (state.playing) return pause();
  $("play").textContent = "❚❚";
  const mine = state.playing = {};
  const step = async () => {
    if (state.playing !== mine) return; // paused, and perhaps played again, while a frame was on its way
    if (!await guarded(() => showFrame((state.frameNumber + 1) % state.file.media.frames))) return pause();
    setTimeout(step, 1000 / (state.file?.media.fps || 10));
  };
  step();
}

export function pause() {
  state.playing = null;
  $("play").textContent = "▶";
}

export const isProbable = () => Boolean(state.file) && state.file.media.frames <= MOST_PROBABLE;
