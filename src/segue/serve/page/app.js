// The page: what is shown, what is asked, and what came of it. All of it lives in this tab.

import * as api from "./api.js";
import "./canvas.js";
import { decodeProbabilities, decodeRle, encodeRle } from "./masks.js";
import * as saving from "./saving.js";
import { current, say, switchLanguage, translate } from "./words.js";

const COLOURS = ["#1490ff", "#ff922e", "#ff1798", "#e6f000", "#1ff0ee", "#6a00e8", "#a4481a"];
const MOST_PROBABLE = 64; // frames of a video for which the server tells probabilities

const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

let served = "";
let file = null; // {id, media, name}
let dialogue = []; // messages as the API takes them
let turn = null; // the answer whose regions are shown: {regions, element}
let frameNumber = 0;
let pictures = new Map(); // frame number -> ImageBitmap
let marks = []; // parts of the image that the next question is about: {box} or {mask}
let running = null; // AbortController
let playing = null;
let lit = null;
let status = []; // what the status line says: a name of words.js and its values
let ideas = { find: [], ask: ["describe"] };

/* ---- the medium ---- */

async function open(blob, name, phrases = []) {
  tell("uploading");
  await guarded(async () => {
    const uploaded = await api.upload(blob, name);
    close();
    file = { id: uploaded.id, media: uploaded.media, name: name.replace(/\.\w+$/, "") };
    ideas.find = phrases;
    $("frame").max = file.media.frames - 1;
    await showFrame(0);
    tell();
  });
  layOut();
}

function close() {
  stop();
  pause();
  [file, dialogue, turn, pictures, frameNumber, marks] = [null, [], null, new Map(), 0, []];
  ideas.find = [];
  $("log").replaceChildren();
  tell();
  layOut();
}

async function showFrame(number) {
  if (!file) return;
  const { id } = file;
  frameNumber = number;
  if (!pictures.has(number)) pictures.set(number, await api.frame(id, number));
  if (file?.id !== id || frameNumber !== number) return;
  $("canvas").picture = pictures.get(number);
  $("frame").value = number;
  $("frame_number").value = say("frame_of", number + 1, file.media.frames);
  drawRegions();
}

function play() {
  if (playing) return pause();
  $("play").textContent = "❚❚";
  const step = async () => {
    await guarded(() => showFrame((frameNumber + 1) % file.media.frames));
    if (playing) playing = setTimeout(step, 1000 / (file.media.fps || 10));
  };
  playing = setTimeout(step, 0);
}

function pause() {
  clearTimeout(playing);
  playing = null;
  $("play").textContent = "▶";
}

/* ---- regions ---- */

// A region of an answer as the page keeps it; its masks and probabilities are decoded when they are first drawn.
function keep(region) {
  const colour = COLOURS[region.id % COLOURS.length];
  return { ...region, colour, isOn: true, name: region.phrase || say("object", region.id + 1), masks: new Map(), levels: new Map() };
}

const part = (region, number) => region.frames ? region.frames.find((frame) => frame.index === number) : number ? null : region;

