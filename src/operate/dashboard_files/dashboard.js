// The dashboard page: receives one sample per second from /events and shows it.

import { Chart, SCALES, SECONDS, html, put } from "./chart.js";

// Without a sample for this time, the stream counts as lost.
const SILENCE_MS = 3000;
// Delay before the next connection attempt, after the stream was closed.
const RETRY_MS = 1000;
// The page reconnects an open stream that has delivered nothing for this time.
const TRY_MS = 8000;
// Time for which the banner shows that the connection was restored.
const NEWS_MS = 12000;

const $ = (id) => document.getElementById(id);

// --- number formats ---

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const hundredths = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const two = (number) => String(number).padStart(2, "0");
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });

const share = (part, all) => (all > 0 ? hundredths.format(part / all) : "–");
const seconds = (s) => (s >= 10 ? `${whole.format(s)} s` : `${precise.format(s)} s`);

function micros(us) {
  if (us < 1000) return `${precise.format(us)} µs`;
  return us < 1e6 ? `${precise.format(us / 1e3)} ms` : `${precise.format(us / 1e6)} s`;
}

function span(ms) {
  const all = Math.max(0, Math.floor(ms / 1000));
  const [days, hours, minutes] = [Math.floor(all / 86400), Math.floor(all / 3600) % 24, Math.floor(all / 60) % 60];
  const short = hours || days ? `${two(hours)}:${two(minutes)}:${two(all % 60)}` : `${two(minutes)}:${two(all % 60)}`;
  return days ? `${whole.format(days)} d ${short}` : short;
}

// --- state ---

let samples = [];
let server = null;
// The server's clock minus the browser's clock, in milliseconds.
let skew_ms = 0;
let heard_ms = Date.now();
let lost_since_ms = null;
// Age in seconds of the sample that the tables show: chosen with the slider, or pointed at in a chart.
let chosen_s = 0;
let pointed_s = null;

const now_ms = () => Date.now() + skew_ms;
const last = () => samples.at(-1);

// Announces a text to screen readers. Used only for rare and important events.
const say = (text) => put($("said"), text);

// --- charts ---

const rate = (name) => (sample) => sample.per_second[name];
const outcome = (name, kind, title) => ({ name: title, kind, key: name, read: rate(name) });
const rates = (place, label, series) =>
  new Chart($(place), {
    label,
    series,
    scale: SCALES.linear(10),
    show: whole.format,
    mark: short.format,
    column: "per second",
    total: (sample, { key }) => sample.answered[key],
  });
const times = (place, label, key) =>
  new Chart($(place), {
    label,
    series: ["p50, 50% of requests", "p99, 99% of requests", "p99.9, 99.9% of requests"].map((name, at) => ({
      name,
      kind: `time-${at}`,
      read: (sample) => sample[key]?.[at] ?? null,
    })),
    scale: SCALES.logarithmic,
    show: micros,
    column: "at most",
  });
const lag = (place, name, kind, unit, scale, show, read) =>
  new Chart($(place), { label: `${name}, ${unit}`, series: [{ name, kind, read }], scale, show, mark: short.format, column: unit });

const charts = [
  new Chart($("chart-stock"), {
    label: "Items sold and reserved",
    series: [
      { kind: "sold", read: (sample) => sample.sold },
      { kind: "held", read: (sample) => sample.reserved },
    ],
    scale: (values) => {
      const items = values.at(-1) || 1;
      return { marks: [items, items / 2, 0], place: (value) => (value / items) * 100 };
    },
    show: short.format,
    stacked: true,
    full: (sample) => sample.items,
  }),
  rates("chart-granted", "Successful requests per second", [
    outcome("reserved", "held", "checkouts"),
    outcome("bought", "sold", "purchases"),
    outcome("released", "third", "cancellations"),
  ]),
  rates("chart-refused", "Refused requests per second", [
    outcome("item_sold", "cool-0", "item sold"),
    outcome("item_reserved", "cool-1", "item reserved"),
    outcome("user_limit", "cool-2", "user limit"),
    outcome("code_refused", "cool-3", "code refused"),
  ]),
  rates("chart-others", "Errors and reads per second", [
    outcome("unavailable", "bad-0", "unavailable, 503"),
    outcome("invalid", "bad-1", "invalid requests"),
    outcome("looked_up", "third", "reads"),
  ]),
  times("chart-checkout", "Checkout latency", "checkout_us"),
  times("chart-purchase", "Purchase latency", "purchase_us"),
  lag("chart-records", "not yet in Postgres", "lag-0", "records", SCALES.linear(10), (records) => `${whole.format(records)} records`, (sample) => sample.postgres?.records_behind ?? null),
  lag("chart-seconds", "age of the oldest", "lag-1", "seconds", SCALES.linear(1), seconds, (sample) => sample.postgres?.seconds_behind ?? null),
];

