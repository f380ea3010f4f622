// <segue-canvas>: a picture with regions on it. It says by the event "point" which region the pointer is over, by "pick"
// which was clicked, and by "mark" what was drawn with a tool: {box: [x0, y0, x1, y1]} or {mask}.

import { middleOf } from "./masks.js";

class SegueCanvas extends HTMLElement {
  #canvas = document.createElement("canvas");
  #picture = null;
  #layers = [];
  #lit = null;
  #tool = null;
  #marks = [];
  #stroke = null; // what is being drawn: where it began, and a mask of the brush

  connectedCallback() {
    if (this.#canvas.isConnected) return;
    this.#canvas.setAttribute("role", "img");
    this.append(this.#canvas);
    this.#canvas.addEventListener("pointermove", (event) => this.#stroke ? this.#drag(event) : this.#point(event));
    this.#canvas.addEventListener("pointerdown", (event) => this.#tool ? this.#begin(event) : this.#point(event));
    this.#canvas.addEventListener("pointerup", (event) => this.#end(event));
    this.#canvas.addEventListener("pointercancel", () => { this.#stroke = null; this.draw(); });
    this.#canvas.addEventListener("pointerleave", () => this.#tell("point", null));
    this.#canvas.addEventListener("click", (event) => { if (!this.#tool) this.#tell("pick", this.#over(event)); });
  }

  set label(text) { this.#canvas.setAttribute("aria-label", text); }

  // What is behind the regions, an ImageBitmap.
  set picture(bitmap) {
    this.#picture = bitmap;
    [this.#canvas.width, this.#canvas.height] = [bitmap.width, bitmap.height];
    this.style.setProperty("--ratio", bitmap.width / bitmap.height);
    this.style.setProperty("--wide", `${2 * bitmap.width}px`);
    this.draw();
  }

  // Regions as {id, colour, mask} with bytes 0 and 1 row by row, those in front last; {id, colour, box} without a mask.
  set regions(regions) {
    this.#layers = regions.map((region) => ({ ...region, image: region.mask && this.#tinted(region) }));
    this.draw();
  }

  // "box", "brush", or null.
  set tool(name) {
    this.#tool = name;
    this.toggleAttribute("tool", Boolean(name));
  }

  // Parts that a question is about, as "mark" tells them; drawn with their numbers from 1.
  set marks(marks) {
    this.#marks = marks.map((mark) => ({ ...mark, image: mark.mask && this.#tinted({ mask: mark.mask, colour: "#ffffff" }) }));
    this.draw();
  }

  // The region that is shown before all others, or null.
  set lit(id) {
    if (this.#lit === id) return;
    this.#lit = id;
    this.draw();
  }

  draw() {
    if (!this.#picture) return;
    const context = this.#canvas.getContext("2d");
    context.globalAlpha = 1;
    context.drawImage(this.#picture, 0, 0);
    const isAnyLit = this.#layers.some((layer) => layer.id === this.#lit);
    for (const layer of this.#layers) {
      context.globalAlpha = isAnyLit && layer.id !== this.#lit ? 0.25 : 1;
      if (layer.image) context.drawImage(layer.image, 0, 0);
      else if (layer.box) this.#outline(context, layer);
    }
    context.globalAlpha = 1;
    this.#marks.forEach((mark, number) => this.#number(context, mark, `${number + 1}`));
    if (this.#stroke) this.#number(context, this.#shape(), "");
  }

  #number(context, { box, mask, image }, text) {
    if (image) context.drawImage(image, 0, 0);
    const size = Math.max(12, this.#canvas.width / 40);
    if (box) {
      context.lineWidth = Math.max(1, this.#canvas.width / 400);
      for (const [colour, dash] of [["#000000", []], ["#ffffff", [size / 2, size / 2]]]) {
        context.setLineDash(dash);
        context.strokeStyle = colour;
        context.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
      }
      context.setLineDash([]);
    }
    const [x, y] = box ? [box[0] + size / 4, box[1] + size] : middleOf(mask, this.#canvas.width);
    context.font = `bold ${size}px system-ui, sans-serif`;
    context.lineWidth = size / 5;
    context.strokeStyle = "#000000";
    context.fillStyle = "#ffffff";
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  }

  #begin(event) {
    event.preventDefault();
    this.#canvas.setPointerCapture(event.pointerId);
    const { width, height } = this.#canvas;
    this.#stroke = { from: this.#at(event), to: this.#at(event), mask: this.#tool === "brush" ? new Uint8Array(width * height) : null };
    this.#drag(event);
  }

  #drag(event) {
    const { to, mask } = this.#stroke;
    this.#stroke.to = this.#at(event);
    if (mask) this.#brush(mask, to, this.#stroke.to);
    this.draw();
  }

  #end(event) {
    if (!this.#stroke) return;
    this.#drag(event);
    const { box, mask } = this.#shape();
    this.#stroke = null;
    this.draw();
    if (mask || (box[2] - box[0] > 1 && box[3] - box[1] > 1)) this.#tell("mark", mask ? { mask } : { box });
  }

  #shape() {
    const { from, to, mask } = this.#stroke;
    if (mask) return { mask, image: this.#tinted({ mask, colour: "#ffffff" }) };
    const corners = [0, 1].map((axis) => [from[axis], to[axis]].sort((one, other) => one - other));
    return { box: [corners[0][0], corners[1][0], corners[0][1] + 1, corners[1][1] + 1] };
  }

  // Discs along a line.
  #brush(mask, [x0, y0], [x1, y1]) {
    const { width, height } = this.#canvas;
    const reach = Math.max(2, Math.round(Math.max(width, height) / 50));
    const steps = Math.max(1, Math.abs(x1 - x0), Math.abs(y1 - y0));
    for (let step = 0; step <= steps; step++) {
      const [x, y] = [Math.round(x0 + ((x1 - x0) * step) / steps), Math.round(y0 + ((y1 - y0) * step) / steps)];
      for (let down = Math.max(0, y - reach); down <= Math.min(height - 1, y + reach); down++) {
        const half = Math.floor(Math.sqrt(reach ** 2 - (down - y) ** 2));
        mask.fill(1, down * width + Math.max(0, x - half), down * width + Math.min(width, x + half + 1));
      }
    }
  }

  toBlob() { return new Promise((done) => this.#canvas.toBlob(done, "image/png")); }

  #outline(context, { box: [left, top, right, bottom], colour }) {
    context.strokeStyle = colour;
    context.lineWidth = Math.max(2, this.#canvas.width / 200);
    context.strokeRect(left, top, right - left, bottom - top);
  }

  #tinted({ mask, colour }) {
    const { width, height } = this.#canvas;
    const [red, green, blue] = [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
    const image = new ImageData(width, height);
    const reach = Math.max(1, Math.round(Math.min(width, height) / 300));
    for (let place = 0; place < mask.length; place++) {
      if (!mask[place]) continue;
      const x = place % width;
      const isEdge = x < reach || x >= width - reach || !mask[place - reach] || !mask[place + reach]
        || !mask[place - reach * width] || !mask[place + reach * width];
      image.data.set([red, green, blue, isEdge ? 255 : 115], 4 * place);
    }
    const layer = new OffscreenCanvas(width, height);
    layer.getContext("2d").putImageData(image, 0, 0);
    return layer;
  }

  // The pixel under the pointer, inside the picture.
  #at(event) {
    const shown = this.#canvas.getBoundingClientRect();
    const inside = (share, side) => Math.min(side - 1, Math.max(0, Math.floor(share * side)));
    return [
      inside((event.clientX - shown.left) / shown.width, this.#canvas.width),
      inside((event.clientY - shown.top) / shown.height, this.#canvas.height),
    ];
  }

  #point(event) { this.#tell("point", this.#over(event)); }

  #over(event) {
    const [x, y] = this.#at(event);
    const isOver = ({ mask, box }) => mask ? mask[y * this.#canvas.width + x]
      : box && x >= box[0] && x < box[2] && y >= box[1] && y < box[3];
    return this.#layers.findLast(isOver)?.id ?? null;
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

customElements.define("segue-canvas", SegueCanvas);
