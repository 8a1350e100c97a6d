"use strict";
for (const figure of document.querySelectorAll("figure")) {
  const plot = figure.querySelector(".plot");
  const image = plot.querySelector("img");
  const status = figure.querySelector("[role=status]");
  let scale = 1, home = 0;
  const zoom = (factor, x = .5, y = .5) => {
    home = scale === 1 ? image.getBoundingClientRect().width : home;
    const next = Math.min(Math.max(scale * factor, 1), 40), by = next / scale;
    const left = (plot.scrollLeft + x * plot.clientWidth) * by, top = (plot.scrollTop + y * plot.clientHeight) * by;
    scale = next;
    image.style.width = scale === 1 ? "" : home * scale + "px";
    image.style.minWidth = scale === 1 ? "" : "0";
    plot.classList.toggle("zoomed", scale > 1);
    plot.scrollTo(left - x * plot.clientWidth, top - y * plot.clientHeight);
    status.textContent = Math.round(100 * scale) + " %";
  };
  const actions = { in: () => zoom(1.5), out: () => zoom(1 / 1.5), reset: () => zoom(1 / scale) };
  for (const button of figure.querySelectorAll("button")) {
    button.addEventListener("click", actions[button.dataset.action]);
  }
  const keys = { "+": actions.in, "=": actions.in, "-": actions.out, "0": actions.reset };
  plot.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  plot.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const seen = plot.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), (event.clientX - seen.left) / seen.width, (event.clientY - seen.top) / seen.height);
  }, { passive: false });
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