// --- display ---

function show() {
  const sample = last();
  if (!sample) return;
  showSale(sample);
  showLive(sample);
  showShards(sample);
  const { connected } = sample.postgres ?? {};
  $("lag").hidden = !sample.postgres;
  $("no-postgres").hidden = Boolean(sample.postgres);
  put($("postgres"), connected === undefined ? "" : connected ? "connected" : "not reachable");
  $("phase").dataset.phase = lost_since_ms === null ? sample.phase : "unknown";
  put($("phase-name"), lost_since_ms === null ? { serving: "selling" }[sample.phase] ?? sample.phase : "unknown");
  showMoment();
  document.body.classList.add("drawn");
}

function showSale(sample) {
  put($("sale-id"), String(sample.sale_id));
  const [what, at_ms] = nextChange(sample);
  put($("countdown-of"), what ? `until ${what}, at` : "No sale follows.");
  $("countdown").setAttribute("aria-label", what ? `Time until ${what}` : "No sale follows");
  $("sale-ends").hidden = at_ms === null;
  if (at_ms !== null) {
    put($("sale-ends"), (at_ms - now_ms() > 86400e3 ? date : clock).format(at_ms));
    $("sale-ends").dateTime = new Date(at_ms).toISOString();
  }
  put($("sale-name"), live(sample).find(({ sale_id }) => sale_id === sample.sale_id)?.name ?? "");
  put($("items"), whole.format(sample.items));
  for (const [id, items] of stock(sample)) {
    put($(id), whole.format(items));
    put($(`${id}-share`), share(items, sample.items));
    fill($(`bar-${id}`), items);
  }
}

// The live sales: those that are open, and those that have closed while items are reserved.
const live = ({ sales = [] }) => sales;
const stock = ({ sold, reserved, available }) => [["sold", sold], ["held", reserved], ["free", available]];

function fill(part, items) {
  part.style.flexGrow = items;
  part.hidden = items === 0;
}

// Lists the live sales, unless the sale above is the only one.
function showLive(sample) {
  const sales = live(sample);
  const place = $("live-sales");
  $("live").hidden = sales.every(({ sale_id }) => sale_id === sample.sale_id);
  while (place.rows.length > sales.length) place.deleteRow(-1);
  sales.forEach((sale, at) => {
    if (!place.rows[at]) {
      const row = place.insertRow();
      row.append(html("th", "", { scope: "row" }), html("td"), html("td"), html("td"), html("td"));
      const bar = html("div", "", { class: "bar", "aria-hidden": "true" });
      bar.append(...stock(sale).map(([part]) => html("i", "", { class: part })));
      row.cells[0].append(html("b"), " ", html("span"), bar);
    }
    const [title, , ...numbers] = place.rows[at].cells;
    const [id, name, bar] = title.children;
    put(id, String(sale.sale_id));
    put(name, sale.name ?? "");
    stock(sale).forEach(([, items], part) => {
      put(numbers[part], whole.format(items));
      fill(bar.children[part], items);
    });
  });
}

function timeLeft({ phase, paused, closes_ms }) {
  if (phase !== "open") return "closed";
  return paused ? `${span(closes_ms - now_ms())}, paused` : span(closes_ms - now_ms());
}

