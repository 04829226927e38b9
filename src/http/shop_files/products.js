// The products of the chosen sale of a plan, with their numbers, and the units of one that has names for them.

import { arrange, at, bar, button, fill, make, picture, write } from './elements.js';
import { reserve } from './holds.js';
import { ItemList, Pages, REFRESH_MS } from './items.js';
import { ask, rarely } from './requests.js';
import { canReserve, isPlanned, nameOf, refreshSales, sale } from './sales.js';
import { number } from './words.js';

const PAGE_PRODUCTS = 24;
const PAGE_UNITS = 48;

const cards = new Map();
// The product whose units are shown: its id, its panel and its list.
let opened = null;

const nav = { before: at('products-before'), label: at('products-page'), after: at('products-after') };
const pages = new Pages(nav, PAGE_PRODUCTS, () => { closeUnits(); load(); });

function wanted(product, more) {
  const { sale_id: saleId } = sale();
  const { name, image, price, product_id: id } = product;
  const parameters = `&sale_id=${saleId}${more ?? `&product_id=${encodeURIComponent(id)}`}`;
  return { parameters, name, price, product: id, image: image ?? null, saleId, saleName: nameOf(sale()) };
}

// --- units ---

function drawUnit(product, item, state) {
  const text = make('span', { className: 'name', textContent: item.unit });
  const take = button('', `Reserve ${product.name}, ${item.unit}`, '', () => reserve(wanted(product, `&item_id=${item.item_id}`)));
  take.append(text, state);
  return make('li', { className: 'unit' }, take);
}

function openUnits(product) {
  const before = button('Previous', `Previous units of ${product.name}`, '', () => {});
  const after = button('Next', `Next units of ${product.name}`, '', () => {});
  const label = make('span', { className: 'quiet' });
  const title = make('h3', { textContent: `Choose: ${product.name}`, tabIndex: -1 });
  const close = button('Close', `Close the units of ${product.name}`, '', () => { closeUnits(); focusChoice(product.product_id); });
  const turning = make('nav', { ariaLabel: `Pages of ${product.name}` }, before, label, after);
  const heading = make('div', { className: 'row' }, title, close);
  const list = make('ul', { className: 'units' });
  const panel = make('li', { className: 'choosing' }, heading, turning, list);
  const query = `sale_id=${sale().sale_id}&product_id=${encodeURIComponent(product.product_id)}&`;
  const draw = (item, state) => drawUnit(product, item, state);
  const items = new ItemList({ list, nav: { before, label, after }, size: PAGE_UNITS, query: () => query, draw });
  opened = { id: product.product_id, panel, items };
  items.begin();
  place();
  title.focus();
}

function closeUnits() {
  opened = null;
  place();
}

const focusChoice = (id) => cards.get(id)?.querySelector('.choose')?.focus();

function toggleUnits(product) {
  if (opened?.id === product.product_id) closeUnits();
  else openUnits(product);
}

// --- products ---

function makeCard(product) {
  const reserveIt = button('Reserve', `Reserve ${product.name}`, 'first', () => reserve(wanted(cards.get(product.product_id).product)));
  const offers = make('div', { className: 'actions' }, reserveIt);
  if (product.units_named) {
    offers.append(button('Choose…', `Choose a unit of ${product.name}`, 'choose', () => toggleUnits(product)));
  }
  const numbers = make('p', { className: 'state' });
  const text = make('div', { className: 'text' }, make('h3'), make('p', { className: 'price' }), bar(), numbers);
  return make('li', { className: 'product' }, picture(product.image, 240), text, offers);
}

function stateOf({ available, sold, items_total: total }) {
  if (sold === total) return 'Sold out';
  return available === 0 ? 'All in somebody\'s hands' : `${number(available)} of ${number(total)} left`;
}

function draw(product) {
  const card = cards.get(product.product_id) ?? makeCard(product);
  cards.set(product.product_id, card);
  card.product = product;
  write(card.querySelector('h3'), product.name);
  write(card.querySelector('.price'), product.price ?? '');
  write(card.querySelector('.state'), stateOf(product));
  fill(card.querySelector('.bar'), product);
  card.classList.toggle('gone', product.sold === product.items_total);
  return card;
}

let listed = [];

// The units of a product follow its card.
function place() {
  const shown = listed.flatMap((card) => (card.product.product_id === opened?.id ? [card, opened.panel] : [card]));
  for (const card of listed) card.querySelector('.choose')?.setAttribute('aria-expanded', shown[shown.indexOf(card) + 1] === opened?.panel);
  arrange(at('products'), shown);
}

async function load() {
  const { offset } = pages;
  const saleId = sale()?.sale_id;
  if (saleId === undefined) return;
  const { status, body } = await ask('GET', `/products?sale_id=${saleId}&offset=${offset}&limit=${PAGE_PRODUCTS}`);
  if (saleId !== sale()?.sale_id || offset !== pages.offset) return;
  // The sale has left the plan, or its numbers are those of a later one.
  if (status !== 200) {
    refreshSales();
    return;
  }
  listed = body.products.map(draw);
  place();
  pages.show(body.products_total);
  allowProducts();
}

const refresh = rarely(REFRESH_MS, load);

export function beginProducts() {
  pages.offset = 0;
  opened = null;
  listed = [];
  cards.clear();
  at('products').replaceChildren();
  load();
}

export function refreshProducts() {
  if (!isPlanned() || sale() === null) return;
  refresh();
  opened?.items.refresh();
}

// Lets the buyer reserve what is left, while the sale is open.
export function allowProducts() {
  for (const card of cards.values()) {
    card.querySelector('.first').disabled = card.product.available === 0 || !canReserve(sale());
  }
  opened?.items.allow();
}
