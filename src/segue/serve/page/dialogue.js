// Questions and answers.

import * as api from "./api.js";
import { isProbable, showFrame } from "./medium.js";
import { canMark, choose, drawRegions, follows, keep, maskOf, regionParts } from "./regions.js";
import * as saving from "./saving.js";
import { guarded } from "./server.js";
import { $, changed, keepDraft, make, mode, state, tell } from "./state.js";
import { say } from "./words.js";

// The end of the dialogue stays in sight while it grows, unless someone has scrolled up to read.
let isAtEnd = true;
let shown = 0; // how far it was scrolled when it grew last
function showEnd() {
  if ($("log").scrollTop < shown - 1) isAtEnd = false; // the event of scrolling comes later than the next word
  if (isAtEnd) $("log").scrollTop = $("log").scrollHeight;
  shown = $("log").scrollTop;
}
$("log").addEventListener("scroll", () => { isAtEnd = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight <= 1; });
new MutationObserver(showEnd).observe($("log"), { childList: true, subtree: true, characterData: true });
new ResizeObserver(showEnd).observe($("log"));

function addTurn(role, text = "") {
  const element = make("div", { className: `turn ${role}`, textContent: text });
  $("log").append(element);
  [isAtEnd, shown] = [true, 0]; // who asks wants to see the answer
  element.scrollIntoView({ block: "nearest" });
  return element;
}

// Shows the regions of an answer; their list may push the dialogue down, but an answer that was in sight stays there.
function show(owner) {
  const { top, bottom } = owner.element.getBoundingClientRect();
  choose(owner);
  if (isAtEnd && bottom > 0 && top < innerHeight) owner.element.scrollIntoView({ block: "nearest" });
}

// The text of an answer, with what it points at as words that light up; those without a place in it come after.
function writeAnswer(owner, text) {
  const { element, regions } = owner;
  const placed = regions.filter((region) => region.span).sort((one, other) => one.span[0] - other.span[0]);
  element.replaceChildren();
  let place = 0;
  const letters = Array.from(text); // spans count characters, not halves of them
  for (const region of placed) {
    if (region.span[0] < place) continue;
    element.append(letters.slice(place, region.span[0]).join(""), mention(owner, region, letters.slice(...region.span).join("")));
    place = region.span[1];
  }
  element.append(letters.slice(place).join(""));
  const others = regions.filter((region) => !region.span);
  others.forEach((region) => element.append(" ", mention(owner, region, region.name)));
}

function mention(owner, region, text) {
  const element = make("button", { type: "button", className: "mention", textContent: text });
  element.style.borderColor = region.colour;
  return follows(element, owner, region.id);
}

export async function send(event) {
  event.preventDefault();
  const words = $("words").value.trim();
  if (!words || state.running) return;
  if (!state.file && mode() === "find") return tell("first_media");
  state.running = new AbortController();
  $("words").value = "";
  const asked = addTurn("user", words);
  const owner = { regions: [], element: addTurn("assistant") };
  const { file } = state;
  const before = [...state.dialogue];
  changed();
  tell("queued");
  const isDone = await guarded(() => (mode() === "find" ? find(words, owner) : ask(words, owner)), (error) => {
    if (state.file !== file) return null;
    if (error.name === "AbortError") return tell("stopped");
    owner.element.textContent = error.message || say("away");
    owner.element.classList.add("error");
    tell();
    return null;
  });
  if (!isDone && state.file === file) { // what belongs to a medium that is gone is gone too
    // what was typed goes back, unless something new stands there
    state.dialogue = before;
    if (!$("words").value) $("words").value = words;
    if (!owner.element.textContent) owner.element.remove();
    if (!owner.element.isConnected) asked.remove();
  }
  state.running = null;
  keepDraft();
  changed();
}

// What was read of the medium for one question is not read again for the next.
const cacheKey = () => state.file?.id ?? "words";

async function ask(words, owner) {
  const parts = canMark() ? regionParts() : [];
  if (parts.length) state.dialogue = []; // marks stand beside the image that they are on
  const isFirst = state.file && !state.dialogue.some((message) => Array.isArray(message.content));
  const content = isFirst ? [{ type: "file", file: { file_id: state.file.id } }, ...parts, { type: "text", text: words }] : words;
  const { dialogue } = state;
  dialogue.push({ role: "user", content });
  const body = {
    model: state.served, messages: dialogue, probabilities: isProbable(), prompt_cache_key: cacheKey(),
  };
  let text = "";
  for await (const chunk of api.chat(body, state.running.signal)) {
    const { delta } = chunk.choices[0] ?? { delta: {} };
    text += delta.content ?? "";
    if (!delta.regions) owner.element.textContent = text;
    if (text && !delta.frame) tell("working");
    if (delta.regions_found) found(owner, delta.regions_found);
    if (delta.frame) addFrame(owner, delta.frame);
    if (delta.regions) finish(owner, delta.regions, text);
  }
  dialogue.push({ role: "assistant", content: text });
  state.marks = [];
}

async function find(words, owner) {
  const phrases = words.split(/[,，;；\n]+/).map((phrase) => phrase.trim()).filter(Boolean);
  if (state.file.media.kind === "image") {
    tell("working");
    const body = { image: { file_id: state.file.id }, phrases, probabilities: true, prompt_cache_key: cacheKey() };
    const { signal } = state.running;
    const answer = await api.segment(body, signal);
    signal.throwIfAborted();
    return finish(owner, answer.regions, summary(answer.regions, answer.not_found));
  }
  for await (const event of api.follow(state.file.id, phrases, isProbable(), state.running.signal)) {
    if (event.type === "found") found(owner, event.regions);
    if (event.type === "frame") addFrame(owner, event);
    if (event.type === "done") {
      const regions = event.regions.map((region) => ({ ...region, frames: region.frames ?? owner.regions[region.id]?.frames }));
      finish(owner, regions, summary(event.regions, event.not_found));
    }
  }
}

function summary(regions, missing) {
  const lines = [regions.length ? say("found", "") : say("nothing")];
  return missing.length ? `${say("not_found", missing.join(", "))} ${regions.length ? lines[0] : ""}`.trim() : lines[0];
}

// The language side is done: names stand in the list while their masks are still being made.
function found(owner, regions) {
  owner.regions = regions.map((region) => keep({ ...region, frames: state.file?.media.kind === "video" ? [] : undefined }));
  choose(null);
  show(owner);
}

function addFrame(owner, frame) {
  frame.regions.forEach((mask, id) => {
    const region = owner.regions[id];
    if (region.frames) region.frames.push({ index: frame.index, ...mask });
    else Object.assign(region, mask);
  });
  if (state.file.media.frames > 1) {
    tell("frame_of", frame.index + 1, state.file.media.frames);
    if (!state.playing) guarded(() => showFrame(frame.index));
  } else drawRegions();
}

function finish(owner, regions, text) {
  owner.regions = regions.map(keep);
  writeAnswer(owner, text);
  state.turn?.element.classList.remove("chosen");
  state.turn = null;
  $("threshold").value = 50;
  show(owner);
  tell();
}

export async function saveClip() {
  if (state.running) return;
  state.running = new AbortController();
  changed();
  tell("writing");
  const failed = (error) => error.name === "AbortError" ? tell("stopped") : tell(error);
  const isDone = await guarded(async () => saving.save(await saving.mp4(state.file, state.turn.regions, maskOf, state.running.signal), `${state.file.name}.mp4`), failed);
  state.running = null;
  if (isDone) tell();
  changed();
}