// The next end or beginning of a sale, in words, and its time.
function nextChange({ closes_ms, next_opens_ms }) {
  if (closes_ms !== null && closes_ms !== next_opens_ms) return ["the end of the sale", closes_ms];
  return next_opens_ms === null ? [null, null] : ["the next sale", next_opens_ms];
}

function showShards(sample) {
  const place = $("shards");
  while (place.rows.length > sample.shards.length) place.deleteRow(-1);
  sample.shards.forEach((shard, at) => {
    if (!place.rows[at]) {
      const row = place.insertRow();
      row.append(html("th", String(at), { scope: "row" }), html("td"), html("td"), html("td"));
      row.cells[3].append(html("span", "", { class: "meter", "aria-hidden": "true" }), html("span"));
      row.cells[3].firstChild.append(html("i"));
    }
    const [, rate, connections, busy] = place.rows[at].cells;
    put(rate, whole.format(shard.per_second));
    put(connections, whole.format(shard.connections));
    busy.firstChild.firstChild.style.width = `${Math.min(1, shard.busy) * 100}%`;
    put(busy.lastChild, hundredths.format(Math.round(shard.busy * 100) / 100));
  });
  const sum = (read) => sample.shards.reduce((sum, shard) => sum + read(shard), 0);
  put($("all-per-second"), whole.format(sum((shard) => shard.per_second)));
  put($("connections"), whole.format(sum((shard) => shard.connections)));
  put($("all-busy"), `${precise.format(sum((shard) => shard.busy))} CPUs`);
}

function showEnded(ended) {
  $("none-ended").hidden = ended.length > 0;
  $("ended-table").hidden = ended.length === 0;
  const rows = ended.toReversed().map(({ sale_id, opens_ms, sold, items }) => {
    const row = html("tr");
    const began = opens_ms === null ? "–" : date.format(opens_ms);
    row.append(html("th", String(sale_id), { scope: "row" }), html("td", began), html("td", whole.format(sold)), html("td", whole.format(items)));
    return row;
  });
  $("ended").replaceChildren(...rows);
}

// Draws the charts and shows in their tables the sample of the chosen time.
function showMoment() {
  const ago_s = pointed_s ?? chosen_s;
  const at_ms = now_ms() - ago_s * 1000;
  const nearest = samples.findLast((sample) => sample.at_ms <= at_ms + 500);
  const chosen = ago_s === 0 ? last() : nearest && at_ms - nearest.at_ms < 2500 ? nearest : null;
  const name = ago_s === 0 ? "now" : `${clock.format(at_ms)}, ${span(ago_s * 1000)} ago`;
  put($("moment-name"), name);
  $("moment").setAttribute("aria-valuetext", name);
  charts.forEach((chart) => chart.draw(samples, now_ms(), chosen, ago_s));
}

// Shows every tenth sample, newest first, if the table is open.
function showHistory() {
  if (!$("history").open) return;
  const every = samples.filter((sample, at) => (samples.length - 1 - at) % 10 === 0).toReversed();
  const sum = (sample, names) => names.reduce((sum, name) => sum + sample.per_second[name], 0);
  const time = (times) => (times ? micros(times[1]) : "–");
  const rows = every.map((sample) => {
    const row = html("tr");
    row.append(html("th", clock.format(sample.at_ms), { scope: "row" }));
    const numbers = [
      sample.sold,
      sample.reserved,
      sample.available,
      sample.per_second.reserved,
      sample.per_second.bought,
      sum(sample, ["item_sold", "item_reserved", "user_limit", "code_refused"]),
      sum(sample, ["unavailable", "invalid"]),
    ];
    row.append(...numbers.map((number) => html("td", whole.format(number))));
    row.append(html("td", time(sample.checkout_us)), html("td", time(sample.purchase_us)));
    const behind = sample.postgres?.records_behind ?? null;
    row.append(html("td", behind === null ? "–" : whole.format(behind)));
    return row;
  });
  $("rows").replaceChildren(...rows);
}

function showTime() {
  const sample = last();
  if (!sample) return;
  const [, at_ms] = nextChange(sample);
  put($("countdown"), at_ms === null ? "–" : span(at_ms - now_ms()));
  live(sample).forEach((sale, at) => put($("live-sales").rows[at].cells[1], timeLeft(sale)));
  put($("process"), `version ${server.version}, up ${span(now_ms() - server.began_ms)}`);
}