async function maskOf(region, number) {
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

const threshold = () => Number($("threshold").value) / 100;

let drawn = 0;
async function drawRegions() {
  const mine = ++drawn;
  const shown = [];
  for (const region of turn?.regions.filter((one) => one.isOn) ?? []) {
    shown.push({ id: region.id, colour: region.colour, mask: await maskOf(region, frameNumber), box: region.box });
  }
  if (mine !== drawn || !file) return;
  $("canvas").regions = shown.filter((region) => region.mask || (region.box && !turn.regions[region.id].frames));
}

function light(id) {
  if (lit === id) return;
  lit = id;
  $("canvas").lit = id;
  for (const element of document.querySelectorAll("[data-region]")) {
    const isOfTurn = element.closest("#objects") || element.closest(".turn") === turn?.element;
    element.classList.toggle("lit", Boolean(isOfTurn) && Number(element.dataset.region) === id && id !== null);
  }
}

function follows(element, owner, id) {
  const on = () => { choose(owner); light(id); };
  element.dataset.region = id;
  element.addEventListener("pointerenter", on);
  element.addEventListener("focusin", on);
  element.addEventListener("pointerleave", () => light(null));
  element.addEventListener("focusout", () => light(null));
  return element;
}

// Show the regions of one answer; those of another were shown before.
function choose(owner) {
  if (turn === owner) return;
  turn?.element.classList.remove("chosen");
  turn = owner;
  turn?.element.classList.add("chosen");
  layOut();
  drawRegions();
}

function listObjects() {
  $("objects").replaceChildren(...(turn?.regions ?? []).map((region) => {
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
    return follows(make("li", {}, box, colour, name, score, ask), turn, region.id);
  }));
}

/* ---- marks: parts of the image that a question is about ---- */

const canMark = () => mode() === "ask" && file?.media.kind === "image";

function mark(part) {
  marks.push(part);
  layOut();
}

async function markRegion(id) {
  const mask = canMark() && id !== null && await maskOf(turn.regions[id], frameNumber);
  if (mask) mark({ mask });
}

function chooseTool(name) {
  $("canvas").tool = canMark() ? name : null;
  for (const tool of ["box", "brush"]) $(tool).setAttribute("aria-pressed", tool === name && canMark());
}

function listMarks() {
  $("marking").hidden = !canMark();
  if (!canMark()) chooseTool(null);
  $("canvas").marks = canMark() ? marks : [];
  $("mark_note").hidden = !marks.length;
  $("marks").replaceChildren(...marks.map((part, number) => {
    const button = make("button", { type: "button", textContent: `region${number + 1} ✕` });
    button.setAttribute("aria-label", say("unmark", number + 1));
    button.addEventListener("click", () => { marks.splice(number, 1); layOut(); });
    return button;
  }));
}

// The marks as parts of a message.
function regionParts() {
  const { width, height } = file.media;
  return marks.map(({ box, mask }) => ({ type: "region", ...(box ? { box } : { rle: encodeRle(mask, width, height) }) }));
}

/* ---- the dialogue ---- */

function addTurn(role, text = "") {
  const element = make("div", { className: `turn ${role}`, textContent: text });
  $("log").append(element);
  element.scrollIntoView({ block: "nearest" });
  return element;
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

async function send(event) {
  event.preventDefault();
  const words = $("words").value.trim();
  if (!words || running) return;
  if (!file && mode() === "find") return tell("first_media");
  running = new AbortController();
  $("words").value = "";
  const asked = addTurn("user", words);
  const owner = { regions: [], element: addTurn("assistant") };
  const before = [...dialogue];
  layOut();
  tell("queued");
  const isDone = await guarded(() => (mode() === "find" ? find(words, owner) : ask(words, owner)), (error) => {
    if (error.name === "AbortError") return tell("stopped");
    owner.element.textContent = error.message || say("away");
    owner.element.classList.add("error");
    tell();
    return null;
  });
  if (!isDone) {
    // what was typed goes back, unless something new stands there
    dialogue = before;
    if (!$("words").value) $("words").value = words;
    if (!owner.element.textContent) owner.element.remove();
    if (!owner.element.isConnected) asked.remove();
  }
  running = null;
  keepDraft();
  layOut();
}

async function ask(words, owner) {
  const parts = canMark() ? regionParts() : [];
  if (parts.length) dialogue = []; // marks stand beside the image that they are on
  const isFirst = file && !dialogue.some((message) => Array.isArray(message.content));
  const content = isFirst ? [{ type: "file", file: { file_id: file.id } }, ...parts, { type: "text", text: words }] : words;
  dialogue.push({ role: "user", content });
  const body = { model: served, messages: dialogue, probabilities: isProbable() };
  let text = "";
  for await (const chunk of api.chat(body, running.signal)) {
    const { delta } = chunk.choices[0] ?? { delta: {} };
    text += delta.content ?? "";
    if (!delta.regions) owner.element.textContent = text;
    if (text && !delta.frame) tell("working");
    if (delta.regions_found) found(owner, delta.regions_found);
    if (delta.frame) addFrame(owner, delta.frame);
    if (delta.regions) finish(owner, delta.regions, text);
  }
  dialogue.push({ role: "assistant", content: text });
  marks = [];
}

async function find(words, owner) {
  const phrases = words.split(/[,，;；\n]+/).map((phrase) => phrase.trim()).filter(Boolean);
  if (file.media.kind === "image") {
    tell("working");
    const body = { image: { file_id: file.id }, phrases, probabilities: true };
    const answer = await api.segment(body, running.signal);
    return finish(owner, answer.regions, summary(answer.regions, answer.not_found));
  }
  for await (const event of api.follow(file.id, phrases, isProbable(), running.signal)) {
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
  owner.regions = regions.map((region) => keep({ ...region, frames: file?.media.kind === "video" ? [] : undefined }));
  choose(null);
  choose(owner);
}

function addFrame(owner, frame) {
  frame.regions.forEach((mask, id) => {
    const region = owner.regions[id];
    if (region.frames) region.frames.push({ index: frame.index, ...mask });
    else Object.assign(region, mask);
  });
  if (file.media.frames > 1) {
    tell("frame_of", frame.index + 1, file.media.frames);
    if (!playing) guarded(() => showFrame(frame.index));
  } else drawRegions();
}

function finish(owner, regions, text) {
  owner.regions = regions.map(keep);
  writeAnswer(owner, text);
  turn?.element.classList.remove("chosen");
  turn = null;
  $("threshold").value = 50;
  choose(owner);
  tell();
}

const isProbable = () => Boolean(file) && file.media.frames <= MOST_PROBABLE;

function stop() {
  running?.abort();
}

async function saveClip() {
  if (running) return;
  running = new AbortController();
  layOut();
  tell("writing");
  const failed = (error) => error.name === "AbortError" ? tell("stopped") : tell(error);
  const isDone = await guarded(async () => saving.save(await saving.mp4(file, turn.regions, maskOf, running.signal), `${file.name}.mp4`), failed);
  running = null;
  if (isDone) tell();
  layOut();
}

/* ---- the server ---- */

// Does something that asks the server; whether it went well. A server that is away, or wants a key, is told of.
async function guarded(work, failed = (error) => tell(error)) {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof api.ServerAway) wait();
    if (error instanceof api.Refused && error.status === 401) $("key_dialog").showModal();
    if (!(error instanceof api.ServerAway || error instanceof api.Refused || error.name === "AbortError")) console.error(error);
    failed(error);
    return false;
  }
}

async function wait() {
  if (!$("away").hidden) return;
  $("away").hidden = false;
  while (!(await api.isAlive())) await new Promise((done) => setTimeout(done, 1500));
  $("away").hidden = true;
  if (!served) begin();
}

async function begin() {
  await guarded(async () => {
    const model = await api.model();
    served = model.id;
    $("model").textContent = model.id;
    if (!model.can_segment) {
      document.querySelector('[name="mode"][value="find"]').disabled = true;
      document.querySelector('[name="mode"][value="ask"]').checked = true;
    }
    layOut();
    await showExamples();
  });
}

async function showExamples() {
  const shown = [];
  for (const { name, phrases } of await api.examples()) {
    const blob = await api.example(name);
    const bitmap = await createImageBitmap(blob);
    const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    const button = make("button", { type: "button", className: "example" }, canvas, make("span"));
    button.dataset.name = name;
    button.lastChild.dataset.text = `example_${name}`;
    button.addEventListener("click", () => open(blob, `${name}.png`, phrases));
    shown.push(button);
  }
  $("examples").replaceChildren(...shown);
  translate();
}

/* ---- the page ---- */

const mode = () => document.querySelector('[name="mode"]:checked').value;

function tell(name, ...values) {
  if (name instanceof Error) status = [null, name.message];
  else status = name ? [name, ...values] : [];
  $("status").textContent = status.length === 0 ? "" : status[0] ? say(...status) : status[1];
}

function layOut() {
  const regions = turn?.regions ?? [];
  $("empty").hidden = Boolean(file);
  $("canvas").hidden = $("another").hidden = !file;
  $("player").hidden = !file || file.media.frames < 2;
  $("tools").hidden = !regions.length;
  const isMovable = regions.some((region) => region.probabilities || region.frames?.some((frame) => frame.probabilities));
  $("threshold").disabled = !isMovable;
  $("threshold_note").hidden = isMovable || !regions.some((region) => region.rle || region.frames);
  $("threshold_value").value = threshold().toFixed(2);
  $("save_mp4").hidden = !file || file.media.frames < 2;
  $("stop").hidden = !running;
  $("send").disabled = Boolean(running);
  $("words").placeholder = say(`${mode()}_hint`);
  $("canvas").label = [file?.name, ...(regions.length ? [say("points", regions.map((region) => region.name).join(", "))] : [])].join(". ");
  if (file) $("frame_number").value = say("frame_of", frameNumber + 1, file.media.frames);
  const offered = !file ? [] : mode() === "ask" ? [say(marks.length ? "describe_region" : "describe")] : ideas.find.map((phrase) => phrase[current()]);
  $("ideas").replaceChildren(...offered.map((text) => {
    const button = make("button", { type: "button", textContent: text });
    button.addEventListener("click", () => { $("words").value = text; $("words").focus(); keepDraft(); });
    return button;
  }));
  listObjects();
  listMarks();
}

const keepDraft = () => sessionStorage.setItem("draft", $("words").value);

function bind() {
  $("file").addEventListener("change", () => { const [chosen] = $("file").files; if (chosen) open(chosen, chosen.name); $("file").value = ""; });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    $("stage").addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) open(event.dataTransfer.files[0], event.dataTransfer.files[0].name);
    });
  }
  $("another").addEventListener("click", close);
  $("play").addEventListener("click", play);
  $("frame").addEventListener("input", () => { pause(); guarded(() => showFrame(Number($("frame").value))); });
  $("threshold").addEventListener("input", () => { $("threshold_value").value = threshold().toFixed(2); drawRegions(); });
  $("canvas").addEventListener("point", (event) => light(event.detail));
  $("canvas").addEventListener("pick", (event) => markRegion(event.detail));
  $("canvas").addEventListener("mark", (event) => mark(event.detail));
  for (const tool of ["box", "brush"]) {
    $(tool).addEventListener("click", () => chooseTool($(tool).getAttribute("aria-pressed") === "true" ? null : tool));
  }
  $("save_png").addEventListener("click", async () => saving.save(await $("canvas").toBlob(), `${file.name}.png`));
  $("save_rle").addEventListener("click", async () => saving.save(await saving.rle(file, turn.regions, maskOf, threshold()), `${file.name}.rle.json`));
  $("save_coco").addEventListener("click", async () => saving.save(await saving.coco(file, turn.regions, maskOf), `${file.name}.coco.json`));
  $("save_mp4").addEventListener("click", saveClip);
  $("form").addEventListener("submit", send);
  $("stop").addEventListener("click", stop);
  $("words").addEventListener("input", keepDraft);
  $("words").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
  });
  document.querySelectorAll('[name="mode"]').forEach((one) => one.addEventListener("change", layOut));
  $("language").addEventListener("click", () => { switchLanguage(); showLanguage(); layOut(); tell(...status); });
  $("theme").addEventListener("click", () => {
    const isDark = getComputedStyle(document.documentElement).getPropertyValue("--is-dark").trim() === "1";
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  });
  $("key_form").addEventListener("submit", () => { api.setKey($("key").value.trim()); $("key").value = ""; begin(); });
}

function showLanguage() {
  $("language").textContent = say("other");
  $("language").lang = current() === "en" ? "zh-Hans" : "en";
}

const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
$("words").value = sessionStorage.getItem("draft") ?? "";
translate();
showLanguage();
bind();
layOut();
begin();
