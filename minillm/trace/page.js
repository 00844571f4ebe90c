"use strict";
// One state, `at`: the pass, the step, the head and the token that are looked at. `show` draws it all anew.
let known, codes, at = { pass: 0, step: 0, head: -1, token: null };
const $ = id => document.getElementById(id);

// ---- numbers and elements

const say = (n, digits = 3) => n === 0 ? "0"
  : Math.abs(n) >= 1e5 || Math.abs(n) < 1e-3 ? n.toExponential(1) : String(+n.toPrecision(digits));
const percent = p => p === 0 ? "0"
  : p < 0.0001 ? "<0.01 %" : `${(100 * p).toPrecision(p < 0.995 ? 2 : 3).replace(/\.0$/, "")} %`;
const units = (n, names) => {
  let i = 0;
  while (n >= 1000 && i < names.length - 1) { n /= 1000; i++; }
  return `${+n.toPrecision(3)} ${names[i]}`.trim();
};
const bytes = n => units(n, ["B", "kB", "MB", "GB"]);
const count = n => units(n, ["", "thousand", "million", "billion"]);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(2).filter(child => child !== null && child !== undefined));
  return element;
}
const note = (...words) => make("p", { class: "small faint" }, ...words);
const table = (names, rows, more = {}) => make("div", { class: "scroll" }, make("table", more,
  names ? make("tr", {}, names.map(name => make("th", {}, name))) : null, rows));
const said = row => row.slice(0, 4).map(([id, , p]) => make("td", {}, token(id), " ", make("span", { class: "faint" }, percent(p))));
const bar = (p, most = 200) => make("span", { class: "p", style: `width:${Math.max(1, p * most)}px` });

// ---- tokens

function readable(text) { // spaces and control characters that can be seen
  return Array.from(text, c => {
    const code = c.codePointAt(0);
    if (c === " ") return ["·", true];
    if (c === "\n") return ["↵", true];
    if (code < 32) return [String.fromCodePoint(0x2400 + code), true];
    if ((code >= 127 && code < 160) || /[\p{Cf}\p{Zl}\p{Zp}]/u.test(c)) return [`⟨${code.toString(16)}⟩`, true];
    return [c, false];
  });
}
const nameOf = id => readable(known.names[id]).map(([c]) => c).join("");
const short = (text, most) => Array.from(text).length > most ? `${Array.from(text).slice(0, most - 1).join("")}…` : text;
function token(id, kind = "", more = {}) {
  const parts = readable(known.names[id]).map(([c, faint]) => faint ? make("i", {}, c) : c);
  const tag = more.onclick ? "button" : "span";
  return make(tag, { title: `token ${id}`, ...more, class: `token ${kind}` }, parts);
}

const passNow = () => known.passes[at.pass];
const speaks = one => one.kept - 1; // the token after which the pass chooses
const looked = () => at.token === null ? speaks(passNow()) : Math.min(at.token, passNow().tokens.length - 1);
function textOf(one) { // the ids of what a pass sees, its own tokens last
  const text = [...known.passes[0].tokens];
  for (const other of known.passes) { if (other === one) break; text.push(...other.new); }
  return [...text.slice(0, one.start), ...one.tokens];
}
const fate = (one, i) => i >= one.kept ? "gone" : i > 0 && one.drafted.length ? "kept" : "";

// ---- steps

const WORD = {
  Attention: "attention", LatentAttention: "latent attention", MLP: "MLP", MoE: "experts",
  Mamba: "Mamba", Mamba2: "Mamba-2", GatedDeltaNet: "delta net",
};
function steps() { // lens: how many blocks the residual stream has gone through
  const n = known.blocks.length;
  return [
    { kind: "embed", label: "tokens", lens: 0 },
    ...known.blocks.map(({ kind, layer }, block) => ({ kind, block, label: `${layer} ${WORD[kind]}`, lens: block + 1 })),
    ...passNow().drift ? [{ kind: "rounding", label: "rounding", lens: n }] : [],
    { kind: "head", label: "head", lens: n }, { kind: "choice", label: "choice", lens: n },
  ];
}

// ---- what codes of eight bits on a square-root scale stand for

const decoded = new WeakMap();
function values(where) {
  if (!decoded.has(where)) {
    const size = where.shape.reduce((a, b) => a * b, 1), out = new Float32Array(size), levels = where.signed ? 127 : 255;
    for (let i = 0; i < size; i++) {
      const code = codes[where.at + i], c = (where.signed && code > 127 ? code - 256 : code) / levels;
      out[i] = Math.sign(c) * c * c * where.max;
    }
    decoded.set(where, out);
  }
  return decoded.get(where);
}
function soFar() { // [pass, i] of each token that was read and stayed, and of all tokens of this pass
  return known.passes.slice(0, at.pass + 1).flatMap(one =>
    Array.from({ length: one === passNow() ? one.tokens.length : one.kept }, (_, i) => [one, i]));
}

