// Motion of a clip. That of a long one is known in a few places; while it plays, the stretch that is played is asked for, and
// the next one before it begins.

const MAX_STRETCHES = 20; // kept; the oldest go
const MAX_BYTES = 16 * 2 ** 20; // each stretch costs an upload: of a larger clip the places must do
const BUSY_MS = 2000; // between attempts while the service is full, or does not answer
const FINAL = [400, 401, 413, 415, 422]; // statuses of a stretch that will not come

export class Motion {
  // `overlay` draws; `track` sends the clip of an entry and resolves to the answer from a second on.
  constructor({ video, overlay, track }) {
    Object.assign(this, { video, overlay, track, entry: null, waits: false });
    for (const kind of ["timeupdate", "seeked"]) video.addEventListener(kind, () => this.follow());
  }

  // `entry` has a clip and `tracks`, an answer of POST /trajectories; null for none.
  show(entry) {
    this.entry = entry;
    this.overlay.show(entry?.tracks ?? null);
    if (!entry?.tracks) return;
    const { windows, num_steps: steps, fps } = entry.tracks;
    const length = steps / fps;
    entry.stretchS = windows.length * length;
    entry.stretches ??= new Map(); // windows by number, oldest first
    const hasGaps = windows.some(({ start_s: start }, number) => Math.abs(start - number * length) > 1e-3);
    entry.follows = hasGaps && entry.clip.size <= MAX_BYTES;
    this.draw();
    this.follow();
  }

  async follow() {
    const { entry, video } = this;
    if (!entry?.follows || this.waits || !this.overlay.visible) return;
    const now = Math.floor(video.currentTime / entry.stretchS + 1e-3);
    const last = Math.floor((video.duration - 2 / entry.tracks.fps) / entry.stretchS);
    const number = [now, now + 1].find((number) => number <= last && !entry.stretches.has(number));
    if (number === undefined) return;
    this.waits = true;
    try {
      const { windows } = await this.track(entry, number * entry.stretchS);
      entry.stretches.set(number, windows);
      if (entry.stretches.size > MAX_STRETCHES) entry.stretches.delete(entry.stretches.keys().next().value);
      if (entry === this.entry) this.draw();
    } catch ({ problem }) {
      if (FINAL.includes(problem?.status)) entry.stretches.set(number, []);
      else await new Promise((resolve) => setTimeout(resolve, BUSY_MS));
    }
    this.waits = false;
    this.follow(); // the video may have gone on, or pause elsewhere
  }

  // The places, but for those within a stretch.
  draw() {
    const { tracks, stretches, stretchS } = this.entry;
    const known = ({ start_s: start }) => stretches.get(Math.floor(start / stretchS + 1e-3))?.length;
    const windows = [...tracks.windows.filter((window) => !known(window)), ...[...stretches.values()].flat()];
    this.overlay.show({ ...tracks, windows: windows.sort((one, other) => one.start_s - other.start_s) });
  }
}
