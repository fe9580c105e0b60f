// Segments of one label under the video, and as captions on it. The bar is a slider: one stop of the tab key, arrow keys
// go from segment to segment, a click seeks.

const GOLDEN_ANGLE = 137.508; // hues of successive labels lie far from each other

export const clock = (seconds) => {
  const whole = Math.floor(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const tail = `${String(minutes).padStart(hours ? 2 : 1, "0")}:${String(whole % 60).padStart(2, "0")}`;
  return hours ? `${hours}:${tail}` : tail;
};

// Seconds per label, longest first.
export function shares(segments) {
  const seconds = new Map();
  for (const { label, start_s: start, end_s: end } of segments) seconds.set(label, (seconds.get(label) ?? 0) + end - start);
  return [...seconds].sort(([, first], [, second]) => second - first);
}

export class Timeline {
  constructor({ video, box, bar, legend, link }) {
    Object.assign(this, { video, box, bar, legend, link, segments: [], url: null });
    this.head = document.createElement("div");
    this.head.className = "head";
    video.addEventListener("timeupdate", () => this.move());
    video.addEventListener("seeked", () => this.move());
    bar.addEventListener("click", (event) => this.seek((event.offsetX / bar.clientWidth) * this.duration));
    bar.addEventListener("keydown", (event) => this.press(event));
  }

  // `answer` is one of POST /classify?window_s=..., or null for none.
  show(answer) {
    this.segments = answer?.segments ?? [];
    this.box.hidden = !this.segments.length;
    for (const old of this.video.querySelectorAll("track")) {
      old.track.mode = "disabled"; // otherwise its last caption stays on the picture
      old.remove();
    }
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
    if (!this.segments.length) return;
    this.duration = Math.max(this.segments.at(-1).end_s, answer.video.duration_s);
    const order = shares(this.segments);
    const hues = new Map(order.map(([label], number) => [label, (number * GOLDEN_ANGLE + 215) % 360]));
    this.bar.replaceChildren(...this.segments.map((segment) => this.part(segment, hues.get(segment.label))), this.head);
    this.bar.setAttribute("aria-valuemax", Math.round(this.duration));
    this.legend.replaceChildren(...order.map(([label, seconds]) => entry(label, seconds, hues.get(label))));
    this.url = URL.createObjectURL(new Blob([captions(this.segments)], { type: "text/vtt" }));
    this.link.href = this.url;
    const track = Object.assign(document.createElement("track"), { kind: "captions", label: "Labels", src: this.url });
    this.video.append(track);
    track.track.mode = "showing";
    this.move();
  }

  part({ start_s: start, end_s: end, label }, hue) {
    const part = document.createElement("div");
    part.className = (end - start) / this.duration < 0.08 ? "narrow part" : "part";
    part.textContent = label;
    part.title = `${label}, ${clock(start)} to ${clock(end)}`;
    part.style.setProperty("--hue", hue);
    part.style.left = `${(100 * start) / this.duration}%`;
    part.style.width = `${(100 * (end - start)) / this.duration}%`;
    return part;
  }

  current() {
    return this.segments.findLastIndex(({ start_s: start }) => start <= this.video.currentTime + 1e-3);
  }

  move() {
    if (!this.segments.length) return;
    const time = this.video.currentTime;
    const { label, end_s: end } = this.segments[Math.max(0, this.current())];
    this.head.style.left = `${Math.min(100, (100 * time) / this.duration)}%`;
    this.bar.setAttribute("aria-valuenow", Math.round(time));
    this.bar.setAttribute("aria-valuetext", `${clock(time)}, ${time < end ? label : "no label"}`);
  }

  seek(seconds) {
    this.video.currentTime = Math.min(Math.max(0, seconds), this.duration);
  }

  press(event) {
    const last = this.segments.length - 1;
    const now = Math.max(0, this.current());
    const next = {
      ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, Home: 0, End: last,
      PageUp: now + 10, PageDown: now - 10,
    }[event.key]; // prettier-ignore
    if (next === undefined) return;
    event.preventDefault();
    this.seek(this.segments[Math.min(Math.max(0, next), last)].start_s);
  }
}

function entry(label, seconds, hue) {
  const row = document.createElement("li");
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.setProperty("--hue", hue);
  row.append(swatch, `${label} ${clock(Math.round(seconds))}`);
  return row;
}

// WebVTT, as the service writes it: a cue per segment.
function captions(segments) {
  const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replace(/[\r\n]+/g, " ");
  const time = (seconds) => {
    const all = Math.round(1000 * seconds);
    const part = (size, modulus, digits) => String(Math.floor(all / size) % modulus).padStart(digits, "0");
    return `${part(3600000, 1e6, 2)}:${part(60000, 60, 2)}:${part(1000, 60, 2)}.${part(1, 1000, 3)}`;
  };
  const cues = segments.map(({ start_s: start, end_s: end, label }) => `${time(start)} --> ${time(end)}\n${escape(label)}\n`);
  return ["WEBVTT\n", ...cues].join("\n");
}
