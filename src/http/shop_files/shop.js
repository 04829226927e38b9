// The shop: shows the sale, and buys by the public API only. What the buyer has is kept in the browser together with the
// keys of the requests, so that a lost answer or a reload costs nothing: the same request is sent again.

const PAGE_ITEMS = 24;
const ITEMS_REFRESH_MS = 3000;
const ANSWER_TIMEOUT_MS = 15000;
const TRIES = 20;
const SOON_S = 10;

const at = (id) => document.getElementById(id);
const storage = {
  read(name, otherwise) {
    try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
  },
  write(name, value) {
    try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* The page works without it until it is closed. */ }
  },
};

function newBuyer() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high % 2 ** 20) * 2 ** 32 + low;
}

const buyer = storage.read('buyer', null) ?? newBuyer();
storage.write('buyer', buyer);
at('buyer').textContent = buyer;

let sale = null;
let offset = 0;
let clockSkewMs = 0;
let isExtendable = true;
let mine = storage.read('mine', []);
const pages = new Map();

// --- words ---

const REFUSALS = {
  'item-sold': () => 'This item is sold. Choose another one.',
  'item-reserved': () => 'Somebody else is buying this item. It comes back if they do not. Choose another one.',
  'user-limit': () => `You have ${sale?.user_limit ?? 'all'} items, the most that one buyer can have in this sale.`,
  'sold-out': () => 'Everything is sold.',
  'all-reserved': (seconds) => `Every item is in somebody's hands. Some may come back: try again in ${seconds} s.`,
  'not-open': () => 'No sale is open now.',
  'code-expired': () => 'The time to buy this item is over.',
  'code-unknown': () => 'The time to buy this item is over.',
  'code-used': () => 'This item is bought already.',
  'sale-ended': () => 'The sale of this item is over.',
  'not-extendable': () => 'There is no more time for this item.',
};
const refusal = ({ type, seconds }) => REFUSALS[type]?.(seconds) ?? 'The shop refused this. Reload the page.';

function say(text) { at('message').textContent = text; }

function duration(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const two = (number) => String(number).padStart(2, '0');
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

// --- requests ---

const now = () => Date.now() + clockSkewMs;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function ask(method, target, key) {
  const headers = { Accept: 'application/json', ...(key && { 'Idempotency-Key': key }) };
  try {
    const answer = await fetch(target, { method, headers, signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) });
    const date = Date.parse(answer.headers.get('Date'));
    // The header has whole seconds.
    if (Math.abs(date + 500 - now()) > 1000) clockSkewMs = date + 500 - Date.now();
    const body = answer.status === 204 ? {} : await answer.json();
    const seconds = Number(answer.headers.get('Retry-After')) || 1;
    return { status: answer.status, body, seconds, type: (body.type ?? '').split('/').pop() };
  } catch {
    return { status: 0, body: {}, seconds: 1, type: 'unreachable' };
  }
}

// Repeats a request until the shop has decided. With the same key, it takes effect once.
async function decide(method, target, key) {
  for (let attempt = 1; ; attempt += 1) {
    const answer = await ask(method, target, key);
    if ((answer.status !== 503 && answer.status !== 0) || attempt === TRIES) return answer;
    say('The shop is busy. Trying again…');
    await pause(1000 * Math.min(answer.seconds * attempt, 10) * (0.75 + Math.random() / 2));
  }
}

// --- what the buyer has ---

function keep() { storage.write('mine', mine.filter((one) => one.phase !== 'over')); }

async function reserve(itemId) {
  const one = { key: crypto.randomUUID?.() ?? `${buyer}-${now()}-${Math.random()}`, wanted: itemId, phase: 'asking' };
  mine.unshift(one);
  keep();
  await finishReserving(one);
}

async function finishReserving(one) {
  drawMine();
  const item = one.wanted === null ? '' : `&item_id=${one.wanted}`;
  const answer = await decide('POST', `/checkout?user_id=${buyer}${item}`, one.key);
  if (answer.status === 200) {
    const { code, sale_id: saleId, item_id: itemId, expires_at: expiresAt } = answer.body;
    Object.assign(one, { code, saleId, itemId, expiresAt, phase: 'held', image: `/items/${itemId}/image.svg?sale=${saleId}` });
    const known = await ask('GET', `/items/${itemId}`);
    one.name = known.body.sale_id === saleId ? known.body.name : `Item ${itemId}`;
    say(`${one.name} is yours for ${duration(Date.parse(expiresAt) - now())}. Buy it now.`);
  } else {
    one.phase = 'over';
    say(answer.status === 0 || answer.status === 503 ? 'The shop does not answer. Try again later.' : refusal(answer));
  }
  keep();
  drawMine();
  refreshItems();
}

