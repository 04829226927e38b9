// The sales: those that are open, those that come, and the one that the buyer has chosen. Without a plan, there is one
// after the other.

import { arrange, at, fill, make, say, write } from './elements.js';
import { ask, now, rarely } from './requests.js';
import { date, duration, number, refusal } from './words.js';

const LIST_MAX = 200;
const NEXT_SHOWN = 6;
const RELOAD_MS = 2000;
const LOOK_AGAIN_MS = 10000;

// Says `chosen` when the buyer looks at another sale, `stock` when its counts have changed, and `drawn` whenever it is drawn.
export const changes = new EventTarget();
const tell = (what) => changes.dispatchEvent(new Event(what));

let sales = new Map();
let chosenId = null;
let hasPlan = null;

export const sale = (id = chosenId) => sales.get(id) ?? null;
export const isPlanned = () => hasPlan === true;
export const nameOf = (one) => one.name ?? `Sale ${one.sale_id}`;

// Without a plan, the sale has no phase: it is open until the next one begins.
const hasOpened = (one) => one.phase === undefined || now() >= Date.parse(one.starts_at);
const isOver = (one) => one.phase !== undefined && now() >= Date.parse(one.ends_at);
const isOpen = (one) => hasOpened(one) && !isOver(one);
const isSoldOut = (one) => one.sold === one.items_total;

export const canReserve = (one) => one !== null && isOpen(one) && !isSoldOut(one) && one.paused !== true;

// --- what is drawn ---

const toOpening = (one) => duration(Date.parse(one.starts_at) - now());
const toEnd = (one) => duration(Date.parse(one.ends_at) - now());

function clock(one) {
  if (!hasOpened(one)) return `The sale opens in ${toOpening(one)}`;
  if (isOver(one)) return 'The sale has closed';
  if (isSoldOut(one)) return one.phase === undefined ? `The next sale opens in ${toEnd(one)}` : 'Everything is sold';
  return `This sale ends in ${toEnd(one)}`;
}

function inShort(one) {
  if (!hasOpened(one)) return `Opens in ${toOpening(one)}`;
  if (isOver(one)) return 'Closed';
  if (isSoldOut(one)) return 'Sold out';
  return one.paused ? 'Paused' : `${number(one.available)} left · ends in ${toEnd(one)}`;
}

// The large figure and the words after it.
function figure(one) {
  const total = number(one.items_total);
  if (isSoldOut(one)) return ['Sold out', ''];
  if (isOver(one)) return ['Closed', `${number(one.sold)} of ${total} were sold`];
  return hasOpened(one) ? [number(one.available), `of ${total} available`] : [toOpening(one), `until it opens, ${date(one.starts_at)}`];
}

function counts(one) {
  if (!hasOpened(one)) return `${number(one.items_total)} for sale`;
  return `${number(one.sold)} sold · ${number(one.reserved)} in somebody's hands`;
}

const choices = new Map();

function choice(one) {
  const id = one.sale_id;
  if (!choices.has(id)) {
    const input = make('input', { type: 'radio', name: 'sale', value: id });
    input.addEventListener('change', () => choose(id));
    const text = make('span', {}, make('strong'), ' ', make('span', { className: 'when' }));
    choices.set(id, make('label', { className: 'choice' }, input, text));
  }
  const label = choices.get(id);
  label.querySelector('input').checked = id === chosenId;
  write(label.querySelector('strong'), nameOf(one));
  write(label.querySelector('.when'), inShort(one));
  return label;
}

// Open sales, the newest first, those that come, and the chosen one also when it has closed.
function offered() {
  const all = [...sales.values()].sort((a, b) => Date.parse(a.starts_at) - Date.parse(b.starts_at));
  const next = all.filter((one) => !hasOpened(one)).slice(0, NEXT_SHOWN);
  const shown = [...all.filter(isOpen).reverse(), ...next];
  if (shown.length === 0) shown.push(...all.slice(-1));
  if (sales.has(chosenId) && !shown.includes(sale())) shown.push(sale());
  return shown;
}

// Also once in a moment, for the times that run down.
export function drawSales() {
  const one = sale();
  if (one === null) return;
  const shown = isPlanned() ? offered() : [];
  at('sales').hidden = shown.length < 2;
  arrange(at('choices'), shown.map(choice));
  const [value, words] = figure(one);
  write(at('stock-title'), isPlanned() ? nameOf(one) : 'In stock');
  write(at('available'), value);
  write(at('of-total'), words);
  write(at('counts'), counts(one));
  write(at('clock'), clock(one));
  write(at('limit'), `At most ${number(one.user_limit)} for each buyer`);
  at('limit').hidden = !isPlanned();
  at('paused').hidden = !(one.paused && isOpen(one));
  fill(at('sale-bar'), one);
  tell('drawn');
}

