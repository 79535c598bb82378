"use strict";
// Draws the snapshots of /events, one a second. All text in them is set as text, never as markup:
// other programs choose the names of paths and consumers, and URLs.

const byId = (id) => document.getElementById(id);
const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const HOLDER_COLOURS = 8;

// ---- formats of figures

const bytes = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit + 1 < units.length) { count /= 1024; unit += 1; }
  return `${unit === 0 ? count : count.toFixed(count < 10 ? 2 : 1)} ${units[unit]}`;
};
const number = (value) => value >= 1e6 ? `${(value / 1e6).toFixed(value < 1e7 ? 2 : 1)} M`
  : value >= 1e4 ? `${(value / 1e3).toFixed(1)} k`
  : Number.isInteger(value) || value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1);
const millis = (value) => value == null ? "–" : value < 1 ? `${Math.round(value * 1000)} µs`
  : value < 1000 ? `${value.toFixed(value < 10 ? 1 : 0)} ms` : `${(value / 1000).toFixed(1)} s`;
const duration = (ms) => {
  const seconds = Math.floor(ms / 1000), minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  if (hours >= 24) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  if (hours > 0) return `${hours} h ${minutes % 60} min`;
  return minutes > 0 ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
};
// Times up to this one are shown as milliseconds: they occur in tests.
const SMALL = 31_536_000_000;
const ENDLESS = 4_102_444_800_000;
const time = (at) => at >= ENDLESS ? "without end" : at <= 0 ? (at === 0 ? "0" : "ever")
  : at < SMALL ? `${at.toLocaleString("en")} ms` : `${new Date(at).toISOString().replace("T", " ").replace(".000Z", "").replace("Z", "")} UTC`;
const several = (count, one, more) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;

// ---- canvases

// Gives the canvas the resolution of the screen, `height` high; draws in CSS pixels.
const prepare = (canvas, height) => {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return [context, width];
};

// ---- the timeline