// ---- heat maps

function painted(rows, columns, value, since = 0) { // a pixel a number; rows before `since` are pale
  const canvas = make("canvas", { width: columns, height: rows, "aria-hidden": "true" });
  const draw = canvas.getContext("2d"), image = draw.createImageData(columns, rows);
  const style = getComputedStyle(document.documentElement);
  const [plus, minus] = ["--map", "--minus"].map(name => style.getPropertyValue(name).split(",").map(Number));
  let largest = 1e-30;
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) largest = Math.max(largest, Math.abs(value(r, c)));
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
    const x = value(r, c), color = x < 0 ? minus : plus, pixel = 4 * (r * columns + c);
    for (let i = 0; i < 3; i++) image.data[pixel + i] = color[i];
    image.data[pixel + 3] = 255 * Math.sqrt(Math.abs(x) / largest) * (r < since ? .65 : 1);
  }
  draw.putImageData(image, 0, 0);
  return canvas;
}

// A map that mouse and arrow keys can point at: `label` says what is there, `pick` is what a click or Enter does.
function heat(id, rows, columns, value, { name, label, hint, pick, rowName, mark = null, since = 0, square = false, wide = 720, tall = 420 }) {
  const room = Math.min(wide, panelWidth() - (rowName ? 84 : 0));
  const width = Math.max(1, Math.min(26, Math.floor(room / columns)));
  const height = square ? width : Math.max(1, Math.min(Math.max(width, 13), Math.floor(tall / rows)));
  const canvas = painted(rows, columns, value, since);
  canvas.style.cssText = `width:${width * columns}px;height:${height * rows}px`;
  const read = make("div", { class: "read mono", "aria-live": "polite" }, hint), point = make("div", { class: "point", hidden: true });
  const map = make("div", { class: "map", id, tabindex: 0, role: "img", "aria-label": `${name}: ${rows} by ${columns}; arrow keys point at a number${pick ? ", Enter looks at its token" : ""}` }, canvas, point);
  map.style.width = `${width * columns + 2}px`;
  if (mark !== null && rows > 1) map.append(make("div", { class: "mark", style: `top:${mark * height}px;height:${height}px` }));
  let r = mark ?? 0, c = -1;
  const aim = (row, column) => {
    r = Math.max(0, Math.min(rows - 1, row)); c = Math.max(0, Math.min(columns - 1, column));
    point.style.cssText = `left:${c * width}px;top:${r * height}px;width:${width}px;height:${height}px`;
    point.hidden = false;
    read.textContent = label(r, c);
  };
  const under = event => {
    const box = canvas.getBoundingClientRect();
    aim(Math.floor((event.clientY - box.top) / height), Math.floor((event.clientX - box.left) / width));
  };
  map.addEventListener("pointermove", under);
  map.addEventListener("click", event => { under(event); if (pick) pick(r); });
  const moves = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
  map.addEventListener("keydown", event => {
    if (event.key in moves) aim(r + (c < 0 ? 0 : moves[event.key][0]), c + (c < 0 ? 1 : moves[event.key][1]));
    else if (event.key === "Enter" && pick) pick(r);
    else return;
    event.preventDefault(); event.stopPropagation();
  });
  const names = rowName && height >= 12 ? make("div", { class: "names mono", "aria-hidden": "true" },
    Array.from({ length: rows }, (_, row) => make("div", { style: `height:${height}px;line-height:${height}px` }, short(rowName(row), 10)))) : null;
  return make("div", {}, make("div", { class: "scroll" }, make("div", { class: "side" }, names, map)), read);
}
const padding = () => innerWidth > 760 ? 40 : 24;
const panelWidth = () => document.documentElement.clientWidth - padding() - 6
  - (innerWidth > 760 ? 288 : 0) - (innerWidth >= 1180 ? 272 : 0);

// ---- the code