// --- what is known ---

function choose(id) {
  if (id === chosenId) return;
  chosenId = id;
  // A reload or a link shows the same sale.
  if (isPlanned()) history.replaceState(null, '', `?sale=${id}`);
  tell('chosen');
  drawSales();
}

function chooseFirst() {
  if (sales.has(chosenId)) return;
  const linked = Number(new URLSearchParams(location.search).get('sale'));
  const first = sales.get(linked) ?? offered()[0];
  if (first) choose(first.sale_id);
}

const countsOf = ({ sold, reserved, available }) => ({ sold, reserved, available });

async function loadSales() {
  const askedMs = performance.now();
  const listed = [];
  for (let total = 1; listed.length < total;) {
    const answer = await ask('GET', `/sales?offset=${listed.length}&limit=${LIST_MAX}`);
    if (answer.status !== 200) {
      // Later, the list is asked for again anyway.
      if (chosenId === null) refreshSales();
      return;
    }
    total = answer.body.sales_total;
    listed.push(...answer.body.sales);
    if (answer.body.sales.length === 0) break;
  }
  if (!isPlanned()) return;
  const before = sale();
  // What was heard since the question is newer than the answer.
  const heard = [...sales.values()].filter(({ heardMs }) => heardMs > askedMs);
  sales = new Map(listed.map((one) => [one.sale_id, one]));
  for (const one of heard) sales.set(one.sale_id, { ...one, ...sale(one.sale_id), ...countsOf(one), heardMs: one.heardMs });
  chooseFirst();
  drawSales();
  const after = sale();
  if (before?.sale_id === after?.sale_id && before?.paused === !after?.paused) {
    say(after.paused ? refusal({ type: 'paused' }, {}) : `${nameOf(after)} goes on.`);
  }
  if (before?.sold !== after?.sold || before?.available !== after?.available) tell('stock');
}

export const refreshSales = rarely(RELOAD_MS, loadSales);

function receive(next) {
  const before = sale(next.sale_id);
  const isFirst = hasPlan !== (next.phase !== undefined);
  hasPlan = next.phase !== undefined;
  if (isFirst || !hasPlan) sales.clear();
  if (isFirst) chosenId = null;
  sales.set(next.sale_id, { ...before, ...next, heardMs: performance.now() });
  if (!hasPlan) choose(next.sale_id);
  else if (isFirst) loadSales();
  else if (before?.phase !== next.phase) refreshSales();
  drawSales();
  if (next.sale_id === chosenId) tell('stock');
}

function receiveStock(stock) {
  const before = sale(stock.sale_id);
  if (before === null) return;
  sales.set(stock.sale_id, { ...before, ...stock, heardMs: performance.now() });
  if (stock.sale_id !== chosenId) return;
  drawSales();
  tell('stock');
}

export function follow() {
  const events = new EventSource('/events');
  events.addEventListener('sale', ({ data }) => receive(JSON.parse(data)));
  events.addEventListener('stock', ({ data }) => receiveStock(JSON.parse(data)));
  // The browser connects again by itself, except after an answer that is no stream.
  events.addEventListener('error', async () => {
    if (events.readyState !== EventSource.CLOSED) return;
    const answer = await ask('GET', '/sale');
    if (answer.status === 200) receive(answer.body);
    else at('clock').textContent = 'The shop is not open yet. It is tried again.';
    setTimeout(follow, 2000 + 3000 * Math.random());
  });
}

// --- time ---

const phases = new Map();

// Says which sale has opened, and asks for the list when one has opened or closed.
export function watchClock() {
  for (const one of sales.values()) {
    const phase = hasOpened(one) ? Number(isOver(one)) : -1;
    const before = phases.get(one.sale_id);
    phases.set(one.sale_id, phase);
    if (before === undefined || before === phase || !isPlanned()) continue;
    if (phase === 0) say(`${nameOf(one)} is open.`);
    refreshSales();
  }
  // A repetition follows the one that the buyer has looked at.
  const one = sale();
  const next = one !== null && isOver(one) && [...sales.values()].find((other) => isOpen(other) && other.name === one.name);
  if (next) choose(next.sale_id);
  drawSales();
}

// Pauses, changes of the plan, and counts that no event has brought.
setInterval(() => { if (isPlanned()) refreshSales(); }, LOOK_AGAIN_MS);
document.addEventListener('visibilitychange', () => { if (isPlanned()) refreshSales(); });
