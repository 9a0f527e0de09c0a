// The page: what is searched for, and what is shown while it is, and of what was found.

import { element, frame, grid, percent } from "./grid.js";
import { Failure, galleries, items, search, useKey } from "./server.js";

const $ = (id) => document.getElementById(id);
const SHOW_WAITING_AFTER = 150; // milliseconds
const MOST_QUERIES = 20;
const seen = new Map(); // items of hits, by gallery and id: what a query by id is called

let known = new Map(); // galleries by name
let running = null; // AbortController of the search under way
let repeat = null; // the last query, for "Try again"

const gallery = () => known.get($("gallery").value);
const way = () => document.querySelector("[name=way]:checked").value;
const count = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

// ------------------------------------------------------------------------------------------------------------ messages
function say(text) {
  $("status").textContent = text;
}

function notice(text, retry = null, bad = true) {
  const box = element("div", bad ? "notice bad" : "notice");
  box.append(element("p", "", text));
  if (retry) {
    const button = element("button", "", "Try again");
    button.type = "button";
    button.addEventListener("click", retry);
    box.append(button);
  }
  $("alert").replaceChildren(box);
}

function failed(error, retry) {
  if (error.status === 401 || error.status === 403) {
    const first = $("key-form").hidden;
    $("key-form").hidden = false;
    $("key").focus();
    if (!first || error.status === 403) notice("This key is not one of the server's.");
    return;
  }
  if (!(error instanceof Failure)) console.error(error);
  const again = error.status >= 400 && error.status < 500 ? null : retry; // the same would be answered again
  notice(error instanceof Failure ? error.message : "Something went wrong on this page.", again);
}

// --------------------------------------------------------------------------------------------------------------- query
function readIds() {
  const words = $("ids").value.split(/[\s,;]+/).filter(Boolean);
  if (!words.length) throw new Failure("Type an id, or several of them.");
  const bad = words.find((word) => !/^\d{1,19}$/.test(word) || BigInt(word) >= 1n << 63n);
  if (bad !== undefined) throw new Failure(`“${bad.slice(0, 40)}” is no id: ids are whole numbers from 0.`);
  if (words.length > MOST_QUERIES) throw new Failure(`${words.length} ids are given, at most ${MOST_QUERIES} are shown.`);
  return words.map((word) => String(BigInt(word)));
}

function readNumbers() {
  const words = $("numbers").value.split(/[\s,;[\]]+/).filter(Boolean);
  const bad = words.find((word) => !Number.isFinite(Number(word)));
  if (bad !== undefined) throw new Failure(`“${bad.slice(0, 40)}” is no number.`);
  const { d } = gallery();
  if (words.length !== d) throw new Failure(`${count(words.length, "number")} given, ${gallery().name} needs ${d}.`);
  return words.map(Number);
}

let chosen = null; // the image to search with: {file, url, name}

function choose(file) {
  if (!file) return;
  if (chosen) URL.revokeObjectURL(chosen.url);
  chosen = { file, url: URL.createObjectURL(file), name: file.name ? `The image ${file.name}` : "The pasted image" };
  document.querySelector("#drop > img")?.remove();
  $("drop").prepend(preview());
  $("drop-text").textContent = "Drop, paste or choose another one.";
  document.querySelector("[value=image]").checked = true;
  showWay();
  submit();
}

function preview() {
  const img = element("img");
  img.alt = chosen.name;
  img.src = chosen.url;
  return img;
}

function query() {
  const shown = gallery();
  const out = { gallery: shown.name, way: way(), k: Number($("k").value), known: null };
  if (shown.known) out.known = $("auto").checked ? "auto" : Number($("known").value);
  // What scores mean was learned from queries whose class the model's gate weighs.
  out.probability = shown.probability && typeof out.known !== "number";
  out.least = out.probability ? Number($("least").value) : 0;
  if (out.way === "ids") out.ids = readIds();
  else if (out.way === "numbers") out.numbers = readNumbers();
  else if (chosen) out.file = chosen.file;
  else throw new Failure("Choose an image first.");
  return out;
}

