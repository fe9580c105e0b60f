// One page, no build step: POST /classify a clip and show the labels as bars; POST /trajectories and draw the tracks.

import { Overlay } from "./overlay.js";

const RECENT = 8;
const RECORD_MS = 3000;
const POLL_MS = 15000;

const at = (id) => document.getElementById(id);
const [drop, file, player, stage] = [at("drop"), at("file"), at("player"), document.querySelector(".stage")];
const overlay = new Overlay(player, at("overlay"));
const recent = [];
let turn = 0; // number of the latest clip; answers to earlier ones are not shown

function element(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text; // never innerHTML: names and labels are untrusted
  if (className) made.className = className;
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const modelText = (model) => `${model.name} ${model.version ? `version ${model.version}` : ""} (${model.digest})`;

function headers() {
  const key = sessionStorage.getItem("api-key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// Send a request; an error status becomes an Error with the problem document.
async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  } catch {
    throw Object.assign(new Error(), { problem: { title: "The service cannot be reached", detail: "Is it running?" } });
  }
  const body = await response.json().catch(() => ({ title: `Status ${response.status}`, detail: "" }));
  if (!response.ok) throw Object.assign(new Error(), { problem: body });
  return body;
}

async function showModel() {
  const line = at("model");
  try {
    const { model } = await ask("ready");
    line.className = "ready";
    line.lastElementChild.textContent = modelText(model);
  } catch (error) {
    line.className = "unready";
    line.lastElementChild.textContent = error.problem.title;
  }
}

function play(clip) {
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(clip);
  stage.hidden = false;
  player.hidden = false;
  at("unplayable").hidden = true;
  showMotion({});
  player.play().catch(() => {}); // some browsers require a click first
}

function clear() {
  at("hint").hidden = true;
  at("error").hidden = true;
  at("labels").replaceChildren();
  at("facts").replaceChildren();
}

function showAnswer({ predictions, video, model, timings }) {
  clear();
  at("labels").replaceChildren(...predictions.map(({ label, probability }) => {
    const row = element("li", "");
    row.style.setProperty("--share", probability);
    row.append(element("span", label), element("span", percent(probability), "share"));
    return row;
  }));
  const facts = {
    Clip: `${video.num_frames} frames, ${video.width} × ${video.height}, ${video.duration_s.toFixed(1)} s, ${video.codec}`,
    Time: `${Math.round(timings.total_ms)} ms: decoding ${Math.round(timings.decode_ms)}, model ${Math.round(timings.inference_ms)}`,
    Model: modelText(model),
  };
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
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
function showMotion({ tracks, problem }) {
  overlay.show(tracks ?? null);
  at("motion-state").textContent = problem ? problem.title : "";
}

async function findMotion(form) {
  try {
    return { tracks: await ask("trajectories", { method: "POST", body: form }) };
  } catch (error) {
    return { problem: error.problem };
  }
}

function remember(entry) {
  recent.unshift(entry);
  recent.splice(RECENT);
  at("recent").hidden = false;
  at("recent").querySelector("ul").replaceChildren(...recent.map((entry) => {
    const best = entry.outcome.answer?.predictions[0];
    const button = element("button", "");
    button.type = "button";
    button.append(
      element("span", entry.name),
      element("span", best ? `${best.label}, ${percent(best.probability)}` : entry.outcome.problem.title),
    );
    button.addEventListener("click", () => {
      turn += 1;
      play(entry.clip);
      show(entry.outcome);
      showMotion(entry.motion);
    });
    const row = element("li", "");
    row.append(button);
    return row;
  }));
}

function show({ answer, problem }) {
  at("busy").hidden = true;
  at("answer").setAttribute("aria-busy", "false");
  if (answer) showAnswer(answer);
  else showProblem(problem);
}

async function classify(clip, name) {
  turn += 1;
  const mine = turn;
  play(clip);
  clear();
  at("busy").hidden = false;
  at("answer").setAttribute("aria-busy", "true");
  const form = new FormData();
  form.append("file", clip, name);
  let outcome;
  try {
    outcome = { answer: await ask("classify", { method: "POST", body: form }) };
  } catch (error) {
    outcome = { problem: error.problem };
  }
  const entry = { clip, name, outcome, motion: {} };
  remember(entry);
  if (mine === turn) show(outcome);
  if (outcome.problem) return;
  entry.motion = await findMotion(form); // after the answer, so as not to delay it
  if (mine === turn) showMotion(entry.motion);
}

async function record() {
  const button = at("record");
  button.disabled = true;
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
drop.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  file.click();
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // otherwise the browser opens the file
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}
player.addEventListener("error", () => {
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
at("record").addEventListener("click", record);
at("record").hidden = !(navigator.mediaDevices && window.MediaRecorder);
at("curl").textContent = `curl -F file=@clip.mp4 ${new URL("classify", document.baseURI)}`;
showModel();
setInterval(showModel, POLL_MS);
