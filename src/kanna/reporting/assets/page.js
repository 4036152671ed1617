"use strict";
// What a mark of a drawing says, on hover, keyboard focus and tap; and everything unfolded on paper.
const tip = document.getElementById("tip");
let spoken = null;

function show(mark) {
  spoken = mark;
  tip.textContent = mark.dataset.tip;
  tip.hidden = false;
  const at = (mark.querySelector("circle:not(.hit), .ground") ?? mark).getBoundingClientRect();
  const room = document.documentElement.clientWidth;
  const left = Math.min(Math.max(8, at.left + at.width / 2 - tip.offsetWidth / 2), room - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above < 8 ? at.bottom + 8 : above}px`;
}

function hide() {
  spoken = null;
  tip.hidden = true;
}

for (const mark of document.querySelectorAll("[data-tip]")) {
  mark.addEventListener("pointerenter", () => show(mark));
  mark.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hide();
  });
  mark.addEventListener("click", () => show(mark));
  mark.addEventListener("focus", () => show(mark));
  mark.addEventListener("blur", hide);
}
// In a grid the Tab key stops once, and arrow keys go on to the next mark in their direction.
const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function neighbour(mark, [down, across]) {
  const row = Number(mark.dataset.row), column = Number(mark.dataset.column);
  const distance = (other) => {
    const rows = Number(other.dataset.row) - row, columns = Number(other.dataset.column) - column;
    const ahead = rows * down + columns * across;
    return ahead > 0 ? ahead + 4 * Math.abs(down ? columns : rows) : Infinity;
  };
  const marks = [...mark.closest("svg").querySelectorAll("[data-row]")];
  const nearest = marks.reduce((one, other) => (distance(other) < distance(one) ? other : one), mark);
  return distance(nearest) < Infinity ? nearest : null;
}

for (const mark of document.querySelectorAll("[data-row]")) {
  mark.addEventListener("keydown", (event) => {
    const next = steps[event.key] && neighbour(mark, steps[event.key]);
    if (!next) return;
    event.preventDefault();
    mark.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  });
}
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest("[data-tip]")) hide();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
});
// Focus by keyboard scrolls a mark into view: what it says goes with it.
for (const event of ["scroll", "resize"]) {
  window.addEventListener(event, () => spoken && show(spoken), { passive: true });
}
// Tables that are wider than the screen say so.
function mark_wide() {
  for (const box of document.querySelectorAll(".scroll")) {
    box.parentElement.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
  }
}

mark_wide();
window.addEventListener("resize", mark_wide);
window.addEventListener("beforeprint", () => {
  hide();
  for (const one of document.querySelectorAll("details")) one.open = true;
});
