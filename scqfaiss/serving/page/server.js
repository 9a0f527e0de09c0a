// What the server is asked, and what it answers. Ids are text here: numbers of JavaScript hold 53 bits, ids have 63.

const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
let key = "";

// A request that was answered with an error, or not at all (status 0).
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function useKey(text) {
  key = text;
}

// JSON in which whole numbers beyond 2^53 become text.
export function parse(text) {
  return JSON.parse(text.replace(TOKENS, (token) => (/^-?\d{16,}$/.test(token) ? `"${token}"` : token)));
}

async function reply(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer. It may be stopped, or the network is down.");
  }
  if (!response.ok) throw new Failure(await told(response), response.status);
  return response;
}

async function told(response) {
  let detail;
  try {
    const body = parse(await response.text());
    detail = body.error ?? body.detail;
    if (Array.isArray(detail)) detail = detail.map((one) => one.msg).join("; ");
    if (detail && typeof detail === "object") detail = detail.message;
  } catch {
    detail = undefined;
  }
  const given = typeof detail === "string" && detail ? detail : `The server answered ${response.status}`;
  const text = `${given[0].toUpperCase()}${given.slice(1)}${/[.!?]$/.test(given) ? "" : "."}`;
  const after = Number(response.headers.get("Retry-After"));
  return response.status === 503 && after > 0 ? `${text} Try again in ${after} s.` : text;
}

export async function galleries() {
  return parse(await (await reply("page/galleries.json")).text());
}

// The items of some ids, null for those without.
export async function items(gallery, ids, signal) {
  const path = `page/items/${encodeURIComponent(gallery)}?ids=${ids.join(",")}`;
  return parse(await (await reply(path, { signal })).text()).items;
}

// query: {gallery, way, ids or file or numbers, k, known}. -> [{ids, scores, items, probability}] for each query of it.
export async function search({ gallery, way, ids, file, numbers, k, known, probability }, signal) {
  const options = { method: "POST", signal };
  let path = `v1/galleries/${encodeURIComponent(gallery)}/search`;
  const more = { k, ...(typeof known === "number" ? { known } : {}), ...(probability ? { probability: true } : {}) };
  if (way === "image") {
    options.body = new FormData();
    options.body.append("images", file);
    path += `?${new URLSearchParams(more)}`;
  } else {
    const what = way === "ids" ? `"ids":[${ids.join(",")}]` : `"queries":[[${numbers.join(",")}]]`;
    options.headers = { "Content-Type": "application/json" };
    options.body = `{${what},${JSON.stringify(more).slice(1)}`;
  }
  const answer = parse(await (await reply(path, options)).text());
  return answer.ids.map((row, q) => ({
    hits: row
      .map((id, j) => ({
        id: String(id),
        score: answer.scores[q][j],
        item: answer.items?.[q]?.[j] ?? null,
        probability: answer.probability?.[q]?.[j] ?? null,
      }))
      .filter((hit) => hit.id !== "-1"),
  }));
}

// Show the image of an item in `img`. A key can only be sent by fetch, not by an element.
export async function showImage(img, gallery, id) {
  const path = `v1/galleries/${encodeURIComponent(gallery)}/images/${id}`;
  if (!key) {
    img.src = path;
    return;
  }
  try {
    const url = URL.createObjectURL(await (await reply(path)).blob());
    img.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    img.src = url;
  } catch {
    img.dispatchEvent(new Event("error"));
  }
}