const shown = new Set(); // functions whose lines are on the page
const opened = new Set(); // and those that the reader has opened
const lines = (kind, ...names) => names.map(name => {
  const one = known.code.lines[kind][name];
  shown.add(one.function);
  return make("div", { class: "line" }, make("code", {}, `${one.file}:${one.line}`), make("code", {}, one.text));
});
function functions() { // whole, with the lines that pages name
  const marked = new Set(Object.values(known.code.lines).flatMap(Object.values).map(one => `${one.file}:${one.line}`));
  return [...shown].map(number => {
    const one = known.code.functions[number];
    const text = one.text.split("\n").map((line, i) => marked.has(`${one.file}:${one.line + i}`) ? make("b", {}, line) : `${line}\n`);
    const toggled = event => opened[event.target.open ? "add" : "delete"](number);
    return make("details", { open: opened.has(number), ontoggle: toggled },
      make("summary", { class: "small", id: `code-${number}` }, "the code around it: ", make("code", {}, `${one.name}, ${one.file}:${one.line}`)),
      make("pre", { tabindex: 0 }, text));
  });
}
const section = (title, ...children) => [make("h3", {}, title), ...children];

// ---- what each step shows

const PANELS = {
  embed(one) {
    const prose = one.start === 0 ? `The prompt is ${one.tokens.length} tokens. All go through the model together: every step below works on all of them at once.`
      : one.drafted.length ? `The newest token, and ${one.drafted.length} drafted after it, a cheap guess of what comes next: one pass checks them all.`
      : "Only the newest token goes through. Of the others the model reads what it remembers.";
    const what = i => one.drafted.length ? make("td", {}, ["", "kept", "gone"].includes(fate(one, i)) && i ? "drafted" : "the newest") : null;
    return [make("h2", {}, one.start === 0 ? "The prompt as tokens" : one.drafted.length ? "The newest token, and a draft" : "The newest token"),
      make("p", {}, prose, " Each id picks a row of the embedding, a vector of d numbers. What becomes of it on its way through the layers is called the residual stream."),
      lines("embed", "rows"),
      table(["position", "token", "id", "length of its vector", one.drafted.length ? "" : null].filter(name => name !== null),
        one.tokens.map((id, i) => make("tr", {}, make("td", { class: "n" }, one.start + i), make("td", {}, token(id)),
          make("td", { class: "n" }, id), make("td", { class: "n" }, say(one.norms[0][i])), what(i))))];
  },
  Attention: attention, LatentAttention: attention,
  MLP(one, block, inside, place) {
    const all = values(inside.inside), n = all.length, f = inside.sizes.f, wide = Math.min(64, n), id = one.tokens[speaks(one)];
    return [make("p", {}, "Each token by itself. A matrix makes f channels of its d numbers, a nonlinearity closes some of them, and a second matrix makes d numbers again, which are added to the residual stream."),
      section(["The channels of ", token(id)], lines("MLP", "inside"),
        heat("map-inside", Math.ceil(n / wide), wide, (r, c) => all[r * wide + c] ?? 0, { name: "channels", wide: 600,
          hint: "point at a channel", label: (r, c) => r * wide + c < n ? `channel ${r * wide + c}: ${say(all[r * wide + c])}` : "" }),
        note(`${n < f ? `The first ${n} of ${f}` : f} numbers, in lines of ${wide}; below zero is in the other colour. A few carry most: ${inside.half} of all ${f} make half of the sum of squares.`))];
  },
  MoE(one, block, inside, place) {
    const i = looked(), e = inside.load.length, rows = soFar();
    const weight = rows.map(([other, r]) => { const row = Array(e).fill(0), there = other.blocks[place];
      there.chosen[r].forEach((expert, m) => { row[expert] = there.share[r][m]; }); return row; });
    const name = r => nameOf(rows[r][0].tokens[rows[r][1]]), total = weight.reduce((sum, row) => sum.map((n, x) => n + (row[x] > 0)), Array(e).fill(0));
    const [most, all] = [inside.load, total].map(load => Math.max(...load, 1));
    return [make("p", {}, `In place of one MLP there are ${e}, the experts. A router scores them for each token and sends it to the best ${inside.chosen[0].length}; what they make of it is added up by these weights. So the model has many more parameters than a token costs.`),
      section(["Where ", token(one.tokens[i]), " goes"], lines("MoE", "routes"),
        make("p", {}, inside.chosen[i].map((expert, m) => [m ? ", " : "", make("b", {}, `expert ${expert}`), ` weight ${say(inside.share[i][m])}`]))),
      section("What each token takes from each expert",
        heat("map-routes", rows.length, e, (r, x) => weight[r][x], { name: "router weights, tokens by experts", rowName: name, wide: 26 * e, mark: one.start + i, since: one.start, pick: pickRow,
          hint: "rows: tokens so far, paler those of earlier passes; columns: experts; point at one", label: (r, x) => `${name(r)} → expert ${x}: ${say(weight[r][x])}` })),
      section("Load: how many tokens each expert serves", lines("MoE", "load"),
        table(["", "in this pass", "so far"], inside.load.map((n, x) => make("tr", {}, make("td", {}, `expert ${x}`),
          make("td", {}, bar(n / most, 110), n), make("td", {}, bar(total[x] / all, 110), total[x])))))];
  },
  Mamba: recurrence, Mamba2: recurrence, GatedDeltaNet: recurrence,
  rounding(one) {
    const i = Math.min(looked(), speaks(one)), most = Math.max(...one.drift.map(row => row[i]));
    const matrices = errors => Object.entries(errors).map(([name, error]) => `${name.replace(/\.weight$/, "")} ${percent(error)}`).join(", ") || "kept as it was";
    const row = (name, errors, lens) => make("tr", {}, make("th", {}, name), make("td", {}, make("span", { class: "p error", style: `width:${Math.max(1, 120 * one.drift[lens][i] / most)}px` }), percent(one.drift[lens][i])), make("td", {}, errors));
    return [make("h2", {}, "What rounding did"),
      make("p", {}, "The weights were rounded to few bits. Each matrix is a little off, and what flows through the layers is the more so the further it gets."),
      section(["How far ", token(one.tokens[i]), " is from where the unrounded model has it"],
        note("|x − exact x| / |exact x| of the residual stream after each step, beside |W − Q| / |W| of the matrices in it."),
        table(["after", "residual stream", "matrices"], [row("embedding", matrices(known.errors), 0),
          ...known.blocks.map((block, b) => row(`${block.layer} ${WORD[block.kind]}`, matrices(block.errors), b + 1))]))];
  },
  head(one) {
    const last = one.lens[one.lens.length - 1], i = speaks(one), all = steps();
    return [make("h2", {}, "What could come next"),
      make("p", {}, "A norm, and one product with the head, turn the vector of ", token(one.tokens[i]), ` into a score for each of the ${known.v} tokens, its logit; softmax makes probabilities of them.`), lines("head", "logits"),
      table(["token", "logit", "probability"], last.map(([id, logit, p]) => make("tr", {}, make("td", {}, token(id)), make("td", { class: "n" }, say(logit, 4)), make("td", {}, bar(p), percent(p))))),
      section("What it would have said earlier",
        note("The logit lens: the same norm and head on the residual stream as it was on the way. The last row is what the model says."),
        table(["after", "length", "likeliest"], one.lens.map((row, b) => make("tr", {}, make("th", {}, b ? all[b].label : "embedding"), make("td", { class: "n" }, say(one.norms[b][i])), said(row)))))];
  },
  choice(one) {
    const { tokens, rows } = one.stages, chosen = one.new[one.new.length - 1], stages = Object.keys(rows);
    const greedy = stages.length === 1, ends = at.pass === known.passes.length - 1;
    const out = [make("h2", {}, "The choice"),
      make("p", {}, greedy ? "Temperature 0: the likeliest token is taken." : "What the model says, and what each stage of the sampler makes of it, from left to right. The token is drawn by the probabilities of the last column."),
      lines("choice", ...stages.slice(1).map(name => name.split(" ")[0]), greedy ? "greedy" : "drawn"),
      table(["token", ...stages.map(name => name.replace("logits", "softmax").replace("_", "-"))], [
        ...tokens.map((id, i) => make("tr", { class: id === chosen ? "here" : false }, make("td", {}, token(id, id === chosen ? "new" : "")),
          Object.values(rows).map(row => make("td", {}, bar(row.p[i], 120), percent(row.p[i]))))),
        make("tr", {}, make("th", {}, "possible"), Object.values(rows).map(row => make("td", { class: "faint" }, `${row.left} tokens`)))]),
      make("p", {}, "Chosen: ", token(chosen, "new"), !ends ? " It is what the next pass takes in." : known.finish === "stop" ? " Here the model ends the text." : " Here the trace ends, with as many tokens as were asked for.")];
    if (one.drafted.length) out.push(...section("The draft", lines("choice", "draft"),
      make("p", {}, `A drafted token stays if it is the one that the model draws there itself, so the text is what it would have been anyway. ${one.kept - 1} of ${one.drafted.length} accepted: this pass gave ${one.new.length} token${one.new.length > 1 ? "s" : ""}.`),
      table(["drafted", "the model draws", ""], one.drafted.map((id, i) => make("tr", {}, make("td", {}, token(id, fate(one, i + 1))),
        make("td", {}, i < one.new.length ? token(one.new[i]) : null),
        make("td", {}, i < one.kept - 1 ? "accepted" : i === one.kept - 1 ? "rejected" : "falls with the one before it"))))));
    return [...out, section("What stays is committed", lines("commit", one.drafted.length ? "verify" : one.pages.length ? "read" : "advance"),
      note(`Every block had only proposed what to remember; now it keeps ${one.kept === 1 ? "its token" : `${one.kept} tokens`}.`))];
  },
};

