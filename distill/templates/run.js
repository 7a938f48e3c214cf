"use strict";

// Clips: one clock for all. The first clip leads, the others are put right when they drift.
const data = document.getElementById("clip-data");
if (data) {
  const { fps, frames, students } = JSON.parse(data.textContent);
  const videos = [...document.querySelectorAll(".clips video")];
  const [play, frame, speed, update] = ["play", "frame", "speed", "update"].map((id) => document.getElementById(id));
  const leader = videos[0];
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;

  // From a file a browser can seek at once; simple web servers send no ranges, so there the clip is fetched whole.
  const cache = new Map();
  async function address(source) {
    if (location.protocol === "file:") return source;
    if (!cache.has(source)) cache.set(source, fetch(source).then((answer) => answer.blob()).then(URL.createObjectURL));
    return cache.get(source);
  }

  async function load(video, source) {
    video.dataset.source = source;
    const found = await address(source);
    if (video.dataset.source !== source) return; // another one was chosen meanwhile
    video.src = found;
    video.playbackRate = Number(speed.value);
    video.addEventListener("loadedmetadata", () => seek(video, leader.currentTime), { once: true });
    if (playing) video.play().catch(() => {});
  }

  const seek = (video, seconds) => { if (video.readyState > 0) video.currentTime = seconds; };
  const shown = () => Math.min(frames - 1, Math.floor(leader.currentTime * fps + 0.01));

  function show(index) {
    frame.value = index;
    document.getElementById("frame-shown").textContent = `${index + 1}/${frames}`;
  }

  function start(on) {
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    play.setAttribute("aria-pressed", on);
    for (const video of videos) on ? video.play().catch(() => {}) : video.pause();
  }

  function tick() {
    if (playing) {
      for (const video of videos)
        if (Math.abs(video.currentTime - leader.currentTime) > 1.5 / fps) seek(video, leader.currentTime);
      show(shown());
    }
    requestAnimationFrame(tick);
  }

  function choose(index) {
    const student = students[index];
    const text = `${student.update} updates`;
    document.getElementById("update-shown").textContent = text;
    update.setAttribute("aria-valuetext", text);
    for (const video of document.querySelectorAll("video.student")) {
      const row = Number(video.dataset.row);
      const source = `samples/${student.folder}/${String(row).padStart(2, "0")}.mp4`;
      if (video.dataset.source !== source) load(video, source);
      video.closest("figure").querySelector(".rmse").textContent = Number(student.rmse[row].toPrecision(3));
    }
  }

  document.querySelector(".controls").hidden = false;
  for (const video of videos) {
    video.controls = false;
    load(video, video.getAttribute("src"));
  }
  play.addEventListener("click", () => start(!playing));
  frame.addEventListener("input", () => {
    start(false);
    const index = Number(frame.value);
    show(index);
    for (const video of videos) seek(video, (index + 0.5) / fps);
  });
  speed.addEventListener("change", () => { for (const video of videos) video.playbackRate = Number(speed.value); });
  if (update) {
    update.addEventListener("input", () => choose(Number(update.value)));
    choose(students.length - 1);
  }
  show(0);
  start(playing);
  tick();
}
