"use strict";
const PAGE = 25;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function shown(row) {
  const item = element("li"), details = element("details"), summary = element("summary"), list = element("dl");
  summary.append(`${row.id} · ${row.language} · gold: ${row.gold} `, element("span", row.kind, "kind"));
  const told = [["gold", row.gold], ...Object.entries(row.answers), ["reasoning", row.reasoning], ["prompt", row.prompt]];
  for (const [name, text] of told) if (text !== null) list.append(element("dt", name), element("dd", text));
  details.append(summary, list);
  item.append(details);
  return item;
}

function browse(place) {
  const rows = JSON.parse(place.querySelector("script").textContent);
  const form = place.querySelector("form"), pages = place.querySelector(".pages");
  const texts = rows.map(row => JSON.stringify(Object.values(row)).toLowerCase());
  const languages = [...new Set(rows.map(row => row.language))].sort();
  form.elements.language.append(...languages.map(name => element("option", name)));
  let first = 0;

  function show() {
    const wanted = Object.fromEntries(["kind", "language", "text"].map(name => [name, form.elements[name].value]));
    const text = JSON.stringify(wanted.text.toLowerCase()).slice(1, -1);
    const found = rows.filter((row, n) => (!wanted.kind || row.kind === wanted.kind)
      && (!wanted.language || row.language === wanted.language) && texts[n].includes(text));
    first = Math.max(0, Math.min(first, found.length - 1));
    const last = Math.min(first + PAGE, found.length);
    place.querySelector(".rows").replaceChildren(...found.slice(first, last).map(shown));
    place.querySelector(".found").textContent = found.length ? `${first + 1} to ${last} of ${found.length}` : "no such row";
    pages.hidden = found.length <= PAGE;
    pages.children[0].disabled = first === 0;
    pages.children[1].disabled = last === found.length;
  }

  function turn(by) {
    first += by;
    show();
    place.querySelector(".found").scrollIntoView({ block: "nearest" });
  }
  form.addEventListener("input", () => { first = 0; show(); });
  form.addEventListener("submit", event => event.preventDefault());
  pages.children[0].addEventListener("click", () => turn(-PAGE));
  pages.children[1].addEventListener("click", () => turn(PAGE));
  form.hidden = false;
  show();
}

for (const place of document.querySelectorAll("[data-browser]")) browse(place);
