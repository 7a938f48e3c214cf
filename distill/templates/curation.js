"use strict";

// Videos: shown by kind and words, ordered by a signal; those that lack it come last.
const [kind, order, turn, find, shown] = ["kind", "order", "turn", "find", "shown"].map((id) => document.getElementById(id));
const cards = [...document.querySelectorAll(".cards article")];
const rank = new Map(cards.map((card, i) => [card, i]));
const value = (card) => card.getAttribute(`data-${order.value.replaceAll("_", "-")}`);

function compare(one, other) {
  const [a, b] = [value(one), value(other)];
  if (a === null || b === null) return (a === null) - (b === null) || rank.get(one) - rank.get(other);
  const difference = order.value === "name" ? a.localeCompare(b) : a - b;
  return (turn.getAttribute("aria-pressed") === "true" ? -difference : difference) || rank.get(one) - rank.get(other);
}

function arrange() {
  const words = find.value.trim().toLowerCase();
  for (const card of cards) {
    const text = (card.dataset.name + card.querySelector(".verdict").textContent).toLowerCase();
    card.hidden = (kind.value && card.dataset.kind !== kind.value) || !text.includes(words);
  }
  turn.disabled = !order.value;
  const sorted = [...cards].sort(order.value ? compare : (a, b) => rank.get(a) - rank.get(b));
  document.querySelector(".cards").append(...sorted);
  shown.textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} shown`;
}

turn.addEventListener("click", () => {
  const high = turn.getAttribute("aria-pressed") !== "true";
  turn.setAttribute("aria-pressed", high);
  turn.textContent = high ? "high to low" : "low to high";
  arrange();
});
for (const control of [kind, order]) control.addEventListener("change", arrange);
find.addEventListener("input", arrange);
find.form.addEventListener("submit", (event) => event.preventDefault());
document.querySelector(".controls").hidden = false;
arrange();