function attention(one, block, inside, place) {
  const h = inside.weights.shape[0], rows = soFar(), n = rows.length, head = Math.min(at.head, h - 1), ids = textOf(one), i = looked();
  const matrix = x => { // the weights of a head, or their mean, of all tokens so far
    const out = new Float32Array(n * n);
    rows.forEach(([other, r], row) => {
      const where = other.blocks[place].weights, [, t, s] = where.shape, all = values(where);
      for (let y = x < 0 ? 0 : x; y < (x < 0 ? h : x + 1); y++) for (let c = 0; c < s; c++) out[row * n + c] += all[(y * t + r) * s + c] / (x < 0 ? h : 1);
    });
    return out;
  };
  const weight = matrix(head), mine = ids.map((_, c) => weight[(one.start + i) * n + c]), most = Math.max(...mine, 1e-9);
  const best = mine.map((w, c) => [w, c]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const thumb = x => { const all = x === head ? weight : matrix(x);
    return make("button", { class: "thumb", id: `head-${x}`, "aria-pressed": x === head, title: x < 0 ? "the mean of all heads" : `head ${x}`, onclick: () => go({ head: x }) },
      painted(n, n, (r, c) => all[r * n + c], one.start), x < 0 ? "mean" : `head ${x}`); };
  return [make("p", {}, "Each token asks with a query; the keys of the tokens up to itself answer. Softmax makes of the answers weights that sum to 1, and by these the values are added up. ", `${h} heads do so side by side.`),
    section("Heads", make("div", { class: "heads" }, Array.from({ length: h + 1 }, (_, x) => thumb(x - 1)))),
    section(["Where ", token(ids[one.start + i]), head < 0 ? " looks, on the mean" : ` looks in head ${head}`], lines(block.kind, "attention"),
      make("div", {}, ids.map((id, c) => token(id, "heat", { title: `${say(mine[c])}`, style: `--much:${Math.sqrt(mine[c] / most).toFixed(3)}` }))),
      note("Most at ", best.map(([w, c], x) => [x ? ", " : "", `${nameOf(ids[c])} (${say(w)})`]), ".")),
    section("Attention weights", heat("map-attention", n, n, (r, c) => weight[r * n + c], { name: "attention weights, queries by keys", rowName: r => nameOf(ids[r]), square: true, mark: one.start + i, since: one.start, pick: pickRow,
      hint: "rows: queries so far, paler those of earlier passes; columns: keys; point at one", label: (r, c) => `${nameOf(ids[r])} → ${nameOf(ids[c])}: ${say(weight[r * n + c])}` })),
    block.freqs.length ? dials(one, block, inside, Math.max(head, 0)) : null,
    one.pages.length ? paged(one, block, ids) : cache(one, block, inside, ids)].flat();
}

function shape(tag, values, ...children) { // of an SVG
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
function dials(one, block, inside, head) {
  const wide = inside.q.shape[1], q = values(inside.q).subarray(head * wide, (head + 1) * wide), half = block.freqs.length, pos = one.start + speaks(one);
  const longest = Math.max(...block.freqs.map((_, j) => Math.hypot(q[j], q[j + half])), 1e-9);
  const hand = (angle, length, colour, thick) => shape("line", { x1: 0, y1: 0, x2: length * Math.cos(angle), y2: -length * Math.sin(angle), stroke: colour, "stroke-width": thick, "stroke-linecap": "round" });
  const dial = (freq, j) => {
    const turned = Math.atan2(q[j + half], q[j]), length = 15 * Math.sqrt(Math.hypot(q[j], q[j + half]) / longest);
    return make("figure", { title: `pair ${j}: ${say(freq)} radians a position` }, shape("svg", { viewBox: "-20 -20 40 40", role: "img", "aria-label": `pair ${j}: ${say(q[j])}, ${say(q[j + half])}` },
      shape("circle", { r: 18, fill: "none", stroke: "var(--line)" }), hand(turned - pos * freq, length, "var(--faint)", 1.5), hand(turned, length, "rgb(var(--map))", 3)), say(pos * freq, 2));
  };
  return section("RoPE turns the query", lines(block.kind, "rope"),
    note("A token's place in the text is told by turning pairs of channels. Here the query of ", token(one.tokens[speaks(one)]), ` at position ${pos}, head ${head}: thin before, thick after, below by how many radians. The first pairs turn fast, the last hardly. (A hand's length is the pair's, on a square-root scale.)`),
    make("div", { class: "dials" }, block.freqs.map(dial)));
}

const cell = (kind, title) => make("span", { class: `cell ${kind}`, title });
const legend = kinds => make("p", { class: "small" }, kinds.map(([kind, words]) => make("span", { class: "key" }, cell(kind), words)));
function row(one, ids, position) { // what a row of the memory holds, if it is the one of this position
  const name = ids[position] === undefined ? "" : `${nameOf(ids[position])} at ${position}`;
  return position < 0 || position >= one.start + one.tokens.length ? cell("", "free")
    : position < one.start ? cell("old", name) : position < one.start + one.kept ? cell("now", name) : cell("gone", `${name}: rejected`);
}
function cache(one, block, inside, ids) {
  const end = one.start + (inside.rows < block.window + 1 ? one.kept : one.tokens.length), n = inside.rows; // a ring has what stays
  const cells = Array.from({ length: n }, (_, r) => row(one, ids, r < end ? end - 1 - (end - 1 - r) % n : -1));
  const old = Math.min(one.start, n - Math.min(one.kept, n)), now = Math.min(one.kept, n), gone = one.tokens.length - one.kept;
  return section("KV cache", lines(block.kind, "cache"),
    make("div", { class: "cells", role: "img", "aria-label": `${n} rows, ${old + now} in use` }, cells),
    legend([["old", `${old} remembered`], ["now", `${now} written in this pass`], ...gone ? [["gone", `${gone} rejected, to be overwritten`]] : [], ["", `${n - old - now - gone} free`]]),
    note(`A row for the key and the value of each token.${block.window ? ` Only the newest ${block.window} count, so a ring of rows is enough.` : ""}`));
}
function paged(one, block, ids) {
  const size = known.page_size, free = known.n_pages - one.pages.length, gone = one.tokens.length - one.kept;
  const page = (number, i) => make("div", {}, `page ${number}`, make("div", { class: "cells" }, Array.from({ length: size }, (_, r) => row(one, ids, i * size + r))));
  return section("KV cache in pages", lines("pages", "places"),
    make("div", { class: "pages" }, one.pages.map(page)),
    legend([["old", `${one.start} remembered`], ["now", `${one.kept} written in this pass`], ...gone ? [["gone", `${gone} rejected, to be overwritten`]] : []]),
    note(`Row r of the text is row r mod ${size} of page table[r div ${size}]; the table is ${one.pages.join(", ")}. A text gets a page when it needs one; ${free} of ${known.n_pages} are free.`));
}

const GATES = {
  dt: "How far time moves on at a token: where dt is large, the state fades and the token is written, where it is small, the state stays as it is.",
  decay: "What part of the state stays when a token comes: 1 is all, 0 nothing.",
  beta: "What part of the value under a token's key is replaced by its own.",
};
function recurrence(one, block, inside, place) {
  const i = looked(), rows = soFar(), name = r => nameOf(rows[r][0].tokens[rows[r][1]]);
  const gate = key => {
    const n = inside.gates[key].shape[1], whole = inside.channels[key], unit = block.kind === "Mamba" ? "channel" : "head";
    const value = (r, c) => values(rows[r][0].blocks[place].gates[key])[rows[r][1] * n + c], mine = Array.from({ length: n }, (_, c) => value(one.start + i, c));
    return section(key, note(GATES[key], ` Rows are the tokens so far, paler those of earlier passes, columns ${unit}s${n < whole ? `, the first ${n} of ${whole}` : ""}.`),
      heat(`map-${key}`, rows.length, n, value, { name: key, rowName: name, mark: one.start + i, since: one.start, pick: pickRow, hint: "point at one", label: (r, c) => `${name(r)}, ${unit} ${c}: ${say(value(r, c))}` }),
      make("p", { class: "small" }, token(one.tokens[i]), ` ${key}: mean ${say(mine.reduce((a, b) => a + b, 0) / n)}, from ${say(Math.min(...mine))} to ${say(Math.max(...mine))}`));
  };
  const [heads, high, wide] = inside.state.shape, all = values(inside.state), head = Math.max(0, Math.min(at.head, heads - 1)), full = inside.full;
  const value = (r, c) => all[(head * high + r) * wide + c];
  return [make("p", {}, "Nothing is looked up here: a state of fixed size has taken in all that came before. Each token lets it fade, writes to it and reads from it, so a long text costs no more a token than a short one."),
    lines(block.kind, "gates"), ...Object.keys(GATES).filter(key => key in inside.gates).flatMap(gate),
    section("The state after this pass", lines(block.kind, "state"),
      note(`${full.join(" × ")} numbers, however long the text is${high * wide * heads < full.reduce((a, b) => a * b, 1) ? `; shown are ${high} rows and ${wide} columns${full.length > 2 ? ` of ${heads} of ${full[0]} heads` : ""}` : ""}. Below zero is in the other colour.`),
      heads > 1 ? make("div", { class: "heads" }, Array.from({ length: heads }, (_, x) => make("button", { id: `head-${x}`, "aria-pressed": x === head, onclick: () => go({ head: x }) }, `head ${x}`))) : null,
      heat("map-state", high, wide, value, { name: "state", tall: 300, hint: "point at one", label: (r, c) => `row ${r}, column ${c}: ${say(value(r, c))}` }))].flat();
}

function changed(one, place) { // the lens in front of a block and behind it
  return section(["What this step does to the word after ", token(one.tokens[speaks(one)])],
    table(null, [0, 1].map(k => make("tr", {}, make("th", {}, k ? "after" : "before"), said(one.lens[place + k])))),
    note("What the model would say if its head read the residual stream here (the logit lens)."));
}

const MOVED = { weights: "of weights", read: "of memory read", written: "of memory written", logits: "of logits" };
function facts(one, step, block, inside) {
  const i = looked(), moved = Object.entries(inside.bytes).filter(([, n]) => n > 0), sum = moved.reduce((a, [, n]) => a + n, 0);
  const letters = (names, sizes) => [make("span", { class: "mono" }, names), " = ", make("span", { class: "mono" }, names.split(" ").map(letter => sizes[letter]).join("×"))];
  const rows = [
    ...block ? [["residual stream", [token(one.tokens[i]), ` has length ${say(one.norms[step.lens][i])}; this step added ${say(inside.added[i])}`]]] : [],
    ["moved", moved.map(([name, n]) => `${bytes(n)} ${MOVED[name]}`).join(", ")],
    ["work", inside.flops ? `${count(inside.flops)} floating-point operations, ${say(inside.flops / sum, 2)} for each byte` : "no products"],
    ...Object.entries(inside.shapes || block.shapes).map(([name, names]) => [name, letters(names, inside.sizes)])];
  const rounded = Object.entries(block ? block.errors : {});
  if (rounded.length) rows.push(["rounding error", `${rounded.map(([name, error]) => `${name.replace(/\.weight$/, "")} ${percent(error)}`).join(", ")} of the matrix's size`]);
  return make("aside", {}, section("In numbers", make("dl", {}, rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))))));
}