// --- receiving samples ---

function hear({ process, ended, samples: fresh }) {
  const before = last();
  const is_other = server !== null && server.began_ms !== process.began_ms;
  server = process;
  heard_ms = Date.now();
  if (fresh.length) {
    // Keep the samples of an earlier process. Drop samples that are not older than the new ones: these appear if the
    // server's clock was set back.
    samples = samples.filter((sample) => sample.at_ms < fresh[0].at_ms).concat(fresh);
    skew_ms = last().at_ms - heard_ms;
    samples = samples.filter((sample) => sample.at_ms > last().at_ms - SECONDS * 1000);
  }
  found(is_other);
  showEnded(ended);
  show();
  showTime();
  if (before) tellNews(before, last());
}

function tellNews(before, now) {
  const was = new Map(live(before).map((sale) => [sale.sale_id, sale]));
  const isSoldOut = (sale) => sale?.sold === sale?.items;
  const sales = live(now).flatMap((sale) => {
    const id = sale.sale_id;
    if (!was.has(id)) return `Sale ${id} has started.`;
    return isSoldOut(sale) && !isSoldOut(was.get(id)) ? `Sale ${id} is sold out.` : [];
  });
  if (sales.length) say(sales.join(" "));
  if (now.phase !== before.phase) say(`The server is ${now.phase}.`);
  if (before.postgres?.connected && now.postgres?.connected === false) say("The database does not answer.");
}

// --- losing and restoring the stream ---

let news = null;

function banner(state, text) {
  clearTimeout(news);
  $("banner").hidden = !text;
  $("banner").dataset.state = state;
  put($("banner"), text);
  if (text) say(text);
  document.body.classList.toggle("stale", state === "lost");
}

function lose() {
  if (lost_since_ms !== null) return;
  lost_since_ms = heard_ms;
  banner("lost", `No data since ${clock.format(heard_ms)}: the server does not answer. Reconnecting.`);
  show();
}

function found(is_other) {
  const gap_ms = lost_since_ms === null ? 0 : heard_ms - lost_since_ms;
  lost_since_ms = null;
  const began = `A new process started at ${clock.format(server.began_ms)}. Its counters started at zero.`;
  if (!gap_ms && !is_other) return;
  banner("found", [gap_ms && `Connection restored after ${span(gap_ms)}.`, is_other && began].filter(Boolean).join(" "));
  news = setTimeout(() => banner("", ""), NEWS_MS);
}

let stream = null;
let tried_ms = 0;

function connect() {
  tried_ms = Date.now();
  stream?.close();
  stream = new EventSource("events");
  stream.onmessage = (event) => hear(JSON.parse(event.data));
  // Browsers reconnect with different delays, or not at all. Close the stream: `tick` reconnects.
  stream.onerror = () => stream.close();
}

function tick() {
  const [silent_ms, trying_ms] = [Date.now() - heard_ms, Date.now() - tried_ms];
  const is_closed = stream.readyState === EventSource.CLOSED;
  if (is_closed ? trying_ms >= RETRY_MS : Math.min(silent_ms, trying_ms) > TRY_MS) connect();
  if (silent_ms > SILENCE_MS) lose();
  if (lost_since_ms !== null) showMoment();
  showTime();
}

// --- choice of the time shown ---

$("moment").addEventListener("input", (event) => {
  chosen_s = -event.target.valueAsNumber;
  showMoment();
});
for (const { plot } of charts) {
  plot.addEventListener("pointermove", ({ clientX }) => {
    const { left, width } = plot.getBoundingClientRect();
    pointed_s = Math.round(Math.max(0, Math.min(1, 1 - (clientX - left) / width)) * SECONDS);
    showMoment();
  });
  plot.addEventListener("pointerleave", () => {
    pointed_s = null;
    showMoment();
  });
}
$("history").addEventListener("toggle", showHistory);

connect();
setInterval(tick, 250);
setInterval(showHistory, 10000);