async function buy(one) {
  one.phase = 'buying';
  keep();
  drawMine();
  const answer = await decide('POST', `/purchase?code=${one.code}`, one.key);
  if (answer.status === 200) {
    one.phase = 'bought';
    one.name = answer.body.item_name;
    say(`You have bought ${one.name}.`);
  } else if (answer.status === 409) {
    one.phase = answer.type === 'code-used' ? 'bought' : 'over';
    say(refusal(answer));
  } else {
    // Unknown: the same request can be sent again.
    one.phase = 'held';
    say('The shop does not answer. Buy again: you pay once.');
  }
  keep();
  drawMine();
  refreshItems();
}

async function extend(one) {
  const answer = await decide('POST', `/checkout/extend?code=${one.code}`);
  if (answer.status === 200) {
    one.expiresAt = answer.body.expires_at;
    one.isExtended = true;
    say(`You have ${duration(Date.parse(one.expiresAt) - now())} to buy ${one.name}.`);
  } else {
    if (answer.type === 'not-extendable') isExtendable = false;
    say(refusal(answer));
  }
  keep();
  drawMine();
}

async function release(one) {
  const answer = await decide('DELETE', `/checkout?code=${one.code}`);
  if (answer.status === 204 || answer.status === 409) one.phase = answer.type === 'code-used' ? 'bought' : 'over';
  say(answer.status === 204 ? `You have given back ${one.name}.` : refusal(answer));
  keep();
  drawMine();
  refreshItems();
}

// --- drawing ---

