"use strict";
for (const figure of document.querySelectorAll("figure")) {
  const plot = figure.querySelector(".plot");
  const svg = plot.querySelector("svg");
  const status = figure.querySelector("[role=status]");
  const home = svg.getAttribute("viewBox").split(/[\s,]+/).map(Number);
  let [x, y, w, h] = home;
  const show = () => {
    w = Math.min(w, home[2]);
    h = w * home[3] / home[2];
    x = Math.min(Math.max(x, home[0]), home[0] + home[2] - w);
    y = Math.min(Math.max(y, home[1]), home[1] + home[3] - h);
    svg.setAttribute("viewBox", [x, y, w, h].join(" "));
    plot.classList.toggle("zoomed", w < home[2]);
    status.textContent = Math.round(100 * home[2] / w) + " %";
  };
  const part = (value) => Math.min(Math.max(value, 0), 1);
  const middle = () => {
    const box = svg.getBoundingClientRect(), seen = plot.getBoundingClientRect();
    return [part((seen.left + seen.width / 2 - box.left) / box.width), part((seen.top + seen.height / 2 - box.top) / box.height)];
  };
  const zoom = (factor, fx, fy) => {
    const next = Math.min(Math.max(w / factor, home[2] / 40), home[2]);
    x += fx * (w - next);
    y += fy * (h - h * next / w);
    w = next;
    show();
  };
  const move = (dx, dy) => { x += dx * w; y += dy * h; show(); };
  const reset = () => { [x, y, w, h] = home; show(); };
  const actions = { in: () => zoom(1.5, ...middle()), out: () => zoom(1 / 1.5, ...middle()), reset };
  for (const button of figure.querySelectorAll("button")) {
    button.addEventListener("click", actions[button.dataset.action]);
  }
  const keys = {
    "+": actions.in, "=": actions.in, "-": actions.out, "0": reset,
    ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, -0.1), ArrowDown: () => move(0, 0.1),
  };
  plot.addEventListener("keydown", (event) => {
    const arrow = event.key.startsWith("Arrow");
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey || (arrow && w === home[2])) return;
    event.preventDefault();
    keys[event.key]();
  });
  plot.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && w === home[2]) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  plot.addEventListener("dblclick", (event) => {
    const box = svg.getBoundingClientRect();
    zoom(2, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  plot.addEventListener("pointerdown", (event) => {
    if (w === home[2] || event.button !== 0) return;
    plot.setPointerCapture(event.pointerId);
    let last = [event.clientX, event.clientY];
    const drag = (moved) => {
      const box = svg.getBoundingClientRect();
      move((last[0] - moved.clientX) / box.width, (last[1] - moved.clientY) / box.height);
      last = [moved.clientX, moved.clientY];
    };
    plot.addEventListener("pointermove", drag);
    plot.addEventListener("pointerup", () => plot.removeEventListener("pointermove", drag), { once: true });
    plot.addEventListener("pointercancel", () => plot.removeEventListener("pointermove", drag), { once: true });
  });
}
const copy = document.querySelector("[data-copy]");
if (copy) {
  copy.hidden = false;
  copy.addEventListener("click", () => {
    const source = document.getElementById(copy.dataset.copy);
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    const done = () => { copy.textContent = "Copied"; };
    const selected = () => { copy.textContent = "Selected: press Ctrl+C"; };
    if (navigator.clipboard) navigator.clipboard.writeText(source.textContent).then(done, selected);
    else selected();
  });
}
