"use strict";
const find = (id) => document.getElementById(id);
const PAGE_SIZE = 24, PICTURES_AT_ONCE = 4, PICTURE_SIDE = 384;
const state = { token: sessionStorage.getItem("token") || "", caches: [], waiting: [], drawing: 0 };

async function request(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  let response = await fetch(path, { ...options, headers });
  for (let trial = 0; response.status === 429 && trial < 5; trial++) {
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => { setTimeout(resolve, seconds * 1000); });
    response = await fetch(path, { ...options, headers });
  }
  if (response.status === 401) find("token-form").hidden = false;
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(problem.detail || `the service answered ${response.status}`);
  }
  return response;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function formatBytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit++; }
  return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
}

function addRow(body, cells) {
  const row = body.appendChild(element("tr"));
  for (const [text, className] of cells) row.append(element("td", text, className));
}

function modelName(cache) {
  const model = cache.fingerprint.model;
  if (model && typeof model === "object") return String(model.id || model.name || "");
  return String(model || cache.fingerprint.model_id || cache.fingerprint.model_name || "");
}

async function loadCaches() {
  try {
    state.caches = (await (await request("/api/v1/caches")).json()).caches;
  } catch (error) {
    find("summary").textContent = `Nothing can be shown: ${error.message}`;
    return;
  }
  find("token-form").hidden = true;
  const maps = state.caches.reduce((sum, cache) => sum + cache.num_maps, 0);
  const bytes = state.caches.reduce((sum, cache) => sum + cache.num_bytes, 0);
  find("summary").textContent =
    `${state.caches.length} cache${state.caches.length === 1 ? "" : "s"}, ` +
    `${maps.toLocaleString("en")} depth maps, ${formatBytes(bytes)}`;
  find("cache").replaceChildren(...state.caches.map((cache) => new Option(cache.name)));
  listCaches();
  if (state.caches.length) await showCache();
  else find("commands").textContent = commands("");
}

function listCaches() {
  const words = find("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = state.caches.filter((cache) => {
    const text = [cache.name, ...cache.datasets, ...cache.licences, JSON.stringify(cache.fingerprint)]
      .join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  find("found").textContent = words.length
    ? `${found.length} of ${state.caches.length} caches` : "";
  find("caches").replaceChildren();
  for (const cache of found) {
    const damaged = cache.damaged_segments.length;
    addRow(find("caches"), [
      [cache.name + (damaged ? ` (${damaged} damaged segments)` : ""), "name"],
      [modelName(cache)],
      [cache.datasets.join(", ")],
      [cache.num_maps.toLocaleString("en"), "number"],
      [cache.num_failed.toLocaleString("en"), "number"],
      [cache.num_segments.toLocaleString("en"), "number"],
      [formatBytes(cache.num_bytes), "number"],
    ]);
  }
  if (found.length && !found.some((cache) => cache.name === find("cache").value)) {
    find("cache").value = found[0].name;
    return true;
  }
  return false;
}

function flatten(value, prefix, into) {
  for (const [key, item] of Object.entries(value)) {
    const name = prefix ? `${prefix}.${key}` : key;
    if (item && typeof item === "object" && !Array.isArray(item)) flatten(item, name, into);
    else into.push([name, Array.isArray(item) ? JSON.stringify(item) : String(item)]);
  }
  return into;
}

async function showCache() {
  const name = find("cache").value;
  const cache = await (await request(`/api/v1/caches/${encodeURIComponent(name)}`)).json();
  find("fingerprint").replaceChildren();
  for (const [key, value] of flatten(cache.fingerprint, "", [])) {
    find("fingerprint").append(element("dt", key), element("dd", value));
  }
  find("segments").replaceChildren();
  for (const segment of cache.segments.slice(0, 20)) {
    addRow(find("segments"), [
      [segment.id, "name"],
      [String((segment.seal.provenance || {}).dataset || "")],
      [new Date(segment.sealed * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC"],
      [segment.pinned ? "yes" : "no"],
      [segment.num_objects.toLocaleString("en"), "number"],
      [formatBytes(segment.num_bytes), "number"],
    ]);
  }
  find("commands").textContent = commands(name);
  await listMaps();
}

function commands(name) {
  const base = location.origin;
  const cache = name ? `${base}/${name}` : base;
  return [
    "# compute only the maps that the team does not have yet",
    `pipeline depth CONFIG --upstream ${base}`,
    "# train from this cache",
    `pipeline train CONFIG --cache ${cache}`,
    "# copy it to a local folder, or add a local one (needs a token that may write)",
    `pipeline cache pull ${base} LOCAL_ROOT`,
    `pipeline cache push LOCAL_ROOT ${base}`,
  ].join("\n");
}

const visible = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((each) => each.isIntersecting)) {
    visible.unobserve(entry.target);
    state.waiting.push(entry.target);
  }
  drawPictures();
}, { rootMargin: "200px" });

