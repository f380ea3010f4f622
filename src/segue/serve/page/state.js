// What the page knows, all of it in this tab, and how its parts tell one another of it.

import { say } from "./words.js";

export const state = {
  served: "", // the model
  file: null, // {id, media, name, fileName}; `name` is without its ending
  dialogue: [], // messages as the API takes them
  turn: null, // the answer whose regions are shown: {regions, element}
  frameNumber: 0,
  pictures: new Map(), // frame number -> ImageBitmap
  marks: [], // parts of the image that the next question is about: {box} or {mask}
  running: null, // AbortController
  playing: null, // an object of its own for each time that a clip is played
  lit: null,
  status: [], // what the status line says: a name of words.js and its values
  ideas: [], // what may be found in an example, in each language
};

export const $ = (id) => document.getElementById(id);
export const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

let layOut = () => {};
export const onChange = (work) => { layOut = work; };
export const changed = () => layOut();

export const mode = () => document.querySelector('[name="mode"]:checked').value;
export const keepDraft = () => sessionStorage.setItem("draft", $("words").value);

export function tell(name, ...values) {
  if (name instanceof Error) state.status = [null, name.message];
  else state.status = name ? [name, ...values] : [];
  $("status").textContent = state.status.length === 0 ? "" : state.status[0] ? say(...state.status) : state.status[1];
}

export function stop() {
  state.running?.abort();
}
