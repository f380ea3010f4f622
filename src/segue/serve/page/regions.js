// The regions of an answer: their masks, their place in the list, and which of them is lit; and the marks of a question.

import { decodeProbabilities, decodeRle, encodeRle } from "./masks.js";
import { $, changed, make, mode, state } from "./state.js";
import { say } from "./words.js";

const COLOURS = ["#1490ff", "#ff922e", "#ff1798", "#e6f000", "#1ff0ee", "#6a00e8", "#a4481a"];

// A region of an answer as the page keeps it; its masks and probabilities are decoded when they are first drawn.
export function keep(region) {
  const colour = COLOURS[region.id % COLOURS.length];
  return { ...region, colour, isOn: true, name: region.phrase || say("object", region.id + 1), masks: new Map(), levels: new Map() };
}

const part = (region, number) => region.frames ? region.frames.find((frame) => frame.index === number) : number ? null : region;

export async function maskOf(region, number) {
  const found = part(region, number);
  if (!found?.rle) return null;
  if (found.probabilities) {
    if (!region.levels.has(number)) region.levels.set(number, await decodeProbabilities(found.probabilities));
    const cut = Math.round(threshold() * 255);
    if (cut !== 128) return region.levels.get(number).map((level) => Number(level > cut));
  }
  if (!region.masks.has(number)) region.masks.set(number, decodeRle(found.rle));
  return region.masks.get(number);
}

export const threshold = () => Number($("threshold").value) / 100;

let drawn = 0;
export async function drawRegions() {
  const mine = ++drawn;
  const shown = [];
  for (const region of state.turn?.regions.filter((one) => one.isOn) ?? []) {
    shown.push({ id: region.id, colour: region.colour, mask: await maskOf(region, state.frameNumber), box: region.box });
  }
  if (mine !== drawn || !state.file) return;
  $("canvas").regions = shown.filter((region) => region.mask || (region.box && !state.turn.regions[region.id].frames));
}

export function light(id) {
  if (state.lit === id) return;
  state.lit = id;
  $("canvas").lit = id;
  for (const element of document.querySelectorAll("[data-region]")) {
    const isOfTurn = element.closest("#objects") || element.closest(".turn") === state.turn?.element;
    element.classList.toggle("lit", Boolean(isOfTurn) && Number(element.dataset.region) === id && id !== null);
  }
}

export function follows(element, owner, id) {
  const on = () => { choose(owner); light(id); };
  element.dataset.region = id;
  element.addEventListener("pointerenter", on);
  element.addEventListener("focusin", on);
  element.addEventListener("pointerleave", () => light(null));
  element.addEventListener("focusout", () => light(null));
  return element;
}

// Show the regions of one answer; those of another were shown before.
export function choose(owner) {
  if (state.turn === owner) return;
  state.turn?.element.classList.remove("chosen");
  state.turn = owner;
  state.turn?.element.classList.add("chosen");
  changed();
  drawRegions();
}

export function listObjects() {
  $("objects").replaceChildren(...(state.turn?.regions ?? []).map((region) => {
    const box = make("input", { type: "checkbox", checked: region.isOn });
    box.setAttribute("aria-label", say("show", region.name));
    box.addEventListener("change", () => { region.isOn = box.checked; drawRegions(); });
    const colour = make("input", { type: "color", value: region.colour });
    colour.setAttribute("aria-label", say("colour", region.name));
    colour.addEventListener("input", () => { region.colour = colour.value; drawRegions(); });
    const name = make("input", { type: "text", value: region.name });
    name.setAttribute("aria-label", say("name_of", region.id + 1));
    name.addEventListener("input", () => { region.name = name.value; });
    const ask = make("button", { type: "button", className: "plain", textContent: "?", title: say("ask_about", region.name), hidden: !canMark() });
    ask.setAttribute("aria-label", say("ask_about", region.name));
    ask.addEventListener("click", () => markRegion(region.id));
    const score = make("span", { className: "quiet score", textContent: region.score == null ? "" : say("score", region.score.toFixed(2)) });
    return follows(make("li", {}, box, colour, name, score, ask), state.turn, region.id);
  }));
}

/* ---- marks: parts of the image that a question is about ---- */

export const canMark = () => mode() === "ask" && state.file?.media.kind === "image";

export function mark(part) {
  state.marks.push(part);
  changed();
}

export async function markRegion(id) {
  const mask = canMark() && id !== null && await maskOf(state.turn.regions[id], state.frameNumber);
  if (mask) mark({ mask });
}

export function chooseTool(name) {
  $("canvas").tool = canMark() ? name : null;
  for (const tool of ["box", "brush"]) $(tool).setAttribute("aria-pressed", tool === name && canMark());
}

export function listMarks() {
  $("marking").hidden = !canMark();
  if (!canMark()) chooseTool(null);
  $("canvas").marks = canMark() ? state.marks : [];
  $("mark_note").hidden = !state.marks.length;
  $("marks").replaceChildren(...state.marks.map((part, number) => {
    const button = make("button", { type: "button", textContent: `region${number + 1} ✕` });
    button.setAttribute("aria-label", say("unmark", number + 1));
    button.addEventListener("click", () => { state.marks.splice(number, 1); changed(); });
    return button;
  }));
}

// The marks as parts of a message.
export function regionParts() {
  const { width, height } = state.file.media;
  return state.marks.map(({ box, mask }) => ({ type: "region", ...(box ? { box } : { rle: encodeRle(mask, width, height) }) }));
}