async function drawPictures() {
  while (state.waiting.length && state.drawing < PICTURES_AT_ONCE) {
    const frame = state.waiting.shift();
    if (!frame.isConnected) continue;
    state.drawing++;
    drawPicture(frame).finally(() => { state.drawing--; drawPictures(); });
  }
}

async function drawPicture(frame) {
  const { cache, digest, name } = frame.dataset;
  const path = `/api/v1/caches/${encodeURIComponent(cache)}/maps/${digest}.png?side=${PICTURE_SIDE}`;
  const picture = element("img");
  picture.alt = `Depth of ${name}: bright is nearer, dark is farther`;
  try {
    picture.src = URL.createObjectURL(await (await request(path)).blob());
    await picture.decode();
    frame.replaceChildren(picture);
    find("legend").hidden = false;
  } catch (error) {
    frame.replaceChildren(element("span", error.message, "missing"));
  } finally {
    URL.revokeObjectURL(picture.src);
  }
}

function pictureFrame(cache, digest, name) {
  const frame = element("div", undefined, "frame");
  Object.assign(frame.dataset, { cache, digest, name });
  visible.observe(frame);
  return frame;
}

async function listMaps(offset = 0) {
  const cache = find("cache").value, prefix = find("key").value.trim().toLowerCase();
  const said = find("listed");
  if (!/^[0-9a-f]*$/.test(prefix)) { said.textContent = "A key has 64 hexadecimal digits."; return; }
  const query = new URLSearchParams({ prefix, offset, limit: PAGE_SIZE });
  const ticket = state.listing = {};
  let answer;
  try {
    answer = await (await request(`/api/v1/caches/${encodeURIComponent(cache)}/maps?${query}`)).json();
  } catch (error) {
    said.textContent = `Could not list: ${error.message}`;
    return;
  }
  if (ticket !== state.listing) return; // asked for something else meanwhile
  if (!offset) find("gallery").replaceChildren();
  for (const { digest, segment, bucket } of answer.maps) {
    const item = find("gallery").appendChild(element("li"));
    const key = element("div", digest, "digest");
    key.title = digest;
    item.append(pictureFrame(cache, digest, digest.slice(0, 12)), key);
    item.append(element("div", `${bucket} in ${segment.slice(0, 8)}`, "note"));
  }
  const shown = offset + answer.maps.length;
  said.textContent = prefix
    ? `${answer.num_maps.toLocaleString("en")} maps whose key begins with ${prefix}, ${shown} shown`
    : `${answer.num_maps.toLocaleString("en")} maps, ${shown} shown, those of the newest segment first`;
  find("more").hidden = shown >= answer.num_maps;
  find("more").onclick = () => listMaps(shown);
}

async function lookUp(images) {
  const cache = find("cache").value;
  const results = find("results");
  results.replaceChildren();
  if (!cache) { find("coverage").textContent = "This service holds no cache yet."; return; }
  try {
    const response = await request(`/api/v1/caches/${encodeURIComponent(cache)}/lookup`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ digests: images.map((image) => image.digest) }),
    });
    const answer = await response.json();
    find("coverage").textContent =
      `${answer.num_present} of ${answer.num_digests} image${images.length === 1 ? "" : "s"} present`;
    for (const [i, image] of images.entries()) {
      const item = results.appendChild(element("li"));
      const location = answer.locations[i];
      if (location) item.append(pictureFrame(cache, image.digest, image.name));
      item.append(element("div", image.name), element("div", image.digest, "digest"));
      item.append(element("div", location ? "present" : "missing", location ? "present" : "missing"));
      if (location) item.append(element("div", `map ${answer.buckets[location[1]]}, row ${location[2]}`));
    }
  } catch (error) {
    find("coverage").textContent = `Could not look up: ${error.message}`;
  }
}

async function digestOf(file) {
  const data = await file.arrayBuffer();
  if (!globalThis.crypto || !crypto.subtle) return sha256Hex(new Uint8Array(data));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function lookUpFiles(files) {
  const images = [];
  for (const file of files) {
    find("coverage").textContent = `Hashing ${file.name}…`;
    images.push({ name: file.name, digest: await digestOf(file) });
  }
  if (images.length) await lookUp(images);
}

const sayFailure = (error) => { find("summary").textContent = error.message; };
find("key-form").addEventListener("submit", (event) => { event.preventDefault(); listMaps(); });
find("words").addEventListener("input", () => { if (listCaches()) showCache().catch(sayFailure); });
find("cache").addEventListener("change", () => showCache().catch(sayFailure));
find("files").addEventListener("change", (event) => lookUpFiles(event.target.files));
find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = find("token").value;
  sessionStorage.setItem("token", state.token);
  loadCaches();
});
find("copy").hidden = !navigator.clipboard; // plain HTTP from another machine has none
find("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(find("commands").textContent);
  find("copy").textContent = "Copied";
});
const drop = find("drop");
for (const type of ["dragenter", "dragover"]) {
  drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  lookUpFiles(event.dataTransfer.files);
});
loadCaches();