const ROW = 20, BAR = 13;
const timeline = {
  canvas: byId("timeline"), paths: [], fit: null, view: null, chosen: null,
  gutter(width) { return width < 560 ? 0 : Math.min(300, width * 0.3); },
  rowHeight(width) { return width < 560 ? ROW + 15 : ROW; },
  range() { return this.view ?? this.fit ?? [0, 1]; },
  x(at, width) {
    const [from, until] = this.range(), gutter = this.gutter(width);
    return gutter + (at - from) / (until - from) * (width - gutter);
  },
  show(snapshot) {
    this.paths = snapshot.paths;
    this.fit = snapshot.window ?? this.fit;
    byId("paths-count").textContent = several(snapshot.paths.length, "path", "paths")
      + (snapshot.more_paths ? ` of ${(snapshot.paths.length + snapshot.more_paths).toLocaleString("en")}, asked for last` : "");
    this.draw();
  },
  draw() {
    const rowHeight = this.rowHeight(this.canvas.clientWidth);
    const [context, width] = prepare(this.canvas, Math.max(1, this.paths.length) * rowHeight + 4);
    const gutter = this.gutter(width);
    const colours = Object.fromEntries(["absent", "known", "resident", "pinned"].map((name) => [name, colour(name)]));
    const [ink, faint, line, sheet, focus] = ["ink", "faint", "line", "sheet", "focus"].map(colour);
    const ticks = this.ticks(width);
    context.strokeStyle = line;
    for (const at of ticks) {
      const x = Math.round(this.x(at, width)) + 0.5;
      context.beginPath(); context.moveTo(x, 0); context.lineTo(x, this.paths.length * rowHeight); context.stroke();
    }
    this.paths.forEach((path, row) => {
      const top = row * rowHeight + (gutter ? 3 : 17);
      for (const [place, span] of path.spans.entries()) {
        const left = Math.max(gutter, this.x(span.from, width)), right = Math.min(width, this.x(span.until, width));
        if (right <= gutter || left >= width) continue;
        context.fillStyle = colours[span.state];
        const height = span.state === "absent" ? 3 : BAR;
        const y = span.state === "absent" ? top + BAR / 2 - 1.5 : top;
        context.beginPath();
        context.roundRect(left, y, Math.max(1.5, right - left - (right - left > 4 ? 1 : 0)), height, 2);
        context.fill();
        if (this.chosen?.row === row && this.chosen.place === place) {
          context.strokeStyle = focus; context.lineWidth = 2;
          context.strokeRect(left, y - 1, Math.max(2, right - left), height + 2);
          context.lineWidth = 1;
        }
      }
      context.fillStyle = this.chosen?.row === row ? ink : faint;
      context.textBaseline = "middle";
      const label = this.shorten(context, path.path, (gutter || width) - 10);
      context.fillText(label, 0, gutter ? top + BAR / 2 + 0.5 : row * rowHeight + 8);
    });
    if (this.paths.length === 0) {
      context.fillStyle = faint; context.fillText("Nobody has asked for anything yet.", 0, 12);
    }
    this.drawAxis(ticks, faint, line, sheet);
  },
  shorten(context, text, room) {
    if (context.measureText(text).width <= room) return text;
    while (text.length > 4 && context.measureText(`…${text}`).width > room) text = text.slice(1);
    return `…${text}`;
  },
  ticks(width) {
    const [from, until] = this.range(), room = Math.max(2, (width - this.gutter(width)) / 130);
    const units = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 3e4, 6e4, 12e4, 3e5, 6e5, 18e5, 36e5,
      72e5, 216e5, 432e5, 864e5, 1728e5, 6048e5, 12096e5, 2592e6, 7776e6, 31536e6, 15768e7];
    const unit = units.find((step) => (until - from) / step <= room) ?? 31536e7;
    const ticks = [];
    for (let at = Math.ceil(from / unit) * unit; at < until && ticks.length < 50; at += unit) ticks.push(at);
    ticks.unit = unit;
    return ticks;
  },
  drawAxis(ticks, faint, line) {
    const [context, width] = prepare(byId("axis"), 20);
    context.fillStyle = faint; context.strokeStyle = line; context.textBaseline = "middle";
    for (const at of ticks) {
      const x = Math.round(this.x(at, width)) + 0.5;
      context.beginPath(); context.moveTo(x, 13); context.lineTo(x, 20); context.stroke();
      const whole = time(at).replace(" UTC", "");
      const label = at < SMALL ? whole : ticks.unit >= 864e5 ? whole.slice(0, 10) : whole.slice(5, ticks.unit < 6e4 ? 23 : 16);
      if (x + context.measureText(label).width < width) context.fillText(label, x + 3, 8);
    }
  },
  at(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, width = box.width;
    const row = Math.floor((event.clientY - box.top) / this.rowHeight(width)), path = this.paths[row];
    const place = path?.spans.findIndex((span) => {
      const left = this.x(span.from, width), right = this.x(span.until, width);
      return left - 1 <= x && x < Math.max(right, left + 2);
    });
    return path && place >= 0 && x >= this.gutter(width) ? { row, place } : null;
  },
  choose(chosen) {
    this.chosen = chosen;
    const path = chosen && this.paths[chosen.row], span = path?.spans[chosen.place];
    if (span) {
      const what = { absent: "nothing is valid", known: "not in memory", resident: "in memory, a candidate for eviction", pinned: "in memory, pinned" }[span.state];
      byId("timeline-readout").textContent = `${path.path}: ${time(span.from)} to ${time(span.until)}, ${what}`
        + (span.id ? `, version ${span.id}` : "") + (span.size_bytes == null ? "" : `, ${bytes(span.size_bytes)}`);
    }
    this.draw();
  },
  zoom(factor, shift = 0) {
    const [from, until] = this.range(), width = until - from, middle = (from + until) / 2 + shift * width;
    const half = Math.min(Math.max(width * factor / 2, 2), 2e12);
    this.view = [middle - half, middle + half];
    this.draw();
  },
  act(name) {
    if (name === "reset") { this.view = null; this.draw(); }
    else this.zoom(...{ in: [0.5], out: [2], earlier: [1, -0.25], later: [1, 0.25] }[name]);
  },
  key(event) {
    const actions = { "+": "in", "=": "in", "-": "out", 0: "reset", Home: "reset" };
    if (event.shiftKey && event.key === "ArrowLeft") this.act("earlier");
    else if (event.shiftKey && event.key === "ArrowRight") this.act("later");
    else if (actions[event.key]) this.act(actions[event.key]);
    else if (event.key.startsWith("Arrow")) this.step(event.key);
    else if (event.key === "Escape") this.choose(null);
    else return;
    event.preventDefault();
  },
  step(key) {
    const rows = this.paths.length;
    if (rows === 0) return;
    let { row, place } = this.chosen ?? { row: 0, place: null };
    const before = this.paths[row]?.spans[place];
    if (key === "ArrowDown" && this.chosen) row = Math.min(rows - 1, row + 1);
    if (key === "ArrowUp") row = Math.max(0, row - 1);
    const spans = this.paths[row].spans, [from, until] = this.range();
    if (before && key === "ArrowRight") place += 1;
    else if (before && key === "ArrowLeft") place -= 1;
    else {
      // In another row: the nearest span below or above; at first: a visible span.
      const at = before ? Math.max(before.from, from) : from;
      place = spans.findIndex((span) => span.until > at);
    }
    place = Math.min(Math.max(place, 0), spans.length - 1);
    const span = spans[place];
    if (span && (span.until <= from || span.from >= until)) {
      // Scrolls to the selected span.
      const begin = span.until <= from ? span.until - (until - from) / 2 : span.from - (until - from) / 2;
      this.view = [begin, begin + (until - from)];
    }
    this.choose({ row, place });
    const frame = byId("timeline-frame"), height = this.rowHeight(this.canvas.clientWidth), top = row * height;
    if (top < frame.scrollTop) frame.scrollTop = top;
    if (top + height > frame.scrollTop + frame.clientHeight) frame.scrollTop = top + height - frame.clientHeight;
  },
};
timeline.canvas.addEventListener("keydown", (event) => timeline.key(event));
timeline.canvas.addEventListener("mousemove", (event) => { const at = timeline.at(event); if (at) timeline.choose(at); });
for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => timeline.act(button.dataset.view));