// -------------------------------------------------------------------------------------------------------------- search
async function run(asked, fromGrid = false) {
  running?.abort();
  const mine = (running = new AbortController());
  repeat = asked;
  $("alert").replaceChildren();
  $("results").classList.add("stale");
  $("results").setAttribute("aria-busy", "true");
  const started = performance.now();
  const wait = () => {
    const seconds = Math.floor((performance.now() - started) / 1000);
    $("waiting").hidden = false;
    $("waiting-text").textContent = seconds < 2 ? "Searching" : `Searching, ${seconds} s`;
    if (seconds === 3) say("Still searching. Escape cancels.");
  };
  const first = setTimeout(wait, SHOW_WAITING_AFTER);
  const every = setInterval(wait, 1000);
  try {
    const [answer] = await Promise.all([search(asked, mine.signal), lookUp(asked, mine.signal)]);
    show(asked, answer, fromGrid);
  } catch (error) {
    if (running !== mine) return;
    if (error.name === "AbortError") notice("Cancelled.", () => run(asked), false);
    else failed(error, () => run(asked));
    $("results").replaceChildren();
  } finally {
    clearTimeout(first);
    clearInterval(every);
    if (running === mine) {
      running = null;
      $("waiting").hidden = true;
      $("results").classList.remove("stale");
      $("results").removeAttribute("aria-busy");
    }
  }
}

// What the ids are called that are asked for: a row is not among its own hits.
async function lookUp({ gallery: name, ids = [] }, signal) {
  const unseen = known.get(name).items ? ids.filter((id) => !seen.has(`${name} ${id}`)) : [];
  if (!unseen.length) return;
  const found = await items(name, unseen, signal);
  for (const [i, item] of found.entries()) seen.set(`${name} ${unseen[i]}`, item);
}

function submit(event) {
  event?.preventDefault();
  try {
    const asked = query();
    remember(asked);
    run(asked);
  } catch (error) {
    failed(error, null);
  }
}

function moreLike(id, fromGrid = true) {
  document.querySelector("[value=ids]").checked = true;
  $("ids").value = id;
  showWay();
  const asked = query();
  remember(asked);
  run(asked, fromGrid);
}

// ------------------------------------------------------------------------------------------------------------- results
function heading(asked, q) {
  const made = element("div", "asked");
  const id = asked.way === "ids" ? asked.ids[q] : null;
  const item = id === null ? null : seen.get(`${asked.gallery} ${id}`);
  const text = element("div");
  const h2 = element("h2");
  if (id !== null) {
    made.append(frame(gallery(), id, item));
    h2.append(`More like ${item?.title || `id ${id}`}`);
    if (item?.title) h2.append(element("small", "", `id ${id}`));
  } else if (asked.way === "image") {
    const box = element("span", "frame");
    box.append(preview());
    made.append(box);
    h2.append("More like the image");
  } else {
    h2.append("Nearest to the numbers");
  }
  text.append(h2);
  made.append(text);
  return { made, text };
}

function none({ least }) {
  if (least) return `No hits with a probability of ${percent(least)} or more.`;
  return "No hits. The gallery holds nothing that this search may return.";
}

function show(asked, answer, fromGrid) {
  const found = answer.map(({ hits }) => ({ hits: hits.filter(({ probability }) => !asked.least || probability >= asked.least) }));
  for (const { hits } of found) for (const { id, item } of hits) if (item) seen.set(`${asked.gallery} ${id}`, item);
  const sections = found.map(({ hits }, q) => {
    const section = element("section", "found");
    const { made, text } = heading(asked, q);
    text.append(element("p", "", hits.length ? count(hits.length, "hit") : none(asked)));
    section.append(made);
    if (hits.length) section.append(grid(gallery(), hits, moreLike));
    return section;
  });
  $("results").replaceChildren(...sections);
  const n = found.reduce((sum, { hits }) => sum + hits.length, 0);
  say(n ? `${count(n, "hit")} found.` : none(asked));
  if (fromGrid) {
    const first = document.querySelector(".hit");
    (first ?? $("results")).focus({ preventScroll: true });
    $("results").scrollIntoView({ block: "nearest" });
    window.scrollTo({ top: 0 });
  }
}

// End a search whose answer nobody waits for any more.
function drop() {
  running?.abort();
  running = null;
  $("waiting").hidden = true;
  $("results").classList.remove("stale");
  $("results").removeAttribute("aria-busy");
}

