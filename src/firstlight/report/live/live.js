"use strict";

// Draws each state that the server sends. Names come from the node's containers: they are text,
// never markup.
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const tip = byId("tip");

// Three digits, as units.py writes them.
function duration(ns) {
  const [scale, unit] = ns >= 1e9 ? [1e9, "s"] : ns >= 1e6 ? [1e6, "ms"] : ns >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  const value = ns / scale;
  return `${value.toFixed(value >= 1 && value < 10 ? 2 : value >= 10 && value < 100 ? 1 : 0)} ${unit}`;
}

function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false });
}

function element(name, attributes, text) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function shape(name, attributes, words) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (words) made.dataset.tip = words;
  return made;
}

function legend(place, names, colours) {
  place.replaceChildren(...names.map((name) => {
    const item = element("li");
    const swatch = shape("svg", { class: "swatch", viewBox: "0 0 1 1" });
    swatch.append(shape("rect", { width: 1, height: 1, fill: colours[name] || "#8a8a8a" }));
    item.append(swatch, name);
    return item;
  }));
}

function waterfall(start, longest, colours) {
  const bar = shape("svg", { class: "bar", viewBox: "0 0 1000 16", preserveAspectRatio: "none" });
  for (const part of start.stretches) {
    bar.append(shape("rect", {
      x: (1000 * part.at) / longest, y: 0, height: 16,
      width: Math.max((1000 * part.length) / longest, 0.5), fill: colours[part.phase],
    }, `${part.phase}: ${duration(part.length)}, ${part.cause}`));
  }
  if (!start.stretches.length && start.latency) {
    bar.append(shape("rect", { x: 0, y: 5, height: 6, width: (1000 * start.latency) / longest,
                               fill: "#a6a6a6" }, "not traced"));
  }
  return bar;
}

function rows(place, starts, colours) {
  if (!starts.length) {
    place.replaceChildren(element("p", { class: "empty" }, "None yet."));
    return;
  }
  const longest = Math.max(1, ...starts.map((start) => start.latency || 0));
  place.replaceChildren(...starts.map((start) => {
    const row = element("div", { class: "start", "data-id": start.id });
    const name = element("div", { class: "name", title: `${start.name} (${start.id})` }, start.name);
    name.append(element("span", {}, `  ${start.labels.runtime}`));
    row.append(
      element("div", { class: "time" }, new Date(start.time).toLocaleTimeString([], { hour12: false })),
      element("div", { class: "total" }, start.latency === null ? "failed" : duration(start.latency)),
      name,
      start.latency === null
        ? element("div", { class: "error" }, start.error || "")
        : waterfall(start, longest, colours),
    );
    return row;
  }));
}

function hour(place, key, minutes, now, colours) {
  const width = place.clientWidth || 400, height = 190, left = 58, below = 20;
  const first = Math.floor(now / 60) * 60 - 59 * 60;
  const drawn = minutes.filter((minute) => minute.at >= first);
  const mean = (minute) => Object.values(minute[key]).reduce((sum, ns) => sum + ns, 0) / minute.starts;
  const highest = Math.max(0, ...drawn.map(mean));
  const step = (width - left) / 60, tall = height - below - 8;
  place.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const y = 8 + tall * (1 - share);
    parts.push(shape("line", { class: "axis", x1: left, x2: width, y1: y, y2: y }));
    const label = shape("text", { x: left - 6, y: y + 4, "text-anchor": "end" });
    label.textContent = highest && share ? duration(highest * share) : share ? "" : "0";
    parts.push(label);
  }
  const total = (name) => drawn.reduce((sum, minute) => sum + (minute[key][name] || 0), 0);
  const names = [...new Set(drawn.flatMap((minute) => Object.keys(minute[key])))].filter(total);
  names.sort((a, b) => (a === "other") - (b === "other") || total(b) - total(a));
  for (const minute of drawn) {
    let y = 8 + tall;
    for (const name of names) {
      const ns = (minute[key][name] || 0) / minute.starts, size = (tall * ns) / highest;
      if (!size) continue;
      y -= size;
      parts.push(shape("rect", {
        x: left + ((minute.at - first) / 60) * step, y, width: Math.max(step - 1, 1), height: size,
        fill: colours[name] || "#8a8a8a",
      }, `${clock(minute.at)} ${name}: ${duration(ns)}, ${minute.starts} traced`));
    }
  }
  for (const minutesAgo of [60, 30, 0]) {
    const label = shape("text", { x: left + ((60 - minutesAgo) / 60) * (width - left), y: height - 4,
                                  "text-anchor": minutesAgo === 60 ? "start" : minutesAgo ? "middle" : "end" });
    label.textContent = clock(now - minutesAgo * 60);
    parts.push(label);
  }
  place.replaceChildren(...parts);
  legend(byId(`${place.id}-legend`), names, colours);
}

function answer(state) {
  if (!state.starts) return "Waiting for the first start.";
  const starts = state.starts === 1 ? "1 start" : `${state.starts} starts`;
  const typical = state.median === null ? "none became ready"
    : `median ${duration(state.median)}, 95 % within ${duration(state.p95)}`;
  const failed = state.failed ? `, ${state.failed} failed` : "";
  const lost = state.lost ? `; ${state.lost} events lost` : "";
  return `${starts} in the last hour: ${typical}${failed}${lost}.`;
}

let shown = null;
function draw() {
  const state = shown;
  if (!state) return;
  byId("host").textContent = `on ${state.host}`;
  byId("answer").textContent = answer(state);
  const starts = state.latest.concat(state.slowest);
  const phases = new Set(starts.flatMap((start) => start.stretches.map((part) => part.phase)));
  legend(byId("legend"), [...phases], state.colours);
  byId("untraced").hidden = phases.size > 0 || starts.every((start) => start.latency === null);
  rows(byId("latest"), state.latest, state.colours);
  rows(byId("slowest"), state.slowest, state.colours);
  for (const key of ["phases", "causes"]) hour(byId(key), key, state.minutes, state.now, state.colours);
  document.body.dataset.drawn = String(state.starts);
}

document.addEventListener("pointermove", (event) => {
  const words = event.target.dataset && event.target.dataset.tip;
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  tip.style.left = `${Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${event.clientY + 16}px`;
});
window.addEventListener("resize", draw);

const events = new EventSource("events");
const status = (on, words) => {
  byId("status").textContent = words;
  byId("status").className = on ? "on" : "off";
};
events.onopen = () => status(true, "live");
events.onerror = () => status(false, "not connected");
events.onmessage = (message) => {
  shown = JSON.parse(message.data);
  draw();
};
