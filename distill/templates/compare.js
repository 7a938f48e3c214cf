const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const { fps, frames, choices, columns } = JSON.parse(byId("page-data").textContent);

// What is seen: of each column the clips and numbers for one number of steps, or none if it is switched off.
const off = new Set();
const seen = new Set(); // rows of clips on the screen
const slider = byId("steps");
const choice = () => (slider ? [null, ...choices][slider.value] : null); // null: each column its own
const stepsOf = (column) => (column.steps.includes(choice()) ? choice() : column.own);

function arrange() {
  for (const each of all("[data-column]")) {
    const column = columns[each.dataset.column];
    const other = each.dataset.steps !== undefined && Number(each.dataset.steps) !== stepsOf(column);
    each.hidden = off.has(Number(each.dataset.column)) || other;
  }
  const wanted = choice();
  for (const note of all(".stays")) {
    const column = columns[note.dataset.of];
    const stays = wanted !== null && !column.fixed && stepsOf(column) !== wanted;
    note.textContent = stays ? (column.steps.length > 1 ? `not ${wanted}` : "only") : "";
  }
  if (slider) {
    const text = wanted === null ? "each its own" : `${wanted} step${wanted > 1 ? "s" : ""}`;
    byId("steps-shown").textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }
  byId("clip-rows").style.setProperty("--columns", Math.max(1, columns.length - off.size));
  wake();
}

// Clips are loaded while their row is near the screen.
const player = new Player({
  fps,
  frames,
  clips: () => all(".row video[src]").filter((clip) => seen.has(clip.closest(".row")) && !clip.closest("figure").hidden),
  show(index) {
    byId("frame").value = index;
    byId("frame-shown").textContent = `${index + 1}/${frames}`;
  },
  change() {
    byId("play").textContent = player.playing ? "Pause" : "Play";
  },
});

async function wake() {
  const shown = [...seen].flatMap((row) => all("figure:not([hidden]) video", row));
  await Promise.all(shown.map(load));
  player.refresh();
}

const watch = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) seen.add(target);
    else if (seen.delete(target)) all("video", target).forEach(unload);
  }
  wake();
}, { rootMargin: "120px" });
all(".row").forEach((row) => watch.observe(row));
for (const clip of all(".row video")) {
  clip.addEventListener("loadeddata", () => clip.classList.add("loaded"));
  clip.addEventListener("emptied", () => clip.classList.remove("loaded"));
}

function choose(by) {
  if (!slider) return;
  slider.value = Number(slider.value) + by;
  arrange();
}

function toggle(place) {
  if (!columns[place]) return;
  off.has(place) ? off.delete(place) : off.add(place);
  if (off.size === columns.length) off.clear();
  for (const chip of all(".chips button")) chip.setAttribute("aria-pressed", !off.has(Number(chip.dataset.place)));
  arrange();
}

function loop(on) {
  player.loop = on;
  byId("loop").setAttribute("aria-pressed", on);
}

function speed(by) {
  const select = byId("speed");
  select.selectedIndex = Math.min(Math.max(select.selectedIndex + by, 0), select.options.length - 1);
  player.speed = Number(select.value);
}

function row(by) {
  const rows = all(".row");
  const under = byId("controls").getBoundingClientRect().bottom + 2;
  const next = by > 0 ? rows.find((r) => r.offsetTop - scrollY > under + 20) : rows.findLast((r) => r.offsetTop - scrollY < under - 20);
  if (next) scrollTo({ top: next.offsetTop - under - 10, behavior: still ? "instant" : "smooth" });
}

const help = byId("help");
const keys = {
  " ": () => player.play(),
  ArrowRight: () => player.step(1),
  ArrowLeft: () => player.step(-1),
  ArrowDown: () => row(1),
  ArrowUp: () => row(-1),
  Home: () => player.step(-player.index),
  "]": () => choose(1),
  "[": () => choose(-1),
  ".": () => speed(1),
  ",": () => speed(-1),
  l: () => loop(!player.loop),
  0: () => { off.clear(); toggle(0); toggle(0); },
  "?": () => help.showModal(),
};
addEventListener("keydown", (event) => {
  if (typing(event) || (event.key === " " && event.target.closest("button, summary, a"))) return;
  const act = keys[event.key] ?? (/^[1-9]$/.test(event.key) ? () => toggle(Number(event.key) - 1) : null);
  if (!act) return;
  event.preventDefault();
  act();
});

byId("play").addEventListener("click", () => player.play());
byId("back").addEventListener("click", () => player.step(-1));
byId("on").addEventListener("click", () => player.step(1));
byId("loop").addEventListener("click", () => loop(!player.loop));
byId("speed").addEventListener("change", () => speed(0));
byId("ask").addEventListener("click", () => help.showModal());
byId("frame").addEventListener("input", (event) => {
  player.play(false);
  player.go(Number(event.target.value));
});
slider?.addEventListener("input", arrange);
for (const chip of all(".chips button")) chip.addEventListener("click", () => toggle(Number(chip.dataset.place)));

// Plots: one metric, one cost of sampling.
const [metric, cost] = [byId("metric"), byId("price")];
function plot() {
  for (const figure of all(".trade figure"))
    figure.hidden = figure.dataset.metric !== metric.value || ![cost.value, "training"].includes(figure.dataset.cost);
}
for (const select of [metric, cost]) select?.addEventListener("change", plot);

byId("controls").hidden = false;
for (const each of all(".needs-script")) each.hidden = false;
arrange();
player.show(0);
if (!still) player.play();
