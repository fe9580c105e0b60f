// One page, no build step: POST /classify a clip and show the labels as bars, those along it as a timeline;
// POST /trajectories and draw the tracks.

import { LiveCamera } from "./camera.js";
import { Motion } from "./motion.js";
import { Overlay } from "./overlay.js";
import { ask, send } from "./requests.js";
import { Timeline, shares } from "./timeline.js";

const RECENT = 8;
const RECORD_MS = 3000;
const POLL_MS = 15000;
const WINDOW_S = 2;
const HOP_S = 1;
const TIMELINE_S = 3; // from this length on, a clip has a timeline
const LONG_S = 20; // from this length on, a clip has no labels but those along it
const LONG_BYTES = 32 * 2 ** 20;
const MAX_WINDOWS = 3000;
const METADATA_MS = 3000;

const at = (id) => document.getElementById(id);
const [drop, file, player, stage] = [at("drop"), at("file"), at("player"), document.querySelector(".stage")];
const overlay = new Overlay(player, at("overlay"));
const motion = new Motion({
  video: player,
  overlay,
  track: ({ clip, name }, start) => send(`trajectories?start_s=${start}`, clip, name, { signal: uploads.signal }),
});
const recent = [];
const timeline = new Timeline({
  video: player, box: at("along"), bar: at("timeline"), legend: at("legend"), link: at("captions"),
}); // prettier-ignore
const tabs = [at("tab-file"), at("tab-camera")];
let turn = 0; // number of the latest clip; answers to earlier ones are not shown
let uploads = new AbortController();
let labelsOf = null; // digest of the model whose labels can be chosen; null: none are taken
let corrected = null; // the clip that was classified last, with its name

function element(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text; // never innerHTML: names and labels are untrusted
  if (className) made.className = className;
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const modelText = (model) => `${model.name} ${model.version ? `version ${model.version}` : ""} (${model.digest})`;

async function showModel() {
  const line = at("model");
  try {
    const { model, feedback } = await ask("ready");
    offerFeedback(feedback, model.digest);
    line.className = "ready";
    line.lastElementChild.textContent = modelText(model);
  } catch (error) {
    line.className = "unready";
    line.lastElementChild.textContent = error.problem.title;
  }
}

// The list of labels to correct an answer with, if the service takes corrections.
async function offerFeedback(taken, digest) {
  if (!taken || digest === labelsOf) return;
  try {
    const { labels } = await ask("labels");
    const none = element("option", "choose …");
    none.value = "";
    at("right-label").replaceChildren(none, ...labels.map((label) => element("option", label)));
    labelsOf = digest;
    showFeedback();
  } catch {
    // without a key, or not just now: the next poll asks again
  }
}

function showFeedback() {
  at("feedback").hidden = !(labelsOf && corrected);
}

// Begin to ask for the right label of a clip; of none, if there is no answer for a whole clip.
function askForLabel(clip, name) {
  corrected = clip && { clip, name };
  at("right-label").value = "";
  at("feedback-state").textContent = "";
  showFeedback();
}

async function sendFeedback() {
  const [button, state, told, label] = [at("feedback").querySelector("button"), at("feedback-state"), corrected, at("right-label").value];
  button.disabled = true;
  state.textContent = "Sending …";
  const { answer, problem } = await outcomeOf("feedback", told.clip, told.name, { fields: { label } });
  button.disabled = false;
  if (told !== corrected) return;
  state.textContent = problem ? `${problem.title}: ${problem.detail ?? ""}` : `Thank you: kept as ${answer.label}.`;
}

function play(clip) {
  stopLive();
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(clip);
  stage.hidden = false;
  player.hidden = false;
  at("unplayable").hidden = true;
  showMotion({});
  timeline.show(null);
  player.play().catch(() => {}); // some browsers require a click first
}

function clear() {
  askForLabel(null);
  at("hint").hidden = true;
  at("error").hidden = true;
  at("labels-title").hidden = true;
  at("labels").replaceChildren();
  at("facts").replaceChildren();
}

function showBars(shares) {
  at("labels").replaceChildren(...shares.map(([label, share]) => {
    const row = element("li", "");
    row.style.setProperty("--share", share);
    row.append(element("span", label), element("span", percent(share), "share"));
    return row;
  }));
}

function showFacts(facts) {
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
}

const clipText = ({ num_frames: frames, width, height, duration_s: seconds, codec }) =>
  `${frames} frames, ${width} × ${height}, ${seconds.toFixed(1)} s, ${codec}`;
const timeText = ({ total_ms: total, decode_ms: decode, inference_ms: model }) =>
  `${Math.round(total)} ms: decoding ${Math.round(decode)}, model ${Math.round(model)}`;
const bars = ({ predictions }) => predictions.map(({ label, probability }) => [label, probability]);

function showAnswer(answer) {
  clear();
  showBars(bars(answer));
  showFacts({ Clip: clipText(answer.video), Time: timeText(answer.timings), Model: modelText(answer.model) });
}

function timeShares({ segments }) {
  const order = shares(segments);
  const total = order.reduce((sum, [, seconds]) => sum + seconds, 0);
  return order.map(([label, seconds]) => [label, seconds / total]);
}

function showWindows(answer) {
  clear();
  at("labels-title").hidden = false;
  showBars(timeShares(answer).slice(0, 8));
  const { windows, window_s: length, hop_s: hop, timings } = answer;
  showFacts({
    Clip: clipText(answer.video),
    Windows: `${windows.length} of ${length} s, one every ${hop} s`,
    Time: `${(timings.total_ms / 1000).toFixed(1)} s`,
    Model: modelText(answer.model),
  });
}

function showProblem({ title, detail, request_id: id, status }) {
  clear();
  const box = at("error");
  box.replaceChildren(element("strong", title), element("span", detail ?? ""));
  if (id) box.append(element("small", `request ${id}`));
  box.hidden = false;
  if (status === 401) {
    at("key").hidden = false;
    at("key-text").focus();
  }
}

// Draw the answer of /trajectories over the clip, or show its problem; neither if there is none yet.
function showMotion(found) {
  motion.show(found.tracks ? found : null);
  at("motion-state").textContent = found.problem ? found.problem.title : "";
}

async function outcomeOf(path, clip, name, options) {
  try {
    return { answer: await send(path, clip, name, options) };
  } catch (error) {
    return { problem: error.problem };
  }
}

function showProgress(share) {
  const done = share >= 1;
  at("progress").hidden = done;
  at("progress").value = share;
  at("busy-text").textContent = done ? "Classifying …" : `Uploading, ${percent(share)}`;
}

// Length of the clip in the player; NaN if it cannot play it, infinite for a recording.
function clipSeconds() {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(player.duration), METADATA_MS);
    for (const kind of ["loadedmetadata", "error"]) {
      player.addEventListener(kind, () => {
        clearTimeout(timer);
        resolve(player.duration);
      }, { once: true }); // prettier-ignore
    }
  });
}