function make(kind, fields = {}, ...children) {
  const { className, ...others } = fields;
  const element = Object.assign(document.createElement(kind), others);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function button(text, label, isFirst, act) {
  const element = make('button', { type: 'button', textContent: text, className: isFirst ? 'first' : '' });
  element.setAttribute('aria-label', label);
  element.addEventListener('click', act);
  return element;
}

function actions(one) {
  if (one.phase !== 'held') return [];
  const offers = [button('Buy', `Buy ${one.name}`, true, () => buy(one))];
  if (isExtendable && !one.isExtended) offers.push(button('More time', `More time for ${one.name}`, false, () => extend(one)));
  offers.push(button('Give back', `Give back ${one.name}`, false, () => release(one)));
  return offers;
}

// The elements of what the buyer has, by key.
const shown = new Map();
const PHASES = { asking: 'Reserving…', buying: 'Buying…', bought: 'Bought', held: '' };

function drawMine() {
  mine = mine.filter((one) => one.phase !== 'over');
  shown.clear();
  const hadFocus = document.activeElement?.closest?.('.hold') !== null;
  at('mine-empty').hidden = mine.length > 0;
  at('holds').replaceChildren(...mine.map((one) => {
    const name = one.name ?? (one.wanted === null ? 'Any item' : `Item ${one.wanted}`);
    const picture = make('img', { alt: '', width: 64, height: 64, src: one.image ?? '/shop.svg' });
    const code = one.phase === 'bought' ? [make('p', { className: 'code quiet', textContent: `Receipt ${one.code}` })] : [];
    const left = make('p', { className: 'left', textContent: PHASES[one.phase] });
    const text = make('div', {}, make('h3', { textContent: name }), left, ...code);
    const element = make('li', { className: `hold ${one.phase}` }, picture, text, make('div', { className: 'actions' }, ...actions(one)));
    shown.set(one.key, element);
    return element;
  }));
  if (hadFocus && document.activeElement === document.body) at('holds').querySelector('button')?.focus();
  tick();
}

// Once a second: the times that run down.
function tick() {
  for (const one of mine.filter(({ phase }) => phase === 'held')) {
    const left = Date.parse(one.expiresAt) - now();
    if (left <= 0) {
      one.phase = 'over';
      say(`The time to buy ${one.name} is over.`);
      keep();
      return drawMine();
    }
    const isSoon = left <= SOON_S * 1000;
    if (isSoon && !one.wasWarned) {
      one.wasWarned = true;
      say(`${SOON_S} seconds left to buy ${one.name}.`);
    }
    const element = shown.get(one.key);
    element.classList.toggle('soon', isSoon);
    element.querySelector('.left').textContent = `${duration(left)} left to buy`;
  }
  if (sale === null) return undefined;
  at('clock').textContent = clock();
  at('any').disabled = !canReserve();
  for (const element of pages.values()) allow(element);
  return undefined;
}

// Without a plan, the sale has no phase: it is open until the next one begins.
const hasOpened = () => sale.phase === undefined || now() >= Date.parse(sale.starts_at);
const isOver = () => sale.phase !== undefined && now() >= Date.parse(sale.ends_at);
const canReserve = () => hasOpened() && !isOver() && sale.sold < sale.items_total;

function clock() {
  if (!hasOpened()) return `The sale opens in ${duration(Date.parse(sale.starts_at) - now())}`;
  const left = duration(Date.parse(sale.ends_at) - now());
  const isSoldOut = sale.sold === sale.items_total;
  if (isOver()) return 'The sale has closed';
  if (isSoldOut) return sale.phase === undefined ? `The next sale opens in ${left}` : 'Everything is sold';
  return `This sale ends in ${left}`;
}

function drawSale() {
  const { items_total: total, sold, reserved, available } = sale;
  const number = (value) => value.toLocaleString('en');
  at('available').textContent = sold === total ? 'Sold out' : number(available);
  at('of-total').textContent = sold === total ? '' : `of ${number(total)} available`;
  at('counts').textContent = `${number(sold)} sold · ${number(reserved)} in somebody's hands`;
  at('bar-sold').style.width = `${(100 * sold) / total}%`;
  at('bar-reserved').style.width = `${(100 * reserved) / total}%`;
  tick();
}

const STATES = { available: 'Available', reserved: 'In somebody\'s hands', sold: 'Sold' };

// Lets the buyer reserve an item that is free, while the sale is open.
function allow(element) {
  element.querySelector('button').disabled = element.dataset.state !== 'available' || !canReserve();
}

function drawItem(item) {
  let element = pages.get(item.item_id);
  if (element === undefined) {
    const reserveIt = button('Reserve', `Reserve ${item.name}`, false, () => reserve(item.item_id));
    const picture = make('img', { alt: '', src: `${item.image}?sale=${sale.sale_id}`, loading: 'lazy', width: 150, height: 150 });
    element = make('li', { className: 'item' }, picture, make('h3', { textContent: item.name }), make('p', { className: 'state' }), reserveIt);
    pages.set(item.item_id, element);
  }
  element.querySelector('.state').textContent = STATES[item.state];
  element.classList.toggle('gone', item.state === 'sold');
  element.dataset.state = item.state;
  allow(element);
  return element;
}

async function drawPage() {
  const answer = await ask('GET', `/items?offset=${offset}&limit=${PAGE_ITEMS}`);
  if (answer.status !== 200 || answer.body.offset !== offset || sale === null) return;
  const { items, items_total: total } = answer.body;
  const elements = items.map(drawItem);
  const isSame = elements.length === at('items').children.length && elements.every((one, place) => at('items').children[place] === one);
  if (!isSame) at('items').replaceChildren(...elements);
  at('page').textContent = `${Math.min(offset + 1, total)}–${Math.min(offset + PAGE_ITEMS, total)} of ${total.toLocaleString('en')}`;
  at('before').disabled = offset === 0;
  at('after').disabled = offset + PAGE_ITEMS >= total;
}

// At most once in ITEMS_REFRESH_MS, and only while somebody looks.
let nextRefresh = null;
function refreshItems() {
  if (nextRefresh !== null || document.hidden) return;
  nextRefresh = setTimeout(() => { nextRefresh = null; drawPage(); }, ITEMS_REFRESH_MS * Math.random());
}

function turn(by) {
  offset = Math.max(0, offset + by);
  pages.clear();
  drawPage();
}

// --- live numbers ---

function begin(next) {
  const isOther = sale?.sale_id !== next.sale_id;
  sale = next;
  drawSale();
  if (isOther) {
    offset = 0;
    pages.clear();
    at('items').replaceChildren();
    drawPage();
  }
}

function follow() {
  const events = new EventSource('/events');
  events.addEventListener('sale', ({ data }) => begin(JSON.parse(data)));
  events.addEventListener('stock', ({ data }) => {
    const stock = JSON.parse(data);
    if (stock.sale_id !== sale?.sale_id) return;
    sale = { ...sale, ...stock };
    drawSale();
    refreshItems();
  });
  // The browser connects again by itself, except after an answer that is no stream.
  events.addEventListener('error', async () => {
    if (events.readyState !== EventSource.CLOSED) return;
    const answer = await ask('GET', '/sale');
    if (answer.status === 200) begin(answer.body);
    else at('clock').textContent = 'The shop is not open yet. It is tried again.';
    setTimeout(follow, 2000 + 3000 * Math.random());
  });
}

at('any').addEventListener('click', () => reserve(null));
at('before').addEventListener('click', () => turn(-PAGE_ITEMS));
at('after').addEventListener('click', () => turn(PAGE_ITEMS));
document.addEventListener('visibilitychange', refreshItems);
drawMine();
// Requests whose answers a closed page has missed.
for (const one of mine) {
  if (one.phase === 'asking') finishReserving(one);
  if (one.phase === 'buying') buy(one);
}
follow();
setInterval(tick, 250);
