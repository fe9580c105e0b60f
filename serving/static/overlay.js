// Tracks of points, drawn over a playing video: each grows with the frames and fades after its end.

const FADE_FRAMES = 4;
const STILL = 0.012; // fraction of the frame's height: a track that moves less is drawn as a dot

export class Overlay {
  constructor(video, canvas) {
    this.video = video;
    this.canvas = canvas;
    this.visible = true;
    this.windows = [];
    this.fps = 1;
    const draw = () => {
      this.draw();
      requestAnimationFrame(draw);
    };
    requestAnimationFrame(draw);
  }

  // `tracks` is an answer of POST /trajectories, or null for none.
  show(tracks) {
    this.fps = tracks ? tracks.fps : 1;
    const aspect = tracks ? tracks.video.width / tracks.video.height : 1;
    this.windows = (tracks?.windows ?? []).map(({ start_s: start, paths }) => ({
      start,
      paths: paths.map((points) => ({ points, ...course(points, aspect) })),
    }));
  }

  draw() {
    const { canvas, video } = this;
    const [width, height] = [canvas.clientWidth * devicePixelRatio, canvas.clientHeight * devicePixelRatio];
    if (canvas.width !== Math.round(width)) canvas.width = width;
    if (canvas.height !== Math.round(height)) canvas.height = height;
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.visible || !video.videoWidth || !this.windows.length) return;
    const current = this.windows.findLast(({ start }) => start <= video.currentTime + 1e-3) ?? this.windows[0];
    const age = Math.max(0, (video.currentTime - current.start) * this.fps);
    const scale = Math.min(canvas.width / video.videoWidth, canvas.height / video.videoHeight);
    const picture = { width: video.videoWidth * scale, height: video.videoHeight * scale };
    picture.left = (canvas.width - picture.width) / 2;
    picture.top = (canvas.height - picture.height) / 2;
    pen.lineCap = pen.lineJoin = "round";
    for (const path of current.paths) drawPath(pen, picture, path, age);
  }
}

// Whether a track is still, and the hue of its direction: right red, down green, left cyan, up violet.
function course(points, aspect) {
  const [from, to] = [points[0], points.at(-1)];
  const [x, y] = [(to[0] - from[0]) * aspect, to[1] - from[1]];
  const still = points.every((point) => Math.hypot((point[0] - from[0]) * aspect, point[1] - from[1]) < STILL);
  return { still, hue: (Math.atan2(y, x) * 180) / Math.PI };
}

function drawPath(pen, picture, { points, still, hue }, age) {
  const last = points.length - 1;
  pen.globalAlpha = Math.max(0, 1 - Math.max(0, age - last) / FADE_FRAMES);
  if (!pen.globalAlpha) return;
  const at = ([x, y]) => [picture.left + x * picture.width, picture.top + y * picture.height];
  const size = Math.max(1, picture.height / 240);
  if (still) {
    pen.fillStyle = "rgb(255 255 255 / 35%)";
    pen.fillRect(...at(points[0]), size, size);
    return;
  }
  const step = Math.min(Math.floor(age), last);
  pen.strokeStyle = `hsl(${hue} 90% 65%)`;
  pen.lineWidth = 1.5 * size;
  pen.beginPath();
  pen.moveTo(...at(points[0]));
  for (const point of points.slice(1, step + 1)) pen.lineTo(...at(point));
  const [head, next] = [points[step], points[Math.min(step + 1, last)]];
  const share = Math.min(age, last) - step;
  const tip = at([head[0] + (next[0] - head[0]) * share, head[1] + (next[1] - head[1]) * share]);
  pen.lineTo(...tip);
  pen.stroke();
  pen.fillStyle = "#fff";
  pen.beginPath();
  pen.arc(...tip, 1.2 * size, 0, 2 * Math.PI);
  pen.fill();
}
