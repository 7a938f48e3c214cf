// Clips in step, by one clock for all. Short clips are sought frame by frame, and the clock waits until every clip shows
// the frame; long ones play by themselves, and those ahead of the slowest wait for it.
const SHORT = 32; // frames; a seek decodes from the last key frame, which in longer clips outlasts a frame
const PATIENCE = 2000; // ms for which a clip may hold up the others
const AHEAD = 0.5; // frames by which a clip may lead the slowest

class Player {
  // clips: () => the videos that are seen now; show: (index) => tells the frame; change: () => tells playing or not.
  constructor({ fps, frames, clips, show, change }) {
    Object.assign(this, { fps, frames, clips, show, change, index: 0, speed: 1, loop: true, playing: false, run: 0 });
  }

  // Every clip shows the frame when this is done. A wish that comes meanwhile takes the place of the one before.
  go(index) {
    this.index = index;
    this.show(index);
    this.stale = true;
    this.moving ??= this.#move().finally(() => (this.moving = null));
    return this.moving;
  }

  async #move() {
    while (this.stale) {
      this.stale = false;
      await Promise.all(this.clips().map((clip) => this.#seek(clip, this.index)));
    }
  }

  #seek(clip, index) {
    const seconds = (index + 0.5) / this.fps; // the middle of a frame: no rounding leads to its neighbour
    const there = () => clip.readyState > 1 && !clip.seeking && Math.abs(clip.currentTime - seconds) < 0.1 / this.fps;
    if (there()) return undefined;
    return new Promise((done) => {
      const over = new AbortController();
      const end = () => (over.abort(), clearTimeout(late), done());
      const late = setTimeout(end, PATIENCE);
      const begin = () => {
        clip.addEventListener("seeked", end, { signal: over.signal });
        clip.currentTime = seconds;
      };
      clip.addEventListener("error", end, { signal: over.signal });
      if (clip.readyState > 0) begin();
      else clip.addEventListener("loadedmetadata", begin, { signal: over.signal });
    });
  }

  play(on = !this.playing) {
    if (on === this.playing) return;
    this.playing = on;
    const run = ++this.run;
    this.change();
    if (!on) this.#halt();
    else this.frames <= SHORT ? this.#step(run) : this.#roll(run);
  }

  async #halt() {
    for (const clip of this.clips()) clip.pause();
    await this.go(this.index);
  }

  step(by) {
    this.play(false);
    return this.go((this.index + by + this.frames) % this.frames);
  }

  // Other clips are seen from now on: they start from where the clock is.
  async refresh() {
    const run = this.playing && this.frames > SHORT ? ++this.run : 0;
    if (run) for (const clip of this.clips()) clip.pause();
    await this.go(this.index);
    if (run && run === this.run) this.#roll(run);
  }

  async #step(run) {
    while (run === this.run && this.#more()) {
      const due = performance.now() + 1000 / (this.fps * this.speed);
      await this.go((this.index + 1) % this.frames);
      await new Promise((done) => setTimeout(done, due - performance.now()));
    }
  }

  #more() {
    if (this.index + 1 < this.frames || this.loop) return true;
    this.play(false);
    return false;
  }

  async #roll(run) {
    await this.go(this.index);
    for (;;) {
      await new Promise(requestAnimationFrame);
      if (run !== this.run) return;
      if (this.#keep()) continue;
      for (const clip of this.clips()) clip.pause();
      if (!this.#more()) return;
      await this.go(0);
    }
  }

  // Keeps clips that play together; whether the end is still ahead.
  #keep() {
    const clips = this.clips().filter((clip) => clip.readyState > 1);
    if (!clips.length) return true;
    const slowest = Math.min(...clips.map((clip) => clip.currentTime));
    for (const clip of clips) {
      const ahead = (clip.currentTime - slowest) * this.fps;
      clip.playbackRate = this.speed * (ahead > AHEAD / 3 ? 0.9 : 1);
      if (ahead > AHEAD) clip.pause();
      else if (clip.paused && !clip.ended) clip.play().catch(() => {});
    }
    this.index = Math.min(this.frames - 1, Math.floor(slowest * this.fps + 0.01));
    this.show(this.index);
    return slowest < (this.frames - 0.3) / this.fps;
  }
}

// From a file a browser can seek at once; simple web servers send no ranges, so there the clip is fetched whole.
const addresses = new Map();
async function address(source) {
  if (location.protocol === "file:") return source;
  if (!addresses.has(source)) addresses.set(source, fetch(source).then((answer) => answer.blob()).then(URL.createObjectURL));
  return addresses.get(source);
}

async function load(clip) {
  if (!clip.hasAttribute("src")) clip.src = await address(clip.dataset.source);
}

function unload(clip) {
  if (!clip.hasAttribute("src")) return;
  clip.removeAttribute("src");
  clip.load();
}

const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const typing = (event) => event.target.closest("input, select, textarea, dialog") || event.ctrlKey || event.metaKey || event.altKey;