// ---- the segments

const CELL = 11, GAP = 1;
const segments = {
  all: new Map(), holders: [], chosen: null,
  show(snapshot) {
    this.holders = snapshot.holders;
    byId("segments-count").textContent = several(snapshot.segments.length + snapshot.more_segments, "segment", "segments")
      + `, ${several(snapshot.objects, "object", "objects")}`;
    const pinned = this.holders.map(() => 0);
    for (const segment of snapshot.segments) for (const piece of segment.pieces) for (const by of piece.by) pinned[by] += piece.pinned_bytes;
    byId("holders").replaceChildren(
      make("li", {}, make("i", { class: "swatch absent" }), "free"),
      make("li", {}, make("i", { class: "swatch resident" }), "candidates for eviction"),
      ...this.holders.map((name, place) => {
        const swatch = make("i", { class: "swatch" });
        swatch.style.background = colour(`holder${place % HOLDER_COLOURS}`);
        return make("li", {}, swatch, `pinned by ${name} `, make("b", {}, bytes(pinned[place])));
      }));
    const present = new Set();
    for (const segment of snapshot.segments) {
      const key = `${segment.kind} ${segment.id}`;
      present.add(key);
      let shown = this.all.get(key);
      if (!shown) { shown = this.add(key); this.all.set(key, shown); }
      shown.segment = segment;
      const used = segment.pieces.reduce((sum, piece) => sum + piece.used_bytes, 0);
      const objects = segment.pieces.reduce((sum, piece) => sum + piece.objects, 0);
      shown.title.textContent = `${key}: ${bytes(used)} of ${bytes(segment.size_bytes)} used, ${several(objects, "object", "objects")}`;
      shown.canvas.setAttribute("aria-label", `${shown.title.textContent}. Arrow keys go from block to block.`);
    }
    for (const [key, shown] of this.all) if (!present.has(key)) { shown.box.remove(); this.all.delete(key); }
    this.draw();
  },
  add(key) {
    const title = make("p"), canvas = make("canvas", { tabindex: "0", role: "application", "aria-roledescription": "map of blocks", "aria-describedby": "segments-readout" });
    const box = make("div", { class: "segment" }, title, canvas);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const pieces = this.all.get(key).segment.pieces, before = this.chosen?.key === key ? this.chosen.place : -1;
      if (pieces.length) this.choose(key, Math.min(Math.max(before + step, 0), pieces.length - 1));
    });
    canvas.addEventListener("mousemove", (event) => {
      const shown = this.all.get(key), rect = canvas.getBoundingClientRect();
      const column = Math.floor((event.clientX - rect.left) / (CELL + GAP)), row = Math.floor((event.clientY - rect.top) / (CELL + GAP));
      const cell = row * shown.columns + column, from = cell * shown.cellBytes, until = from + shown.cellBytes;
      const place = shown.segment.pieces.findIndex((piece) => piece.at < until && piece.at + piece.length > from);
      if (column < shown.columns && place >= 0) this.choose(key, place);
    });
    byId("segments").append(box);
    return { box, title, canvas };
  },
  choose(key, place) {
    this.chosen = { key, place };
    const piece = this.all.get(key)?.segment.pieces[place];
    if (piece) {
      const what = piece.objects === 1 ? piece.path : `${several(piece.objects, "object", "objects")}, one of ${piece.path}`;
      const by = piece.by.map((holder) => this.holders[holder]).join(", ");
      byId("segments-readout").textContent = `${key}, at ${bytes(piece.at)}: ${bytes(piece.used_bytes)}, ${what}, `
        + (piece.pinned_bytes ? `pinned${by ? ` by ${by}` : ""}` : "a candidate for eviction");
    }
    this.draw();
  },
  draw() {
    const [free, resident, pinned, line, focus] = ["absent", "resident", "pinned", "line", "focus"].map(colour);
    const holders = Array.from({ length: HOLDER_COLOURS }, (_, place) => colour(`holder${place}`));
    const many = this.all.size > 8;
    for (const [key, shown] of this.all) {
      const { segment, canvas } = shown;
      const columns = Math.max(1, Math.floor(canvas.clientWidth / (CELL + GAP))), rows = many ? 2 : 5;
      const cells = columns * rows, cellBytes = segment.size_bytes / cells;
      Object.assign(shown, { columns, cellBytes });
      const [context] = prepare(canvas, rows * (CELL + GAP));
      // Content of each cell: bytes, pinned bytes, and the holder that pins most of it.
      const used = new Float64Array(cells), held = new Float64Array(cells), holder = new Int8Array(cells).fill(-1), chosen = new Set();
      segment.pieces.forEach((piece, place) => {
        const first = Math.floor(piece.at / cellBytes), last = Math.min(cells - 1, Math.floor((piece.at + piece.length - 1) / cellBytes));
        for (let cell = first; cell <= last; cell += 1) {
          const part = (Math.min((cell + 1) * cellBytes, piece.at + piece.length) - Math.max(cell * cellBytes, piece.at)) / piece.length;
          used[cell] += piece.used_bytes * part;
          held[cell] += piece.pinned_bytes * part;
          if (piece.pinned_bytes && piece.by.length) holder[cell] = piece.by[0];
          if (this.chosen?.key === key && this.chosen.place === place) chosen.add(cell);
        }
      });
      for (let cell = 0; cell < cells; cell += 1) {
        const x = cell % columns * (CELL + GAP), y = Math.floor(cell / columns) * (CELL + GAP);
        context.fillStyle = free;
        context.fillRect(x, y, CELL, CELL);
        if (used[cell] > 0) {
          // Small shares are drawn visibly.
          const full = Math.max(2, Math.min(1, used[cell] / cellBytes) * CELL);
          const firm = held[cell] > 0 ? Math.max(2, held[cell] / used[cell] * full) : 0;
          context.fillStyle = resident;
          context.fillRect(x, y + CELL - full, CELL, full);
          context.fillStyle = holder[cell] >= 0 ? holders[holder[cell] % HOLDER_COLOURS] : pinned;
          context.fillRect(x, y + CELL - Math.min(full, firm), CELL, Math.min(full, firm));
        }
        if (chosen.has(cell)) {
          context.strokeStyle = focus; context.lineWidth = 2;
          context.strokeRect(x + 1, y + 1, CELL - 2, CELL - 2);
          context.strokeStyle = line;
        }
      }
    }
  },
};

