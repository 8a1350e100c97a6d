"use strict";
const body = document.querySelector(".runs tbody");
const rows = Array.from(body.rows);
const words = document.getElementById("words");
const wanted = document.getElementById("verdict");
const count = document.getElementById("count");
const filter = () => {
  const terms = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let visible = 0;
  for (const row of rows) {
    const fits = (!wanted.value || row.dataset.verdict === wanted.value)
      && terms.every((term) => row.dataset.words.includes(term));
    row.hidden = !fits;
    visible += fits;
  }
  count.textContent = visible + " of " + rows.length + " runs";
};
words.addEventListener("input", filter);
wanted.addEventListener("change", filter);
for (const head of document.querySelectorAll(".runs th.sortable")) {
  head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of document.querySelectorAll(".runs th.sortable")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = head.dataset.key;
    const number = head.dataset.kind === "number";
    const compare = (a, b) => number ? Number(a.dataset[key]) - Number(b.dataset[key])
      : a.dataset[key] < b.dataset[key] ? -1 : a.dataset[key] > b.dataset[key] ? 1 : 0;
    rows.sort((a, b) => down ? compare(b, a) : compare(a, b));
    body.append(...rows);
  });
}
filter();