function windowsPath(seconds) {
  const hop = Math.max(HOP_S, Math.ceil((Number.isFinite(seconds) ? seconds : 0) / MAX_WINDOWS));
  return `classify?window_s=${(WINDOW_S / HOP_S) * hop}&hop_s=${hop}&top_k=1`;
}

function remember(entry) {
  recent.unshift(entry);
  recent.splice(RECENT);
  at("recent").hidden = false;
  at("recent").querySelector("ul").replaceChildren(...recent.map((entry) => {
    const { answer, problem } = entry.outcome;
    const best = answer && (answer.predictions ? bars(answer)[0] : timeShares(answer)[0]);
    const button = element("button", "");
    button.type = "button";
    button.append(
      element("span", entry.name),
      element("span", best ? `${best[0]}, ${percent(best[1])}${answer.segments ? " of the time" : ""}` : problem.title),
    );
    button.addEventListener("click", () => {
      newTurn();
      play(entry.clip);
      show(entry.outcome, entry);
      showMotion(entry.motion);
      timeline.show(entry.windows);
    });
    const row = element("li", "");
    row.append(button);
    return row;
  }));
}

function idle() {
  at("busy").hidden = true;
  at("answer").setAttribute("aria-busy", "false");
}

function show({ answer, problem }, { clip, name }) {
  idle();
  if (problem) showProblem(problem);
  else if (answer.segments) showWindows(answer);
  else {
    showAnswer(answer);
    askForLabel(clip, name);
  }
}

// Begin with another clip: answers to the ones before are of no interest any more.
function newTurn() {
  turn += 1;
  uploads.abort();
  uploads = new AbortController();
  return turn;
}

