"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const controls = ["class", "source", "low", "high", "order", "search", "only-marked"].map(find);
  const [classChoice, sourceChoice, low, high, order, search, onlyMarked] = controls;
  const list = find("list"), cards = find("cards"), detail = find("detail");
  const cardWidth = 148, cardHeight = 172, gap = 10, unitsPerPixel = 4;
  const storeKey = "boxdepth-review:" + data.key;
  const marked = new Set(readMarks());
  const drawn = new Map(); // position in `shown` → cell
  let shown = [], chosen = null;

  function readMarks() {
    try {
      const known = new Set(data.objects.map((item) => item.id));
      return JSON.parse(localStorage.getItem(storeKey) || "[]").filter((id) => known.has(id));
    } catch { return []; } // no storage for this page: marks last as long as it is open
  }

  function keepMarks() {
    try { localStorage.setItem(storeKey, JSON.stringify([...marked])); } catch { /* as above */ }
  }

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function picture(item, what) {
    if (!item[what]) return element("span", { class: "frame missing" }, "no picture");
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const add = (name, attributes) => {
      const part = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value);
      svg.append(part);
    };
    const [width, height] = item.size.map((side) => side * unitsPerPixel);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("class", "frame");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${what} of ${data.classes[item.class]} ${item.id}`);
    add("image", { href: "data:image/webp;base64," + item[what], width, height, preserveAspectRatio: "none" });
    const [x1, y1, x2, y2] = item.box;
    const box = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    add("rect", { class: "box-back", ...box });
    add("rect", { class: "box", ...box });
    if (item.outline) {
      add("path", { class: "outline-back", d: item.outline });
      add("path", { class: "outline", d: item.outline });
    }
    return svg;
  }

  function select() {
    const text = search.value.trim().toLowerCase();
    const from = low.value === "" ? 0 : Number(low.value), to = high.value === "" ? 1 : Number(high.value);
    shown = data.objects.filter((item) =>
      (classChoice.value === "" || item.class === Number(classChoice.value)) &&
      (sourceChoice.value === "" || item.source === sourceChoice.value) &&
      item.score >= from && item.score <= to &&
      (!onlyMarked.checked || marked.has(item.id)) &&
      (!text || String(item.id).toLowerCase() === text || item.file.toLowerCase().includes(text)));
    if (order.value === "best") shown.reverse();
    if (order.value === "file") shown.sort((a, b) => a.file < b.file ? -1 : a.file > b.file ? 1 : 0);
    drawn.forEach((cell) => cell.remove());
    drawn.clear();
    if (!shown.includes(chosen)) chosen = shown[0] || null;
    draw();
    drawDetail();
  }

  function numColumns() {
    return Math.max(1, Math.floor((cards.clientWidth + gap) / (cardWidth + gap)));
  }

  // Only the cards near the window exist; the list's height is that of all of them.
  function draw() {
    const columns = numColumns();
    const width = (cards.clientWidth + gap) / columns - gap, pitch = cardHeight + gap;
    cards.style.height = Math.ceil(shown.length / columns) * pitch + "px";
    const top = -cards.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / pitch) - 1) * columns;
    const last = Math.min(shown.length, (Math.ceil((top + window.innerHeight) / pitch) + 1) * columns);
    for (const [position, cell] of drawn) {
      if (position < first || position >= last) { cell.remove(); drawn.delete(position); }
    }
    for (let position = first; position < last; position++) {
      let cell = drawn.get(position);
      if (!cell) {
        cell = makeCard(shown[position], position);
        drawn.set(position, cell);
        cards.append(cell);
      }
      const row = Math.floor(position / columns);
      cell.style.transform = `translate(${(position % columns) * (width + gap)}px, ${row * pitch}px)`;
      cell.style.width = width + "px";
      cell.style.height = cardHeight + "px";
    }
    showMarks();
  }

  function makeCard(item, position) {
    const name = data.classes[item.class];
    const card = element("button", {
      type: "button", class: "card", title: `${item.file}, annotation ${item.id}`,
    }, picture(item, "photo"),
    element("span", { class: "line" }, element("span", {}, name), element("span", { class: "value" }, label(item))));
    card.addEventListener("click", () => choose(item));
    return element("div", {
      class: "cell", role: "listitem", "aria-posinset": position + 1, "aria-setsize": shown.length,
    }, card);
  }

  function label(item) {
    return item.source === "filled_box" ? "filled box" : item.source === "none" ? "no mask" : item.score.toFixed(2);
  }

  function showMarks() {
    for (const [position, cell] of drawn) {
      const item = shown[position], card = cell.firstChild;
      card.classList.toggle("marked", marked.has(item.id));
      card.setAttribute("aria-current", String(item === chosen));
    }
    find("count").textContent =
      `${shown.length} of ${data.objects.length} objects shown, ${marked.size} marked`;
    find("download").disabled = marked.size === 0;
    find("download").textContent = marked.size ? `Download ${marked.size} ids` : "Download ids";
  }

  function drawDetail() {
    if (!chosen) { detail.replaceChildren(element("p", {}, "No object fits the filter.")); return; }
    const pair = element("div", { class: "pair" },
      element("figure", {}, picture(chosen, "photo"), element("figcaption", {}, "photo, mask and box")));
    if (chosen.depth) {
      pair.append(element("figure", {}, picture(chosen, "depth"), element("figcaption", {}, "depth, nearer is brighter")));
    }
    const down = element("button", { type: "button", class: "down", "aria-pressed": String(marked.has(chosen.id)) }, "Thumbs down");
    down.addEventListener("click", toggleMark);
    const previous = element("button", { type: "button" }, "Previous"), next = element("button", { type: "button" }, "Next");
    previous.addEventListener("click", () => step(-1));
    next.addEventListener("click", () => step(1));
    const text = chosen.source === "filled_box"
      ? "filled box: no mask was found, and this counts as none" : `score ${chosen.score.toFixed(3)}, from ${chosen.source}`;
    detail.replaceChildren(pair, element("h2", {}, `${data.classes[chosen.class]} · annotation ${chosen.id}`),
      element("p", {}, `${chosen.file} · ${text}`), element("div", { class: "buttons" }, down, previous, next));
  }

  function choose(item) { chosen = item; showMarks(); drawDetail(); }

  function step(by) {
    if (!shown.length) return;
    const position = Math.min(Math.max(shown.indexOf(chosen) + by, 0), shown.length - 1);
    const row = Math.floor(position / numColumns()), pitch = cardHeight + gap;
    const inSight = matchMedia("(max-width: 860px)").matches ? detail.offsetHeight + 8 : 12;
    const top = cards.getBoundingClientRect().top + row * pitch;
    if (top < inSight) window.scrollBy(0, top - inSight);
    if (top + cardHeight > window.innerHeight) window.scrollBy(0, top + cardHeight - window.innerHeight + gap);
    chosen = shown[position];
    draw();
    drawDetail();
  }

  function toggleMark() {
    if (!chosen) return;
    if (!marked.delete(chosen.id)) marked.add(chosen.id);
    keepMarks();
    showMarks();
    const down = detail.querySelector(".down");
    if (down) down.setAttribute("aria-pressed", String(marked.has(chosen.id)));
  }

  function download() {
    const items = data.objects.filter((item) => marked.has(item.id));
    const content = {
      schema_version: 1, kind: "masks review", annotation_ids: items.map((item) => item.id),
      objects: items.map(({ id, file, score, source }) => ({ id, file_name: file, score, mask_source: source })),
    };
    const address = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2) + "\n"], { type: "application/json" }));
    element("a", { href: address, download: "masks-to-redo.json" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  function toggleBody(name, checkbox) { document.body.classList.toggle(name, !checkbox.checked); }

  const keys = {
    j: () => step(1), k: () => step(-1), d: toggleMark, "/": () => search.focus(),
    m: () => find("show-mask").click(), b: () => find("show-box").click(),
  };
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input[type=search], input[type=number], select");
    if (event.key === "Escape" && isTyping) { event.target.blur(); return; }
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  const used = new Set(data.objects.map((item) => item.class));
  data.classes.forEach((name, index) => used.has(index) && classChoice.append(element("option", { value: index }, name)));
  [...new Set(data.objects.map((item) => item.source))].sort().forEach((name) => sourceChoice.append(element("option", { value: name }, name)));
  for (const control of controls) {
    control.addEventListener(control.matches("input[type=search], input[type=number]") ? "input" : "change", select);
  }
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("show-mask").addEventListener("change", (event) => toggleBody("hide-mask", event.target));
  find("show-box").addEventListener("change", (event) => toggleBody("hide-box", event.target));
  find("download").addEventListener("click", download);
  window.addEventListener("scroll", draw, { passive: true });
  window.addEventListener("resize", draw);
  select();
})();
