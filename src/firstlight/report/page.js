"use strict";

// Draws each chart when its place has a width, and again when that or the colour scheme changes.
const specifications = JSON.parse(document.getElementById("charts").textContent);
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

const FACET_GAP = 20;

// A facet cannot take its container's width by itself: give it, cell by cell, what there is.
function fitted(specification, width) {
  const { usermeta: cells, ...chart } = specification;
  const most = Math.floor((width - cells.left + FACET_GAP) / (cells.least + FACET_GAP));
  const columns = Math.max(1, Math.min(cells.cells, most));
  const room = width - cells.left - 8 - (columns - 1) * FACET_GAP;
  const cell = Math.min(Math.floor(room / columns), 460);
  if (!chart.spec) return { ...chart, width: room };
  return { ...chart, columns, spacing: FACET_GAP, spec: { ...chart.spec, width: cell } };
}

async function draw(place) {
  const width = Math.floor(place.clientWidth);
  if (width === 0) return;
  const scheme = dark.matches ? "dark" : "light";
  const drawn = `${width} ${scheme}`;
  if (place.dataset.drawn === drawn) return;
  place.dataset.drawn = drawn;
  try {
    await vegaEmbed(place, fitted(specifications[place.dataset.chart], width), {
      actions: false,
      ast: true,
      config: themes[scheme],
      renderer: "svg",
      tooltip: { theme: scheme },
    });
  } catch (error) {
    place.textContent = `This chart could not be drawn: ${error.message}`;
    console.error(error);
  }
}

const places = document.querySelectorAll("[data-chart]");
const sizes = new ResizeObserver((changes) => changes.forEach(({ target }) => draw(target)));
places.forEach((place) => sizes.observe(place));
dark.addEventListener("change", () => places.forEach(draw));