// Before anything is searched for: items to begin with.
function showExamples() {
  drop();
  document.title = "Search";
  $("alert").replaceChildren();
  const { name, examples } = gallery();
  for (const { id, item } of examples) seen.set(`${name} ${id}`, item);
  if (!examples.length) {
    $("results").replaceChildren();
    return;
  }
  const section = element("section", "found");
  const asked = element("div", "asked");
  asked.append(element("h2", "", "Begin with one of these"));
  const hits = examples.map(({ id, item }) => ({ id: String(id), item, score: null, probability: null }));
  section.append(asked, grid(gallery(), hits, moreLike));
  $("results").replaceChildren(section);
}

// ------------------------------------------------------------------------------------------------------- address, back
function remember(asked) {
  const parts = new URLSearchParams({ gallery: asked.gallery, k: asked.k });
  if (asked.way === "ids") parts.set("ids", asked.ids.join(","));
  const hash = `#${parts}`;
  document.title = `${asked.way === "ids" ? asked.ids.join(", ") : asked.way} - ${asked.gallery}`;
  if (hash !== location.hash) history.pushState(null, "", hash);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  if (known.has(parts.get("gallery"))) $("gallery").value = parts.get("gallery");
  if ([...$("k").options].some((option) => option.value === parts.get("k"))) $("k").value = parts.get("k");
  showGallery();
  if (!parts.get("ids")) {
    showExamples();
    return;
  }
  document.querySelector("[value=ids]").checked = true;
  $("ids").value = parts.get("ids");
  showWay();
  try {
    run(query());
  } catch (error) {
    failed(error, null);
  }
}

// ----------------------------------------------------------------------------------------------------------- the form
function showGallery() {
  const { d, n, takes, known: weighs, probability } = gallery();
  $("facts").textContent = `${known.size === 1 ? `${gallery().name}, ` : ""}${count(n, "item")}`;
  $("numbers-hint").textContent = `${d} numbers, apart by commas or spaces.`;
  $("known-field").hidden = !weighs;
  $("least-field").hidden = !probability;
  for (const input of document.querySelectorAll("[name=way]")) {
    input.parentElement.hidden = !takes.includes(input.value);
    if (input.checked && input.parentElement.hidden) document.querySelector("[value=ids]").checked = true;
  }
  $("ways").hidden = takes.length < 2;
  showWay();
}

function showWay() {
  for (const name of ["ids", "image", "numbers"]) $(`with-${name}`).hidden = name !== way();
}

function showKnown() {
  $("known").disabled = $("auto").checked;
  $("least").disabled = !$("auto").checked;
  $("known-value").textContent = $("auto").checked ? "" : Number($("known").value).toFixed(2);
}

async function start() {
  try {
    const told = await galleries();
    known = new Map(told.galleries.map((one) => [one.name, one]));
  } catch (error) {
    failed(error, start);
    return;
  }
  $("key-form").hidden = true;
  $("alert").replaceChildren();
  $("gallery").replaceChildren(...[...known.keys()].map((name) => element("option", "", name)));
  $("choice").hidden = known.size < 2;
  $("search").hidden = false;
  recall();
}

const images = (data) => [...(data?.files ?? [])].find((file) => file.type.startsWith("image/"));

$("search").addEventListener("submit", submit);
$("gallery").addEventListener("change", () => {
  showGallery();
  showExamples();
});
$("ways").addEventListener("change", showWay);
$("image").addEventListener("change", () => choose($("image").files[0]));
$("auto").addEventListener("change", showKnown);
$("known").addEventListener("input", showKnown);
for (const id of ["k", "least", "known", "auto"]) $(id).addEventListener("change", () => repeat && submit());
$("cancel").addEventListener("click", () => running?.abort());
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
  start();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
document.addEventListener("paste", (event) => {
  const file = images(event.clipboardData);
  if (file && gallery()?.takes.includes("image")) choose(file);
});
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    const takes = gallery()?.takes.includes("image");
    $("drop").classList.toggle("over", kind === "dragover" && takes);
    if (kind === "dragover" && takes && way() !== "image") {
      document.querySelector("[value=image]").checked = true;
      showWay();
    }
    if (kind === "drop" && takes) {
      const file = images(event.dataTransfer);
      if (file) choose(file);
      else notice("What was dropped is no image.");
    }
  });
window.addEventListener("popstate", recall);
showKnown();
start();
