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
  if (wipe) overlay();
  wake();
}

// Clips are loaded while their row is near the screen.
const wipe = byId("wipe"); // one clip over another, where there are two columns
const player = new Player({
  fps,
  frames,
  clips: () => all(":is(.row, .wipe) video[src]").filter((clip) => seen.has(clip.closest(".row, .wipe")) && !clip.closest("figure").hidden),
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
for (const each of all(".row, .wipe")) watch.observe(each);
for (const clip of all(":is(.row, .wipe) video")) {
  clip.addEventListener("loadeddata", () => clip.classList.add("loaded"));
  clip.addEventListener("emptied", () => clip.classList.remove("loaded"));
}

// The two clips of one row that lie over each other, with the number of steps that is chosen for their columns.
function overlay() {
  const row = all(".row")[byId("wipe-row").value];
  const found = ["one", "other"].map((side) => {
    const [clip, place] = [byId(`clip-${side}`), byId(`wipe-${side}`).value];
    const figure = row.querySelector(`figure[data-column="${place}"][data-steps="${stepsOf(columns[place])}"]`);
    const name = figure.querySelector("figcaption").textContent.replace(/\s+/g, " ").trim();
    const source = figure.querySelector("video")?.dataset.source;
    byId(`name-${side}`).textContent = name;
    clip.setAttribute("aria-label", `${name}: ${row.querySelector("h3").textContent}`);
    if (clip.dataset.source !== source) unload(clip);
    if (source) clip.dataset.source = source;
    return source ? "" : `${name}: ${figure.querySelector(".gap").textContent}`;
  });
  const [gap, difference] = [found.filter(Boolean).join("; "), byId("wipe-view").value === "difference"];
  byId("wipe-stage").hidden = gap !== "";
  byId("wipe-gap").hidden = gap === "";
  byId("wipe-gap").textContent = gap;
  wipe.querySelector(".of-wipe").hidden = difference;
  wipe.querySelector(".of-difference").hidden = !difference;
  const frame = wipe.querySelector(".frame");
  frame.classList.toggle("difference", difference);
  const [at, gain] = [byId("wipe-at"), byId("wipe-gain")];
  frame.style.setProperty("--at", `${at.value}%`);
  frame.style.setProperty("--gain", gain.value);
  at.setAttribute("aria-valuetext", `line at ${at.value} % of the width`);
  byId("wipe-gain-shown").textContent = `\u00d7${gain.value}`;
}

function drag(event) {
  if (event.type === "pointermove" && !event.buttons) return;
  const box = event.currentTarget.getBoundingClientRect();
  byId("wipe-at").value = (100 * (event.clientX - box.left)) / box.width;
  overlay();
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
  w: () => {
    if (!wipe) return;
    wipe.scrollIntoView({ block: "center", behavior: still ? "instant" : "smooth" });
    byId(byId("wipe-view").value === "difference" ? "wipe-gain" : "wipe-at").focus({ preventScroll: true });
  },
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

if (wipe) {
  for (const each of all("select, input", wipe)) each.addEventListener("input", () => (overlay(), wake()));
  for (const what of ["pointerdown", "pointermove"]) wipe.querySelector(".frame").addEventListener(what, drag);
}

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
