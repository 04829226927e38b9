// What the page says: numbers, times, and what to do after each refusal of the API.

const MINUTE_S = 60;
const HOUR_S = 60 * MINUTE_S;
const DAY_S = 24 * HOUR_S;
// Up to this many seconds, the opening of a sale is waited for with the request.
const MOMENT_S = 3;

export const number = (value) => value.toLocaleString('en');

const DATE = new Intl.DateTimeFormat('en', { weekday: 'short', day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
export const date = (time) => DATE.format(Date.parse(time));

const count = (value, unit) => `${value} ${unit}${value === 1 ? '' : 's'}`;

export function duration(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const [d, h, m, s] = [seconds / DAY_S, (seconds / HOUR_S) % 24, (seconds / MINUTE_S) % 60, seconds % 60].map(Math.floor);
  const two = (part) => String(part).padStart(2, '0');
  if (d > 0) return h === 0 ? count(d, 'day') : `${count(d, 'day')} ${h} h`;
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

// Refusals that pass: the same request is sent again.
const PASSING = {
  'not-ready': 'The shop is starting or stopping.',
  'standby': 'Another server of the shop is taking over.',
  'overdue': 'The shop has not decided in time.',
  'too-many-connections': 'The shop is full.',
  'too-many-requests': 'Too many requests come from your network.',
  'request-timeout': 'Your connection is slow.',
  'unreachable': 'The shop does not answer.',
};

// The others. `product` is a product's name, `code` that of a hold.
const FINAL = {
  'item-sold': () => 'This item is sold. Choose another one.',
  'item-reserved': () => 'Somebody else is buying this item. It comes back if they do not. Choose another one.',
  'sold-out': ({ product }) => (product ? `${product} is sold out. Choose another one.` : 'Everything is sold. Wait for the next sale.'),
  'all-reserved': ({ product, seconds }) => `${product ? `All that is left of ${product} is` : 'Every item is'} in somebody's hands. Some may come back: try again in ${seconds} s.`,
  'user-limit': ({ limit }) => `You have ${count(limit ?? 'all', 'item')}, the most that one buyer can have in this sale. Give one back to take another one.`,
  'not-open': () => 'This sale is not open. Wait until its clock has run down.',
  'sale-ended': ({ code }) => (code ? `The sale is long over. If you have tried to buy, ask the shop about ${code}.` : 'This sale is over. Choose another one.'),
  'paused': () => 'The sale is paused. Buy what you hold, and wait here: the page shows when the sale goes on.',
  'log-full': ({ code }) => (code ? 'There is no more time. Buy before it is over.' : 'The shop takes no more reservations for now. Try again later.'),
  'not-extendable': () => 'There is no more time for this item. Buy it before its time is over.',
  'code-unknown': () => 'The time to buy this item is over. Reserve again.',
  'code-expired': () => 'The time to buy this item is over. Reserve again.',
  'code-used': () => 'This item is bought already. Its receipt is among your items.',
  'invalid-parameter': () => 'The shop has changed, and does not have this any more. Choose again.',
  'origin-not-allowed': () => 'This page may not buy here. Open the shop at its own address.',
};
// End of the refusals.

// Whether the request is worth sending again by itself.
export function isPassing({ status, type, seconds }) {
  if (type === 'not-open') return seconds <= MOMENT_S;
  return type in PASSING || (status === 503 && !(type in FINAL));
}

export const waiting = ({ type }) => `${type === 'not-open' ? 'The sale opens.' : PASSING[type] ?? 'The shop is busy.'} Trying again…`;

export function refusal({ type, seconds }, about) {
  if (type in PASSING) return `${PASSING[type]} Try again in a minute.`;
  return FINAL[type]?.({ ...about, seconds }) ?? 'The shop refused this. Reload the page.';
}
