// Live labels of a camera: every second, the last two seconds go to the service as a file of their own. Pieces of one
// recording are no files, only the first has a header: so each window has a recorder of its own, and two run at a time.

const WINDOW_MS = 2000;
const EVERY_MS = 1000;
const MAX_WAITING = 2; // answers; while so many are missing, windows are dropped and not sent

export class LiveCamera {
  // `classify` sends a window; `show` gets its answer and its size in bytes; `fail` gets what ends it.
  constructor({ video, classify, show, fail }) {
    Object.assign(this, { video, classify, show, fail, stream: null, timer: null, waiting: 0, shown: 0, number: 0 });
  }

  get running() {
    return this.stream !== null;
  }

  async start() {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 320 } });
    this.stream = stream;
    this.video.removeAttribute("src");
    this.video.srcObject = stream;
    this.video.play().catch(() => {});
    this.record();
    this.timer = setInterval(() => this.record(), EVERY_MS);
  }

  stop() {
    clearInterval(this.timer);
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.srcObject = null;
  }

  record() {
    const stream = this.stream;
    const recorder = new MediaRecorder(stream);
    recorder.addEventListener("dataavailable", ({ data }) => {
      if (this.stream === stream && data.size) this.deliver(data, stream);
    });
    recorder.start();
    setTimeout(() => recorder.state === "recording" && recorder.stop(), WINDOW_MS);
  }

  async deliver(piece, stream) {
    if (this.waiting === MAX_WAITING) return;
    this.number += 1;
    this.waiting += 1;
    const number = this.number;
    try {
      const answer = await this.classify(piece);
      if (this.stream !== stream || number < this.shown) return;
      this.shown = number;
      this.show(answer, piece.size);
    } catch (error) {
      if (this.stream === stream && error.problem?.status !== 503) this.fail(error); // when busy, the next one may pass
    } finally {
      this.waiting -= 1;
    }
  }
}
