// The page: how it begins, how it is laid out, and what its buttons do.

import * as api from "./api.js";
import "./canvas.js";
import { saveClip, send } from "./dialogue.js";
import { close, open, pause, play, showFrame } from "./medium.js";
import { chooseTool, drawRegions, light, listMarks, listObjects, mark, markRegion, maskOf, threshold } from "./regions.js";
import * as saving from "./saving.js";
import { guarded, onBack } from "./server.js";
import { $, keepDraft, make, mode, onChange, state, stop, tell } from "./state.js";
import { current, say, switchLanguage, translate } from "./words.js";

async function begin() {
  await guarded(async () => {
    const model = await api.model();
    state.served = model.id;
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

function layOut() {
  const regions = state.turn?.regions ?? [];
  $("empty").hidden = Boolean(state.file);
  $("canvas").hidden = $("another").hidden = !state.file;
  $("player").hidden = !state.file || state.file.media.frames < 2;
  $("tools").hidden = !regions.length;
  const isMovable = regions.some((region) => region.probabilities || region.frames?.some((frame) => frame.probabilities));
  $("threshold").disabled = !isMovable;
  $("threshold_note").hidden = isMovable || !regions.some((region) => region.rle || region.frames);
  $("threshold_value").value = threshold().toFixed(2);
  $("save_mp4").hidden = !state.file || state.file.media.frames < 2;
  $("stop").hidden = !state.running;
  $("send").disabled = Boolean(state.running);
  $("words").placeholder = say(`${mode()}_hint`);
  $("canvas").label = [state.file?.name, ...(regions.length ? [say("points", regions.map((region) => region.name).join(", "))] : [])].join(". ");
  if (state.file) $("frame_number").value = say("frame_of", state.frameNumber + 1, state.file.media.frames);
  const offered = !state.file ? [] : mode() === "ask" ? [say(state.marks.length ? "describe_region" : "describe")] : state.ideas.map((phrase) => phrase[current()]);
  $("ideas").replaceChildren(...offered.map((text) => {
    const button = make("button", { type: "button", textContent: text });
    button.addEventListener("click", () => { $("words").value = text; $("words").focus(); keepDraft(); });
    return button;
  }));
  listObjects();
  listMarks();
}

async function openFirst(files) {
  const isOpen = await open(files[0], files[0].name);
  if (isOpen && files.length > 1) tell("first_of", files[0].name, files.length);
}

function bind() {
  $("file").addEventListener("change", () => { const [chosen] = $("file").files; if (chosen) open(chosen, chosen.name); $("file").value = ""; });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    window.addEventListener(kind, (event) => {
      const { types, files } = event.dataTransfer;
      const isFile = types.includes("Files");
      if (!isFile && event.target.closest?.("input, textarea")) return; // words may be dragged into a field
      event.preventDefault(); // else the browser leaves the page for what is dropped
      $("drop").classList.toggle("over", isFile && (kind === "dragover" || (kind === "dragleave" && event.relatedTarget)));
      if (kind === "drop" && files.length) openFirst([...files]);
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
  $("save_png").addEventListener("click", async () => saving.save(await $("canvas").toBlob(), `${state.file.name}.png`));
  $("save_rle").addEventListener("click", async () => saving.save(await saving.rle(state.file, state.turn.regions, maskOf, threshold()), `${state.file.name}.rle.json`));
  $("save_coco").addEventListener("click", async () => saving.save(await saving.coco(state.file, state.turn.regions, maskOf), `${state.file.name}.coco.json`));
  $("save_mp4").addEventListener("click", saveClip);
  $("form").addEventListener("submit", send);
  $("stop").addEventListener("click", stop);
  $("words").addEventListener("input", keepDraft);
  $("words").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
  });
  document.querySelectorAll('[name="mode"]').forEach((one) => one.addEventListener("change", layOut));
  $("language").addEventListener("click", () => { switchLanguage(); showLanguage(); layOut(); tell(...state.status); });
  $("theme").addEventListener("click", () => {
    const isDark = getComputedStyle(document.documentElement).getPropertyValue("--is-dark").trim() === "1";
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  });
  $("key_form").addEventListener("submit", (event) => {
    event.preventDefault();
    $("key_dialog").close(); // before what follows may open it again
    api.setKey($("key").value.trim());
    $("key").value = "";
    tell();
    begin();
  });
}

function showLanguage() {
  $("language").textContent = say("other");
  $("language").lang = current() === "en" ? "zh-Hans" : "en";
}

onChange(layOut);
onBack(begin);
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;
$("words").value = sessionStorage.getItem("draft") ?? "";
translate();
showLanguage();
bind();
layOut();
begin();
