// The reference works without this; with it, examples carry this gateway's address, tabs change together, and code can be copied.

import { byId, copy, tabs } from "./elements.js";

const WRITTEN = "http://127.0.0.1:8088";

for (const element of document.querySelectorAll(".origin")) {
  element.textContent = element.textContent.replaceAll(WRITTEN, location.origin);
}

// Who reads Python here reads Python everywhere: one choice moves all tabs.
const lists = [...document.querySelectorAll("[role=tablist]")].map((list) => ({ list, tabs: tabs(list, chosen) }));
let choosing = false;
function chosen(tab) {
  if (choosing) return;
  choosing = true;
  const before = tab.getBoundingClientRect().top;
  for (const one of lists) one.tabs.choose(one.list.querySelector(`[data-language="${tab.dataset.language}"]`));
  choosing = false;
  scrollBy(0, tab.getBoundingClientRect().top - before); // blocks above have changed their height
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => copy(button, button.closest(".code").querySelector("[role=tabpanel]:not([hidden]) pre").textContent));
}

// Contents: closed on a phone until asked for, and they say where one is.
const phone = matchMedia("(max-width: 860px)");
const fold = () => { byId("contents").open = !phone.matches; };
fold();
phone.addEventListener("change", fold);
byId("contents").addEventListener("click", (event) => {
  if (phone.matches && event.target.closest("a")) byId("contents").open = false;
});

const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
const here = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    for (const link of links.values()) link.classList.remove("here");
    links.get(target.id).classList.add("here");
  }
}, { rootMargin: "-64px 0px -75% 0px" });
for (const id of links.keys()) here.observe(byId(id));
