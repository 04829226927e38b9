// What the buyer has. It is kept in the browser together with the keys of the requests, so that a lost answer or a reload
// costs nothing: the same request is sent again. Each entry is stored by itself, so that two pages do not overwrite each
// other's.

import { at, button, make, picture, say, write } from './elements.js';
import { ask, decide, now } from './requests.js';
import { changes, refreshSales, sale } from './sales.js';
import { duration, isPassing, refusal } from './words.js';

const SOON_S = 10;
const RECEIPTS_MAX = 100;
const RECEIPTS_SHOWN = 3;
const PREFIX = 'hold.';

function read(name) {
  try { return JSON.parse(localStorage.getItem(name)); } catch { return null; }
}

// The page works without the storage until it is closed.
function store(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
  } catch { /* It is full or forbidden. */ }
}

function newBuyer() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high % 2 ** 20) * 2 ** 32 + low;
}

const buyer = read('buyer') ?? newBuyer();
store('buyer', buyer);
at('buyer').textContent = buyer;

// --- entries ---

let mine = [];
// Entries whose answers this page waits for.
const awaited = new Set();
// Sales whose holds cannot be extended.
const firm = new Set();

// Earlier versions kept all entries under one name.
function takeOver() {
  const olds = read('mine') ?? [];
  olds.forEach((one, place) => {
    const parameters = one.wanted === null ? '' : `&item_id=${one.wanted}`;
    const name = one.name ?? (one.wanted === null ? 'Any item' : `Item ${one.wanted}`);
    store(PREFIX + one.key, { parameters, ...one, name, madeMs: -place });
  });
  store('mine', null);
}

function load() {
  takeOver();
  let names = [];
  try { names = Object.keys(localStorage); } catch { /* It is forbidden. */ }
  mine = names.filter((name) => name.startsWith(PREFIX)).map(read).filter((one) => one?.key !== undefined);
  tidy();
}

// Puts the newest first, and forgets the oldest of those that are bought.
function tidy() {
  mine.sort((a, b) => b.madeMs - a.madeMs);
  const forgotten = mine.filter(({ phase }) => phase === 'bought').slice(RECEIPTS_MAX);
  forgotten.forEach(({ key }) => store(PREFIX + key, null));
  mine = mine.filter((one) => !forgotten.includes(one));
}

// Stores an entry, or forgets it when it is over.
function keep(one) {
  mine = mine.filter(({ key }) => key !== one.key);
  if (one.phase !== 'over') mine.push(one);
  store(PREFIX + one.key, one.phase === 'over' ? null : one);
  tidy();
  drawMine();
}

// Another page of the same browser has changed an entry.
addEventListener('storage', ({ key, newValue }) => {
  const name = key?.startsWith(PREFIX) ? key.slice(PREFIX.length) : null;
  if (name === null || awaited.has(name)) return;
  const next = newValue === null ? null : read(key);
  mine = mine.filter((one) => one.key !== name);
  if (next !== null) mine.push(next);
  tidy();
  drawMine();
});

const spoken = (one) => (one.unit ? `${one.name}, ${one.unit}` : one.name);
const limitOf = (one) => sale(one.saleId)?.user_limit;
const about = (one) => ({ limit: limitOf(one), product: one.product && one.name, code: one.code });

// Sends a request about an entry until it is decided.
async function settle(one, phase, method, target) {
  awaited.add(one.key);
  one.phase = phase;
  keep(one);
  // The other requests have the code, and take no key.
  const answer = await decide(method, target, phase === 'held' ? undefined : one.key);
  awaited.delete(one.key);
  return answer;
}

function end(one, phase, ...text) {
  one.phase = phase;
  keep(one);
  say(...text);
  changes.dispatchEvent(new Event('stock'));
}

// `wanted` has the parameters that name the goods, and what to show: `name`, and with a plan `product`, `image`, `saleId`
// and `saleName`.
export async function reserve(wanted) {
  // A second press while the answer is awaited asks for nothing more.
  const isAsking = (one) => awaited.has(one.key) && one.phase === 'asking' && one.parameters === wanted.parameters;
  if (mine.some(isAsking)) return;
  const key = crypto.randomUUID?.() ?? `${buyer}-${now()}-${Math.random()}`;
  await finishReserving({ ...wanted, key, madeMs: Date.now() });
}

async function finishReserving(one) {
  const answer = await settle(one, 'asking', 'POST', `/checkout?user_id=${buyer}${one.parameters}`);
  if (answer.status !== 200) {
    end(one, 'over', refusal(answer, about(one)));
    refreshSales();
    return;
  }
  const { code, sale_id: saleId, item_id: itemId, unit, expires_at: expiresAt } = answer.body;
  Object.assign(one, { code, saleId, itemId, unit, expiresAt });
  if (one.product === undefined) {
    const known = await ask('GET', `/items/${itemId}`);
    one.name = known.body.sale_id === saleId ? known.body.name : `Item ${itemId}`;
    one.image = `/items/${itemId}/image.svg?sale=${saleId}`;
  }
  const left = duration(Date.parse(expiresAt) - now());
  end(one, 'held', `${spoken(one)} is yours for ${left}. `, make('a', { href: '#mine-title', textContent: 'Buy it now.' }));
}

