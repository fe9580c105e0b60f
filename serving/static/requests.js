// Requests to the service: an error status becomes an Error with the problem document.

const UNREACHABLE = { title: "The service cannot be reached", detail: "Is it running?" };

function failure(problem) {
  return Object.assign(new Error(problem.title), { problem });
}

function headers() {
  const key = sessionStorage.getItem("api-key");
  return key ? { Authorization: `Bearer ${key}` } : {};
}

export async function ask(path) {
  let response;
  try {
    response = await fetch(path, { headers: headers() });
  } catch {
    throw failure(UNREACHABLE);
  }
  const body = await response.json().catch(() => ({ title: `Status ${response.status}`, detail: "" }));
  if (!response.ok) throw failure(body);
  return body;
}

// POST one file, and fields of text beside it. `progress` is called with the share that was sent: fetch() does not tell it.
export function send(path, clip, name, { progress, signal, fields = {} } = {}) {
  const request = new XMLHttpRequest();
  const form = new FormData();
  form.append("file", clip, name);
  for (const [field, text] of Object.entries(fields)) form.append(field, text);
  return new Promise((resolve, reject) => {
    request.open("POST", path);
    for (const [header, value] of Object.entries(headers())) request.setRequestHeader(header, value);
    request.responseType = "json";
    if (progress) {
      request.upload.addEventListener("progress", ({ loaded, total }) => progress(loaded / total));
      request.upload.addEventListener("load", () => progress(1));
    }
    request.addEventListener("load", () => {
      const body = request.response ?? { title: `Status ${request.status}`, detail: "" };
      if (request.status === 200) resolve(body);
      else reject(failure(body));
    });
    request.addEventListener("error", () => reject(failure(UNREACHABLE)));
    request.addEventListener("abort", () => reject(failure({ title: "Cancelled", detail: "" })));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}
