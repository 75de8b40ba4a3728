// What the pages of samples have in common: cards in a grid, filtered, sorted and searched by their values.
"use strict";
const $ = id => document.getElementById(id);
const natural = new Intl.Collator(undefined, { numeric: true }).compare;
let shown = [];  // the cards in the grid, in its order

function element(tag, className, text, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

// The title of a card, a line of facts, and a link to save its file.
function named(card, facts, head) {
  const name = element("div", "name", undefined, head);
  element("b", "", card.title, name);
  element("span", "", [`#${card.index}`, ...facts, `seed ${card.seed}`].join(" · "), name);
  if (!card.file) return;
  const link = element("a", "", "⤓", head);
  link.href = card.file; link.download = card.file; link.title = card.file; link.setAttribute("aria-label", `Save ${card.file}`);
}

// The values that the title does not say, and a warning.
function chips(card, warning, about) {
  const values = Object.entries(card.values).filter(([key]) => !card.said.includes(key));
  if (!values.length && !warning) return;
  const badges = element("div", "badges", undefined, about);
  for (const [key, value] of values) {
    const chip = element("span", "chip", undefined, badges);
    element("i", "", key, chip);
    chip.append(typeof value === "number" ? String(+value.toPrecision(4)) : String(value));
  }
  if (warning) element("span", "badge no", warning, badges);
}

// Shows the cards, whose boxes are built, and lets them be found. A sort is ["0key" or, high first, "1key", its name].
function gallery(cards, sorts, none, changed = () => {}) {
  if (!cards.length) {
    $("hint").remove();
    element("p", "", none, $("grid"));
    return;
  }
  const filters = [], value = (card, key) => key[0] === "=" ? card.values[key.slice(1)] : card[key];
  const choices = (select, options) => { for (const [value, text] of options) select.append(new Option(text, value)); };
  for (const key of new Set(cards.flatMap(card => Object.keys(card.values)))) {
    const values = cards.map(card => card.values[key]).filter(value => value !== undefined), different = [...new Set(values)];
    if (values.every(value => typeof value === "number") && different.length > 1) {
      sorts.push([`0=${key}`, `${key}, low first`], [`1=${key}`, `${key}, high first`]);
    } else if (different.length > 1) {
      sorts.push([`0=${key}`, key]);
      if (different.length > 100 || key === "text" && different.length > 20) continue;
      const label = element("label", "", key + " ", $("filters")), select = element("select", "", undefined, label);
      choices(select, [["", "all"], ...different.map(String).sort(natural).map(value => [value, value])]);
      filters.push([key, select]);
    }
  }
  choices($("sort"), sorts);
  for (const card of cards) {
    card.words = [card.title, card.index, card.seed, card.file || card.failure, ...Object.values(card.values)].join(" ").toLowerCase();
  }
  const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : natural(String(a), String(b));
  function arrange() {
    const key = $("sort").value.slice(1), sign = $("sort").value[0] === "1" ? -1 : 1, words = $("search").value.toLowerCase().split(/\s+/);
    shown = cards.filter(card => filters.every(([name, select]) => !select.value || String(card.values[name]) === select.value)
      && words.every(word => card.words.includes(word)));
    shown.sort((a, b) => {
      const [one, two] = [value(a, key), value(b, key)];
      return (one === undefined) - (two === undefined) || sign * order(one, two) || a.index - b.index;
    });
    $("grid").replaceChildren(...shown.map(card => card.box));
    $("count").textContent = `${shown.length} of ${cards.length} shown`;
    changed();
  }
  $("sort").addEventListener("change", arrange);
  $("search").addEventListener("input", arrange);
  for (const [, select] of filters) select.addEventListener("change", arrange);
  document.querySelector(".bar").hidden = false;
  arrange();
}

$("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  dispatchEvent(new Event("theme"));
});
