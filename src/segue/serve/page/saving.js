// What is found, as files: pictures, clips, run lengths and COCO.

import * as api from "./api.js";
import { boxOf, encodeRle } from "./masks.js";

// Every mask that is shown: {region, number, mask}; `maskOf` says it of a region on a frame, or that there is none.
async function masks(regions, frames, maskOf) {
  const found = [];
  for (const region of regions.filter((one) => one.isOn)) {
    for (let number = 0; number < frames; number++) {
      const mask = await maskOf(region, number);
      if (mask) found.push({ region, number, mask });
    }
  }
  return found;
}

export async function rle({ media }, regions, maskOf, threshold) {
  const found = await masks(regions, media.frames, maskOf);
  const told = found.map(({ region, number, mask }) => ({ name: region.name, score: region.score, frame: number, rle: encodeRle(mask, media.width, media.height) }));
  return json({ media, threshold, regions: told });
}

// An image has the name of its file, the frames of a video those of files in a folder.
export async function coco({ media: { kind, width, height, frames }, name: folder, fileName }, regions, maskOf) {
  const found = (await masks(regions, frames, maskOf)).map((one) => ({ ...one, box: boxOf(one.mask, width) })).filter(({ box }) => box);
  const names = [...new Set(found.map(({ region }) => region.name))];
  const images = Array.from({ length: frames }, (_, number) => ({
    id: number + 1, file_name: kind === "image" ? fileName : `${folder}/${String(number).padStart(5, "0")}`, width, height,
  }));
  const annotations = found.map(({ region, number, mask, box }, place) => ({
    id: place + 1, image_id: number + 1, category_id: names.indexOf(region.name) + 1, bbox: box, iscrowd: 0, score: region.score,
    area: mask.reduce((sum, bit) => sum + bit, 0), segmentation: encodeRle(mask, width, height),
  }));
  const categories = names.map((name, place) => ({ id: place + 1, name }));
  return json({ images, annotations, categories });
}

// The clip with what is shown drawn on it; the server writes it.
export async function mp4({ id, media }, regions, maskOf, signal) {
  const found = await masks(regions, media.frames, maskOf);
  const drawn = regions.filter((one) => one.isOn).map((region) => ({
    name: region.name, colour: region.colour,
    frames: found.filter((one) => one.region === region).map(({ number, mask }) => ({ index: number, rle: encodeRle(mask, media.width, media.height) })),
  }));
  return api.overlay(id, drawn, signal);
}

export function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const json = (content) => new Blob([JSON.stringify(content)], { type: "application/json" });