async function buy(one) {
  const wasTried = one.phase !== 'held';
  const answer = await settle(one, 'buying', 'POST', `/purchase?code=${one.code}`);
  const { status, type } = answer;
  if (status === 200) {
    if (one.product === undefined) one.name = answer.body.item_name;
    end(one, 'bought', `You have bought ${spoken(one)}.`);
  } else if (status === 409) {
    const phase = wasTried && type === 'sale-ended' ? 'forgotten' : phaseAfter(answer);
    end(one, phase, refusal(answer, about(one)));
  } else {
    // If it is undecided, the same request can be sent again, also after the hold has ended.
    end(one, isPassing(answer) ? 'unknown' : 'held', refusal(answer, about(one)));
  }
}

async function extend(one) {
  const answer = await settle(one, 'held', 'POST', `/checkout/extend?code=${one.code}`);
  if (answer.status === 200) {
    one.expiresAt = answer.body.expires_at;
    one.isExtended = true;
    end(one, 'held', `You have ${duration(Date.parse(one.expiresAt) - now())} to buy ${spoken(one)}.`);
  } else {
    if (answer.type === 'not-extendable') firm.add(one.saleId);
    end(one, phaseAfter(answer), refusal(answer, about(one)));
  }
}

async function release(one) {
  const answer = await settle(one, 'held', 'DELETE', `/checkout?code=${one.code}`);
  const isReleased = answer.status === 204;
  end(one, isReleased ? 'over' : phaseAfter(answer), isReleased ? `You have given back ${spoken(one)}.` : refusal(answer, about(one)));
}

// What a refusal says about a hold.
function phaseAfter({ type }) {
  if (type === 'code-used') return 'bought';
  return ['code-unknown', 'code-expired', 'sale-ended'].includes(type) ? 'over' : 'held';
}

// --- drawing ---

function actions(one) {
  if (one.phase === 'unknown') return [button('Ask again', `Ask again for ${spoken(one)}`, 'first', () => buy(one))];
  if (one.phase === 'forgotten') return [button('Remove', `Remove ${spoken(one)}`, '', () => end(one, 'over', ''))];
  if (one.phase !== 'held') return [];
  const offers = [button('Buy', `Buy ${spoken(one)}`, 'first', () => buy(one))];
  if (!one.isExtended && !firm.has(one.saleId)) offers.push(button('More time', `More time for ${spoken(one)}`, '', () => extend(one)));
  offers.push(button('Give back', `Give back ${spoken(one)}`, '', () => release(one)));
  return offers;
}

// The elements of what the buyer has, by key.
const shown = new Map();
const PHASES = {
  asking: 'Reserving…',
  buying: 'Buying…',
  bought: 'Bought',
  held: '',
  unknown: 'Bought or not: ask again',
  forgotten: 'Bought or not: ask the shop, and give it the code',
};

function drawOne(one) {
  const lines = [make('h3', { textContent: one.name })];
  const where = [one.unit, one.price, one.saleName].filter(Boolean).join(' · ');
  if (where) lines.push(make('p', { className: 'quiet', textContent: where }));
  lines.push(make('p', { className: 'left', textContent: PHASES[one.phase] }));
  const code = { bought: `Receipt ${one.code}`, forgotten: `Code ${one.code}` }[one.phase];
  if (code) lines.push(make('p', { className: 'code quiet', textContent: code }));
  const children = [picture(one.image, 64), make('div', {}, ...lines)];
  const offers = actions(one);
  if (offers.length > 0) children.push(make('div', { className: 'actions' }, ...offers));
  const element = make('li', { className: `hold ${one.phase}` }, ...children);
  shown.set(one.key, element);
  return element;
}

function drawMine() {
  const focusedKey = [...shown].find(([, element]) => element.contains(document.activeElement))?.[0];
  shown.clear();
  const bought = mine.filter(({ phase }) => phase === 'bought');
  const earlier = bought.slice(RECEIPTS_SHOWN);
  at('mine-empty').hidden = mine.length > 0;
  at('holds').replaceChildren(...mine.filter((one) => !earlier.includes(one)).map(drawOne));
  at('earlier').hidden = earlier.length === 0;
  at('earlier-count').textContent = earlier.length;
  at('receipts').replaceChildren(...earlier.map(drawOne));
  if (focusedKey !== undefined) (shown.get(focusedKey)?.querySelector('button') ?? at('mine-title')).focus();
  watchHolds();
}

// The times that run down.
export function watchHolds() {
  for (const one of mine.filter(({ phase }) => phase === 'held')) {
    const left = Date.parse(one.expiresAt) - now();
    if (left <= 0 && !awaited.has(one.key)) return end(one, 'over', `The time to buy ${spoken(one)} is over.`);
    const isSoon = left <= SOON_S * 1000;
    if (isSoon && !one.wasWarned) {
      one.wasWarned = true;
      say(`${SOON_S} seconds left to buy ${spoken(one)}.`);
    }
    const element = shown.get(one.key);
    element.classList.toggle('soon', isSoon);
    write(element.querySelector('.left'), `${duration(left)} left to buy`);
  }
  return undefined;
}

// Shows what is stored, and sends the requests again whose answers a closed page has missed.
export function resume() {
  load();
  drawMine();
  for (const one of [...mine]) {
    if (one.phase === 'asking') finishReserving(one);
    if (one.phase === 'buying' || one.phase === 'unknown') buy(one);
  }
}