// ---- the page

function show() {
  const one = passNow(), list = steps(), step = list[at.step], block = known.blocks[step.block], focused = document.activeElement.id;
  const kind = one.start === 0 ? "the prompt" : one.drafted.length ? `a draft of ${one.drafted.length}, ${one.kept - 1} accepted` : "one token";
  $("where").textContent = `${known.model} · pass ${at.pass + 1} of ${known.passes.length}: ${kind} · step ${at.step + 1} of ${list.length}: ${step.label}`;
  $("back").disabled = at.pass === 0 && at.step === 0; $("next").disabled = at.pass === known.passes.length - 1 && at.step === list.length - 1;
  $("passback").disabled = at.pass === 0; $("passnext").disabled = at.pass === known.passes.length - 1;
  strip(one, step);
  stepList(one, list);
  shown.clear();
  const inside = block ? one.blocks[step.block] : one.ends[step.kind], panel = PANELS[step.kind](one, block, inside, step.block).flat(2);
  const main = make("div", {}, block ? make("h2", {}, `Layer ${block.layer}: ${WORD[block.kind]}`) : null, panel, block ? changed(one, step.block) : null);
  $("panel").replaceChildren(make("div", { class: "columns" }, main, inside ? facts(one, step, block, inside) : ""), ...functions(), help());
  document.documentElement.style.setProperty("--top", `${document.querySelector("header").offsetHeight}px`);
  if (focused && $(focused) !== document.activeElement) $(focused)?.focus({ preventScroll: true });
  history.replaceState(null, "", `#pass=${at.pass}&step=${at.step}&head=${at.head}${at.token === null ? "" : `&token=${at.token}`}`);
}

