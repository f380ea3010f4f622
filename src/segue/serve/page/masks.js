// Masks as the API sends them: COCO run lengths down the columns, and probabilities as 8-bit PNG.

// A mask as bytes 0 and 1, row by row.
export function decodeRle({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  const runs = readRuns(counts);
  let place = 0;
  runs.forEach((run, number) => {
    if (number % 2) for (let at = place; at < place + run; at++) mask[(at % height) * width + Math.floor(at / height)] = 1;
    place += run;
  });
  return mask;
}

function readRuns(counts) {
  const runs = [];
  let value = 0, bits = 0;
  for (const letter of counts) {
    const code = letter.charCodeAt(0) - 48;
    value += (code & 31) * 2 ** bits;
    bits += 5;
    if (code & 32) continue;
    if (code & 16) value -= 2 ** bits;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    value = bits = 0;
  }
  return runs;
}

// The run lengths of bytes 0 and 1, row by row.
export function encodeRle(mask, width, height) {
  const runs = [];
  let last = 0, run = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const bit = mask[y * width + x];
      if (bit !== last) { runs.push(run); run = 0; last = bit; }
      run++;
    }
  }
  runs.push(run);
  let counts = "";
  runs.forEach((one, number) => {
    let value = number > 2 ? one - runs[number - 2] : one;
    for (let more = true; more;) {
      let code = value & 31;
      value >>= 5;
      more = code & 16 ? value !== -1 : value !== 0;
      if (more) code |= 32;
      counts += String.fromCharCode(code + 48);
    }
  });
  return { size: [height, width], counts };
}

// The probability of each pixel, 0 to 255, from a PNG as a data URL.
export async function decodeProbabilities(url) {
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), options);
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data.filter((_, place) => place % 4 === 0);
}

// The box of a mask as COCO has it: x, y, width, height; null if it is empty.
export function boxOf(mask, width) {
  let left = Infinity, top = Infinity, right = -1, bottom = -1;
  for (let place = 0; place < mask.length; place++) {
    if (!mask[place]) continue;
    const x = place % width, y = (place - x) / width;
    left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
  }
  return right < 0 ? null : [left, top, right - left + 1, bottom - top + 1];
}

// The pixel in the middle of a mask, if one goes through it as one reads: x, y; the corner for an empty one.
export function middleOf(mask, width) {
  let half = mask.reduce((sum, bit) => sum + bit, 0) / 2;
  const place = Math.max(0, mask.findIndex((bit) => bit && --half <= 0));
  return [place % width, Math.floor(place / width)];
}
