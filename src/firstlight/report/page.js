"use strict";

// Draws each chart when its place has a width, and again when that or the colour scheme changes.
const specifications = JSON.parse(document.getElementById("charts").textContent);
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

const FACET_GAP = 20;

// A facet cannot take its container's width by itself: give it, cell by cell, what there is.
// `labels` is what the axis labels take beyond the room that the specification foresees.
function fitted(specification, width, labels) {
  const { usermeta: cells, ...chart } = specification;
  const most = Math.floor((width - cells.left + FACET_GAP) / (cells.least + FACET_GAP));
  const rows = Math.ceil(cells.cells / Math.max(1, most));
  const columns = Math.ceil(cells.cells / rows);
  const room = width - cells.left - labels - 8 - (columns - 1) * FACET_GAP;
  const cell = Math.min(Math.floor(room / columns), 460);
  if (!chart.spec) return { ...chart, width: room };
  return { ...chart, columns, spacing: FACET_GAP, spec: { ...chart.spec, width: cell } };
}

function embedded(place, specification, scheme) {
  return vegaEmbed(place, specification, {
    actions: false,
    ast: true,
    config: themes[scheme],
    renderer: "svg",
    tooltip: { theme: scheme },
  });
}

async function draw(place) {
  const width = Math.floor(place.clientWidth);
  if (width === 0) return;
  const scheme = dark.matches ? "dark" : "light";
  const drawing = `${width} ${scheme}`;
  if (place.dataset.drawing === drawing) return;
  place.dataset.drawing = drawing;
  delete place.dataset.drawn;
  const specification = specifications[place.dataset.chart];
  try {
    await embedded(place, fitted(specification, width, 0), scheme);
    const beyond = Math.ceil(place.querySelector("svg").getBoundingClientRect().width - width);
    if (beyond > 0) await embedded(place, fitted(specification, width, beyond + 4), scheme);
    place.dataset.drawn = drawing;
  } catch (error) {
    place.textContent = `This chart could not be drawn: ${error.message}`;
    console.error(error);
  }
}

const places = document.querySelectorAll("[data-chart]");
const sizes = new ResizeObserver((changes) => changes.forEach(({ target }) => draw(target)));
places.forEach((place) => sizes.observe(place));
dark.addEventListener("change", () => places.forEach(draw));