async function classify(clip, name) {
  const mine = newTurn();
  play(clip);
  clear();
  at("busy").hidden = false;
  at("answer").setAttribute("aria-busy", "true");
  showProgress(0);
  const { signal } = uploads;
  const seconds = await clipSeconds();
  const isLong = clip.size > LONG_BYTES || (Number.isFinite(seconds) && seconds > LONG_S);
  const path = isLong ? windowsPath(seconds) : "classify";
  if (mine !== turn) return;
  const outcome = await outcomeOf(path, clip, name, { signal, progress: (share) => mine === turn && showProgress(share) });
  if (mine !== turn) return;
  const entry = { clip, name, outcome, motion: {}, windows: isLong ? outcome.answer : null };
  remember(entry);
  show(outcome, entry);
  timeline.show(entry.windows);
  if (outcome.problem) return;

  // After the answer, so as not to delay it.
  const { answer: tracks, problem } = await outcomeOf("trajectories", clip, name, { signal });
  if (mine !== turn) return;
  entry.motion = { clip, name, tracks, problem };
  showMotion(entry.motion);
  if (isLong || outcome.answer.video.duration_s < TIMELINE_S) return;
  entry.windows = (await outcomeOf(windowsPath(seconds), clip, name, { signal })).answer ?? null;
  if (mine === turn) timeline.show(entry.windows);
}

const camera = new LiveCamera({
  video: player,
  classify: (piece) => send("classify?top_k=5", piece, "camera.webm"),
  show: (answer, numBytes) => {
    at("error").hidden = true;
    showBars(bars(answer));
    showFacts({
      Window: `${answer.video.duration_s.toFixed(1)} s, ${Math.round(numBytes / 1024)} KiB`,
      Time: timeText(answer.timings),
      Model: modelText(answer.model),
    });
  },
  fail: (error) => {
    stopLive();
    showProblem(error.problem ?? { title: "The camera failed", detail: error.message });
  },
});

async function startLive() {
  newTurn();
  if (player.src) URL.revokeObjectURL(player.src);
  clear();
  idle();
  try {
    await camera.start();
  } catch (error) {
    showProblem({ title: "There is no camera", detail: error.message });
    return;
  }
  stage.hidden = player.hidden = false;
  at("unplayable").hidden = true;
  showMotion({});
  timeline.show(null);
  at("live").textContent = "Stop live labels";
  at("live").setAttribute("aria-pressed", "true");
  at("motion").closest("p").hidden = true;
  at("answer").setAttribute("aria-live", "off"); // five labels every second are not read out
}

function stopLive() {
  if (!camera.running) return;
  camera.stop();
  at("motion").closest("p").hidden = false;
  at("live").textContent = "Start live labels";
  at("live").setAttribute("aria-pressed", "false");
  at("answer").setAttribute("aria-live", "polite");
}

function chooseTab(chosen) {
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    at(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
}

async function record() {
  const button = at("record");
  button.disabled = true;
  stopLive();
  try {
    const camera = await navigator.mediaDevices.getUserMedia({ video: { width: 320 } });
    const recorder = new MediaRecorder(camera);
    const parts = [];
    recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
    const done = new Promise((resolve) => recorder.addEventListener("stop", resolve));
    recorder.start();
    button.textContent = "Recording …";
    await new Promise((resolve) => setTimeout(resolve, RECORD_MS));
    recorder.stop();
    await done;
    camera.getTracks().forEach((track) => track.stop());
    await classify(new Blob(parts, { type: recorder.mimeType }), `recorded at ${new Date().toLocaleTimeString()}`);
  } catch (error) {
    showProblem({ title: "Recording failed", detail: error.message });
  } finally {
    button.textContent = "Record three seconds";
    button.disabled = false;
  }
}

function choose(files) {
  if (files.length) classify(files[0], files[0].name);
}

file.addEventListener("change", () => {
  choose(file.files);
  file.value = ""; // so that the same clip can be chosen again
});
drop.addEventListener("click", () => file.click());
for (const tab of tabs) {
  tab.addEventListener("click", () => chooseTab(tab));
  tab.addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const other = event.key === "Home" ? tabs[0] : event.key === "End" ? tabs[1] : tabs[1 - tabs.indexOf(tab)];
    chooseTab(other);
    other.focus();
  });
}
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // otherwise the browser opens the file
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}
player.addEventListener("error", () => {
  if (!player.getAttribute("src")) return; // there is a camera in place of a clip
  player.hidden = true;
  at("unplayable").hidden = false;
});
at("motion").addEventListener("change", (event) => {
  overlay.visible = event.target.checked;
});
at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("api-key", at("key-text").value);
  at("key").hidden = true;
  if (recent.length) classify(recent[0].clip, recent[0].name);
});
at("feedback").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  sendFeedback();
});
at("live").addEventListener("click", () => (camera.running ? stopLive() : startLive()));
at("record").addEventListener("click", record);
const hasCamera = Boolean(navigator.mediaDevices && window.MediaRecorder);
at("no-camera").hidden = hasCamera;
at("live").hidden = at("record").hidden = !hasCamera;
at("curl").textContent = `curl -F file=@clip.mp4 ${new URL("classify", document.baseURI)}`;
showModel();
setInterval(showModel, POLL_MS);