// ---- rates

const RATES = [
  ["tables", "tables", number], ["cells from memory", "hits", number], ["objects loaded", "loads", number],
  ["bytes loaded", "loaded_bytes", bytes], ["look-ups", "look_ups", number], ["evictions", "evictions", number],
  ["CCDB requests", "ccdb_requests", number], ["errors", "errors", number],
];
const SPAN = 300_000;
const rates = {
  samples: [], tiles: new Map(),
  add(sample) {
    const last = this.samples.at(-1);
    if (last && sample.at <= last.at) return;
    this.samples.push(sample);
    while (this.samples.length > 2 && this.samples[0].at < sample.at - SPAN) this.samples.shift();
  },
  show() {
    const first = this.samples[0], last = this.samples.at(-1);
    if (!last) return;
    byId("rates-span").textContent = `per second, the last ${duration(last.at - first.at)}`;
    for (const [name, key, write] of RATES) {
      if (!this.tiles.has(key)) {
        const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        svg.setAttribute("viewBox", "0 0 100 30"); svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("aria-hidden", "true");
        const paths = ["area", "line"].map((kind) => {
          const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
          path.setAttribute("class", kind); svg.append(path); return path;
        });
        const value = make("span", { class: "value" });
        byId("rates").append(make("li", { "data-rate": key }, make("span", { class: "name" }, name), value, svg));
        this.tiles.set(key, { value, paths });
      }
      const points = this.samples.slice(1).map((sample, place) => {
        const before = this.samples[place];
        return { at: sample.at, value: Math.max(0, (sample[key] - before[key]) / (sample.at - before.at) * 1000) };
      });
      const tile = this.tiles.get(key), recent = points.slice(-3);
      const now = recent.length ? recent.reduce((sum, point) => sum + point.value, 0) / recent.length : 0;
      tile.value.textContent = write(key === "loaded_bytes" ? Math.round(now) : now);
      const most = Math.max(...points.map((point) => point.value), 1e-9);
      const line = points.map((point) => {
        const x = 100 - (last.at - point.at) / Math.max(last.at - first.at, 10_000) * 100;
        return `${x.toFixed(2)},${(29 - point.value / most * 27).toFixed(2)}`;
      });
      tile.paths[1].setAttribute("d", line.length > 1 ? `M${line.join("L")}` : "");
      tile.paths[0].setAttribute("d", line.length > 1 ? `M${line[0].split(",")[0]},30L${line.join("L")}L100,30Z` : "");
    }
  },
};