function strip(one, step) { // the text: what was read, what this pass reads, what comes
  const later = known.passes.slice(at.pass + 1).flatMap(other => other.new), i = looked(), ids = textOf(one);
  $("strip").replaceChildren(...ids.slice(0, one.start).map(id => token(id)),
    ...one.tokens.map((id, r) => token(id, `${r === i ? "looked" : "now"} ${fate(one, r)}`, { id: `token-${r}`, "aria-pressed": r === i, title: `token ${id} at position ${one.start + r}: look at it`, onclick: () => look(r) })),
    token(one.new[one.new.length - 1], step.kind === "choice" ? "new" : "later"), ...later.map(id => token(id, "later")));
  const spot = $("strip").children[one.start + i];
  $("strip").scrollTop = spot.offsetTop - $("strip").offsetTop - 30;
}

function stepList(one, list) {
  const i = speaks(one), longest = Math.max(...one.norms.map(row => row[i])), box = $("list"), old = box.scrollTop;
  box.replaceChildren(make("div", { class: "head" }, make("span", {}, "step"), make("span", { title: "length of the residual stream" }, "length"), make("span", { title: "what the model would say if its head read the residual stream here" }, "would say")),
    ...list.map((step, place) => {
      const [id, , p] = step.kind === "choice" ? [one.new[one.new.length - 1], 0, 1] : one.lens[step.lens][0], inner = step.kind === "embed" || step.block !== undefined;
      return make("button", { id: `step-${place}`, "aria-current": place === at.step, onclick: () => go({ step: place }) }, make("span", {}, step.label),
        make("span", { class: inner ? "norm" : "" }, inner ? make("b", { style: `width:${100 * one.norms[step.lens][i] / longest}%`, title: say(one.norms[step.lens][i]) }) : null),
        make("span", { class: `mono ${p < .3 ? "faint" : ""}`, title: `${nameOf(id)} ${percent(p)}` }, short(nameOf(id), 10)));
    }));
  box.scrollTop = old;
  const current = $(`step-${at.step}`), top = current.offsetTop - box.offsetTop;
  if (top < box.scrollTop || top + current.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 2;
}

const help = () => make("p", { class: "small faint", style: "margin-top:2rem" },
  [["↓", "↑", "step"], ["→", "←", "pass"], ["[", "]", "head"], [",", ".", "token"]].map(([on, off, what]) => [make("kbd", {}, on), " ", make("kbd", {}, off), ` ${what}, `]),
  make("kbd", {}, "Home"), " ", make("kbd", {}, "End"), ". In a map the arrow keys point at a number. Numbers have four digits, those in maps eight bits on a square-root scale: a weight w is exact to √w / 255.");

// ---- moving

function go(change) { const before = at.pass; Object.assign(at, change); if (at.pass !== before) at.token = null; show(); }
const look = i => go({ token: i });
const pickRow = r => { if (r >= passNow().start) look(r - passNow().start); };
function walk(by) {
  const n = steps().length, place = at.pass * n + at.step + by;
  if (place >= 0 && place < n * known.passes.length) go({ pass: Math.floor(place / n), step: place % n });
}
const toPass = by => { if (known.passes[at.pass + by]) go({ pass: at.pass + by }); };
function toHead(by) {
  const inside = passNow().blocks[steps()[at.step].block], heads = inside?.weights?.shape[0] ?? inside?.state?.shape[0];
  if (heads) go({ head: Math.max(inside.weights ? -1 : 0, Math.min(heads - 1, at.head + by)) });
}
const KEYS = {
  ArrowDown: () => walk(1), ArrowUp: () => walk(-1), ArrowRight: () => toPass(1), ArrowLeft: () => toPass(-1),
  Home: () => go({ pass: 0, step: 0 }), End: () => go({ pass: known.passes.length - 1, step: steps().length - 1 }),
  "[": () => toHead(-1), "]": () => toHead(1),
  ",": () => look(Math.max(0, looked() - 1)), ".": () => look(Math.min(passNow().tokens.length - 1, looked() + 1)),
};

async function open() {
  const packed = Uint8Array.from(atob($("data").textContent), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const whole = new Uint8Array(await new Response(stream).arrayBuffer()), size = new DataView(whole.buffer).getUint32(0, true);
  known = JSON.parse(new TextDecoder().decode(whole.subarray(4, 4 + size))); codes = whole.subarray(4 + size);
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (name in at && /^-?\d+$/.test(value)) at[name] = Number(value);
  at.pass = Math.max(0, Math.min(at.pass, known.passes.length - 1)); at.step = Math.max(0, Math.min(at.step, steps().length - 1));
  $("back").onclick = KEYS.ArrowUp; $("next").onclick = KEYS.ArrowDown; $("passback").onclick = KEYS.ArrowLeft; $("passnext").onclick = KEYS.ArrowRight;
  addEventListener("keydown", event => {
    const scrolls = event.key.startsWith("Arrow") && event.target.closest?.("pre, .scroll");
    if (event.ctrlKey || event.altKey || event.metaKey || scrolls || !(event.key in KEYS)) return;
    event.preventDefault(); KEYS[event.key]();
  });
  addEventListener("resize", show); matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
}
open();
