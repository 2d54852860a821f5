"use strict";
// The interactive parts of the page: details of a cell, a filter by source, and the cells of a download.
(() => {
  const map = document.getElementById("map");
  if (!map) return;
  const frame = document.getElementById("frame");
  const mark = document.getElementById("mark");
  const detail = document.getElementById("detail");
  const rows = [...document.querySelectorAll("#sources tbody tr")];
  const names = new Map(rows.map(row => [Number(row.dataset.class), row.querySelector("bdi").textContent]));
  const cells = map.dataset.cells.split(",");
  const [columns, width, height, cellBytes, bytes] =
    ["columns", "width", "height", "cellBytes", "bytes"].map(name => Number(map.dataset[name]));
  const hint = "Point at a cell, or focus the map and use the arrow keys, for its details. " +
    "Click a source to see it alone.";
  let at = 0;

  const size = n => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let i = 0;
    for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
    return `${Number(n.toFixed(3))} ${units[i]}`;
  };

  const mix = cell => [...cell.matchAll(/([a-z])(\d*)/g)].map(([, letter, percent]) => {
    const name = names.get(letter.charCodeAt(0) - 97);
    if (percent === "") return name;
    return `${percent === "0" ? "less than 1" : percent} % ${name}`;
  }).join(", ");

  // outline marks the cells from first to last, with one rectangle for each row.
  const outline = (first, last) => {
    let d = "";
    for (let row = Math.floor(first / columns); row * columns <= last; row++) {
      const from = Math.max(first, row * columns), to = Math.min(last, row * columns + columns - 1);
      const length = (to - from + 1) * width;
      d += `M${(from % columns) * width} ${row * height}h${length}v${height}h-${length}z`;
    }
    mark.setAttribute("d", d);
  };

  const select = i => {
    at = i;
    const start = i * cellBytes;
    outline(i, i);
    detail.textContent = `${size(start)} to ${size(Math.min(start + cellBytes, bytes))}: ${mix(cells[i])}`;
  };

  const clear = () => {
    mark.removeAttribute("d");
    detail.textContent = hint;
  };

  map.addEventListener("pointermove", event => {
    const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
    const x = Math.floor(p.x / width), i = Math.floor(p.y / height) * columns + x;
    if (x < 0 || x >= columns || i < 0 || i >= cells.length) clear();
    else if (i !== at || !mark.hasAttribute("d")) select(i);
  });
  map.addEventListener("pointerleave", clear);

  const steps = {
    ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity,
  };
  frame.addEventListener("keydown", event => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    select(Math.min(Math.max(at + steps[event.key], 0), cells.length - 1));
  });
  frame.addEventListener("focus", () => select(at));
  frame.addEventListener("blur", clear);
  frame.setAttribute("role", "application");

  // filter shows the cells of one source only, or of all sources if the button was pressed before.
  const filter = pressed => {
    const on = pressed.getAttribute("aria-pressed") !== "true";
    for (const b of document.querySelectorAll("#sources button")) {
      b.setAttribute("aria-pressed", String(on && b === pressed));
    }
    const keep = "k" + pressed.dataset.class;
    for (const k of document.querySelectorAll(".k")) k.classList.toggle("dim", on && !k.classList.contains(keep));
  };
  for (const row of rows) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.class = row.dataset.class;
    button.title = "Show only this source";
    button.setAttribute("aria-pressed", "false");
    const name = row.querySelector("bdi");
    name.replaceWith(button);
    button.append(name);
    button.addEventListener("click", () => filter(button));
  }

  for (const row of document.querySelectorAll("#downloads tbody tr")) {
    const show = () => outline(Number(row.dataset.first), Number(row.dataset.last));
    row.tabIndex = 0;
    row.addEventListener("pointerenter", show);
    row.addEventListener("focus", show);
    row.addEventListener("pointerleave", clear);
    row.addEventListener("blur", clear);
  }
  clear();
})();