// ---- lists

const rows = (table, list, cells, none) => {
  const body = byId(table).tBodies[0];
  if (list.length === 0) {
    body.replaceChildren(make("tr", { class: "none" }, make("td", { colspan: "9" }, none)));
    return;
  }
  // On a narrow screen each cell shows the heading of its column.
  const headings = [...byId(table).tHead.rows[0].cells].map((cell) => cell.textContent);
  body.replaceChildren(...list.map((entry) => {
    const row = cells(entry);
    row.forEach((cell, place) => { cell.dataset.label = headings[place]; });
    return make("tr", {}, ...row);
  }));
};
const text = (value) => make("td", {}, String(value));
const figure = (value) => make("td", { class: "number" }, String(value));
const chip = (state, label) => make("span", { class: `chip ${state}` }, label);
const counted = (id, shown, more) => { byId(id).textContent = `${(shown + more).toLocaleString("en")}${more ? `, the newest ${shown} shown` : ""}`; };

const lists = (snapshot) => {
  counted("timeframes-count", snapshot.timeframes.length, snapshot.more_timeframes);
  rows("timeframes", snapshot.timeframes, (one) => [
    text(one.timeframe), make("td", {}, chip(one.state, one.state)), figure(number(one.rows)), figure(number(one.objects)), figure(bytes(one.bytes)),
    make("td", {}, ...Object.entries(one.consumers).map(([name, state]) => chip(state, `${name}: ${state}`))),
  ], "None is in flight.");
  rows("sources", snapshot.sources, (one) => [
    make("td", { class: "url" }, one.url), make("td", {}, one.up ? chip("up", "up") : chip("down", "down")),
    figure(number(one.requests)), figure(number(one.failures)), figure(millis(one.latency_ms)),
  ], "There is none.");
  counted("sessions-count", snapshot.sessions.length, snapshot.more_sessions);
  rows("sessions", snapshot.sessions, (one) => [text(one.consumer), figure(one.pid), figure(one.uid), figure(bytes(one.pinned_bytes)), figure(one.slots)], "None is attached.");
};

