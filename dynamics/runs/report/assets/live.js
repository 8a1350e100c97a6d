"use strict";
const told = document.getElementById("now");
async function again() {
  const main = document.getElementById("main");
  if (document.hidden || main.querySelector("form:focus-within")) return;
  try {
    const answer = await fetch(location.href);
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
    const image = fresh.querySelector("img");
    if (image && main.querySelector("img") && image.src === main.querySelector("img").src) image.replaceWith(main.querySelector("img"));
    else if (image) await image.decode();
    const left = main.querySelector(".plot")?.scrollLeft;
    main.replaceChildren(...fresh.childNodes);
    if (left) main.querySelector(".plot").scrollLeft = left;
    told.textContent = "live: read at " + new Date().toLocaleTimeString();
  } catch (error) {
    told.textContent = "the server has ended; what is shown is its last answer";
  }
}
setInterval(again, 5000);
