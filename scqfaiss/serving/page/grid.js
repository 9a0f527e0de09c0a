// Hits as a grid of tiles: each a button that searches for more like it; arrow keys move between them.

import { showImage } from "./server.js";

const SMALL = 64; // pixels: images up to this are shown with hard edges

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export function number(value) {
  const digits = Math.abs(value) >= 1000 ? 0 : Math.abs(value) >= 10 ? 2 : 3;
  return value.toFixed(digits);
}

export function percent(value) {
  return `${value < 0.1 ? (100 * value).toFixed(1) : Math.round(100 * value)} %`;
}

// A square with the image of an item, or with its id where there is none.
export function frame(gallery, id, item) {
  const made = element("span", "frame");
  if (!item?.image || !gallery.images) {
    made.append(element("span", "", id));
    return made;
  }
  const img = element("img");
  img.alt = item.title || `Id ${id}`;
  img.decoding = "async";
  img.loading = "lazy";
  img.addEventListener("load", () => img.classList.toggle("pixels", Math.max(img.naturalWidth, img.naturalHeight) <= SMALL));
  img.addEventListener("error", () => img.replaceWith(element("span", "", id)));
  made.append(img);
  showImage(img, gallery.name, id);
  return made;
}

function tile(gallery, hit, search) {
  const { id, item, score, probability } = hit;
  const button = element("button", "hit");
  button.type = "button";
  button.dataset.id = id;
  const title = item?.title || `Id ${id}`;
  const under = element("span", "under");
  const said = [title];
  if (item?.label) {
    under.append(element("span", "label-of", item.label));
    said.push(item.label);
  }
  if (score !== null) {
    under.append(element("span", "score", number(score)));
    said.push(`score ${number(score)}`);
  }
  if (probability !== null) {
    under.append(element("span", "probability", percent(probability)));
    said.push(`probability ${percent(probability)}`);
  }
  button.setAttribute("aria-label", said.join(", "));
  button.setAttribute("aria-describedby", "arrows");
  button.title = [item?.title, `id ${id}`].filter(Boolean).join("\n");
  const shown = frame(gallery, id, item);
  shown.append(element("span", "more", "More like this"));
  button.append(shown, element("span", "title", title), under);
  button.addEventListener("click", () => search(id));
  return button;
}

// Of all tiles of a grid one is reached by Tab; from there on arrow keys go.
function move(grid, event) {
  const tiles = [...grid.querySelectorAll(".hit")];
  const at = tiles.indexOf(event.target.closest(".hit"));
  if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  const columns = tiles.filter((one) => one.offsetTop === tiles[0].offsetTop).length;
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: tiles.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  if (tiles[to]) tiles[to].focus();
}

export function grid(gallery, hits, search) {
  const made = element("ol", "grid");
  made.setAttribute("role", "list"); // which Safari takes from lists without numbers
  for (const [i, hit] of hits.entries()) {
    const line = element("li");
    const button = tile(gallery, hit, search);
    button.tabIndex = i ? -1 : 0;
    line.append(button);
    made.append(line);
  }
  made.addEventListener("keydown", (event) => move(made, event));
  made.addEventListener("focusin", (event) => {
    for (const one of made.querySelectorAll(".hit")) one.tabIndex = one === event.target.closest(".hit") ? 0 : -1;
  });
  return made;
}