const header = (snapshot) => {
  const entries = [["version", snapshot.version], ["up for", duration(snapshot.uptime_ms)], ["process", snapshot.pid], ["instance", snapshot.epoch]];
  for (const [name, key] of [["a table takes", "answer"], ["a load", "load"]]) {
    if (snapshot.recent_ms[key] != null) entries.unshift([name, millis(snapshot.recent_ms[key])]);
  }
  byId("who").replaceChildren(...entries.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
};

const memory = ({ memory: all }) => {
  const parts = [["pinned", all.pinned_bytes], ["resident", all.used_bytes - all.pinned_bytes]];
  const bar = byId("memory-bar");
  bar.replaceChildren(...parts.map(([name, size]) => {
    const part = make("i", { class: name });
    part.style.width = `${size / all.total_bytes * 100}%`;
    return part;
  }));
  const figures = [["pinned", "pinned", all.pinned_bytes], ["resident", "candidates for eviction", all.used_bytes - all.pinned_bytes], ["absent", "free", all.free_bytes], [null, "largest that fits", all.largest_free_bytes], [null, "in all", all.total_bytes]];
  byId("memory-legend").replaceChildren(...figures.map(([swatch, name, size]) =>
    make("li", {}, ...(swatch ? [make("i", { class: `swatch ${swatch}` })] : []), `${name} `, make("b", {}, bytes(size)))));
  bar.setAttribute("aria-label", `Memory: ${figures.map(([, name, size]) => `${name} ${bytes(size)}`).join(", ")}`);
};

// ---- needs attention

const utc = (at) => `${new Date(at).toISOString().slice(0, 19).replace("T", " ")} UTC`;
const attention = {
  // The time of the first occurrence of each condition, by its text without figures.
  since: new Map(),
  show(snapshot, sample, { notes, lost }) {
    const found = this.find(snapshot, sample, notes, lost);
    const keys = new Set(found.map(({ key }) => key));
    for (const key of this.since.keys()) if (!keys.has(key)) this.since.delete(key);
    // Samples count from the start of the service; the time of day is this browser's.
    for (const key of keys) if (!this.since.has(key)) this.since.set(key, Date.now());
    byId("attention-time").textContent = utc(Date.now());
    byId("attention").replaceChildren(...found.map(({ key, state, label, text, since }) =>
      make("li", {}, chip(state, label), `${text} `,
        make("small", {}, since ? `since ${utc(since)}` : `seen since ${utc(this.since.get(key))}`))));
    if (found.length === 0) byId("attention").append(make("li", {}, chip("up", "fine"), "No condition that needs attention."));
    this.facts(snapshot);
  },
  // `since`: the service's own time, where it knows it.
  find(snapshot, sample, notes, lost) {
    const { memory: all, sources, timeframes } = snapshot, found = [];
    const add = (state, label, key, text, since = null) => found.push({ state, label, key: `${label} ${key}`, text, since });
    for (const segment of lost) add("down", "segment lost", segment, `${segment}.`);
    for (const note of notes) add("waiting", "configuration", note, `${note}.`);
    for (const one of sources) {
      if (!one.up) add("down", "source down", one.url, `${one.url} does not answer, ${several(one.failures, "failure", "failures")} so far.`, one.down_since);
      else if (one.latency_ms > 1000) add("waiting", "slow source", one.url, `${one.url} answers in ${millis(one.latency_ms)}.`);
    }
    const share = all.pinned_bytes / all.total_bytes;
    if (share > 0.9) add("down", "memory", "", `${Math.round(share * 100)} % of the memory is pinned. Tables wait for memory.`);
    const errors = rates.samples.length ? sample.errors - rates.samples[0].errors : 0;
    if (errors > 0) add("waiting", "errors", "", `${several(errors, "request", "requests")} ended with an error in the last ${duration(sample.at - rates.samples[0].at)}.`);
    const loading = timeframes.filter((one) => one.state === "loading").length;
    if (loading > 0) add("waiting", "loading", "", `${several(loading, "timeframe waits", "timeframes wait")} for objects.`);
    return found;
  },
  // The consumer with the most pinned memory, the slowest source, the oldest timeframe.
  facts(snapshot) {
    const pinned = snapshot.holders.map(() => 0);
    for (const segment of snapshot.segments) for (const piece of segment.pieces) for (const by of piece.by) pinned[by] += piece.pinned_bytes;
    const most = pinned.map((size, holder) => [size, snapshot.holders[holder]]).filter(([size]) => size > 0)
      .sort(([one], [other]) => other - one).slice(0, 2).map(([size, name]) => `${name}, ${bytes(size)}`);
    const slowest = snapshot.sources.filter((one) => one.latency_ms != null).sort((a, b) => b.latency_ms - a.latency_ms)[0];
    const oldest = snapshot.timeframes.reduce((first, one) => (first && first.timeframe <= one.timeframe ? first : one), null);
    const missing = oldest ? Object.entries(oldest.consumers).filter(([, state]) => state !== "consumed").map(([name]) => name) : [];
    const entries = [
      ["most memory pinned by", most.join("; ") || "no consumer"],
      ["slowest source", slowest ? `${slowest.url}, ${millis(slowest.latency_ms)}` : "none was asked"],
      ["oldest timeframe", oldest ? `${oldest.timeframe}, not consumed by ${missing.join(", ") || "–"}` : "none in flight"],
    ];
    byId("facts").replaceChildren(...entries.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  },
};

// ---- events

let last = null;
let frames = 0;
const show = ({ snapshot, notes, lost }) => {
  attention.show(snapshot, rates.samples.at(-1), { notes, lost });
  header(snapshot); memory(snapshot); rates.show(); timeline.show(snapshot); segments.show(snapshot); lists(snapshot);
  frames += 1;
  document.body.dataset.frames = frames;
};
const link = (state, label) => { byId("link").dataset.state = state; byId("link").textContent = label; };
const events = new EventSource("/events");
events.addEventListener("history", (event) => { for (const sample of JSON.parse(event.data)) rates.add(sample); });
events.addEventListener("message", (event) => {
  const frame = JSON.parse(event.data);
  // Another instance restarts the counters.
  if (last && last.snapshot.epoch !== frame.snapshot.epoch) rates.samples = [];
  last = frame;
  rates.add(frame.sample);
  link("live", "live");
  show(frame);
});
events.addEventListener("error", () => link("lost", "no answer, trying again"));
const again = () => { if (last) { timeline.draw(); segments.draw(); } };
window.addEventListener("resize", again);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (last) show(last); });
