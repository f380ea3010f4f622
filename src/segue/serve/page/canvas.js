// <segue-canvas>: a picture with regions on it. It says by the event "point" which region the pointer is over.

class SegueCanvas extends HTMLElement {
  #canvas = document.createElement("canvas");
  #picture = null;
  #layers = [];
  #lit = null;

  connectedCallback() {
    if (this.#canvas.isConnected) return;
    this.#canvas.setAttribute("role", "img");
    this.append(this.#canvas);
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerdown", (event) => this.#point(event));
    this.#canvas.addEventListener("pointerleave", () => this.#tell(null));
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

  #point(event) {
    const shown = this.#canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - shown.left) / shown.width) * this.#canvas.width);
    const y = Math.floor(((event.clientY - shown.top) / shown.height) * this.#canvas.height);
    const isOver = ({ mask, box }) => mask ? mask[y * this.#canvas.width + x]
      : box && x >= box[0] && x < box[2] && y >= box[1] && y < box[3];
    this.#tell(this.#layers.findLast(isOver)?.id ?? null);
  }

  #tell(id) {
    this.dispatchEvent(new CustomEvent("point", { detail: id }));
  }
}

customElements.define("segue-canvas", SegueCanvas);
