const byId = (id) => document.getElementById(id);
const { fps, frames, comparison, pairs } = JSON.parse(byId("ballots").textContent);
const sides = [byId("left"), byId("right")];
const player = new Player({
  fps,
  frames,
  clips: () => sides,
  show() {},
  change() { byId("play").textContent = player.playing ? "Pause" : "Play"; },
});

// Votes outlive a reload. `drop` says whose they are where the voter gave no name.
const drop = () => Array.from(crypto.getRandomValues(new Uint8Array(6)), (b) => b.toString(16).padStart(2, "0")).join("");
const place = `votes of ${comparison}`;
let state = { id: drop(), name: "", votes: {} };
try {
  state = { ...state, ...JSON.parse(localStorage.getItem(place)) };
  localStorage.setItem(place, JSON.stringify(state));
} catch {
  byId("memory").textContent = "This browser forgets the votes when the page is closed: download them before.";
}
function keep() {
  try { localStorage.setItem(place, JSON.stringify(state)); } catch { /* said above */ }
}

let at; // index of the pair that is asked about
const open = () => pairs.findIndex((pair) => !(pair.id in state.votes));

async function ask(index) {
  at = index;
  const done = Object.keys(state.votes).length;
  byId("progress").value = done;
  byId("done").textContent = `${done} of ${pairs.length}`;
  byId("back").disabled = done === 0;
  byId("ballot").hidden = index < 0;
  byId("play").hidden = index < 0;
  byId("finished").hidden = index >= 0;
  const playing = player.playing;
  player.play(false);
  if (index < 0) return;
  const pair = pairs[index];
  byId("prompt").textContent = pair.prompt;
  for (const clip of sides) {
    unload(clip);
    clip.dataset.source = `clips/${pair.id}_${clip.id}.mp4`;
  }
  await Promise.all(sides.map(load));
  await player.go(0);
  player.play(playing);
}

function vote(answer) {
  if (at < 0) return;
  state.votes[pairs[at].id] = answer;
  keep();
  ask(open());
}

function back() {
  const last = Object.keys(state.votes).at(-1);
  if (!last) return;
  delete state.votes[last];
  keep();
  ask(pairs.findIndex((pair) => pair.id === last));
}

function save() {
  const content = { comparison, voter: state.name || state.id, votes: state.votes };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = "votes.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const keys = {
  1: () => vote("left"),
  2: () => vote("right"),
  0: () => vote("tie"),
  Backspace: back,
  " ": () => player.play(),
  ArrowRight: () => player.step(1),
  ArrowLeft: () => player.step(-1),
};
addEventListener("keydown", (event) => {
  if (typing(event) || event.repeat || (event.key === " " && event.target.closest("button"))) return;
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});
for (const button of document.querySelectorAll("[data-answer]")) button.addEventListener("click", () => vote(button.dataset.answer));
byId("back").addEventListener("click", back);
byId("save").addEventListener("click", save);
byId("play").addEventListener("click", () => player.play());
byId("voter").value = state.name;
byId("voter").addEventListener("input", (event) => {
  state.name = event.target.value.trim();
  keep();
});
if (!still) player.play();
ask(open());
