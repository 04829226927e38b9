// Lists of items with their states, page by page: all items of a sale without a plan, or the units of a product.

import { arrange, make } from './elements.js';
import { ask, rarely } from './requests.js';
import { canReserve, sale } from './sales.js';
import { number } from './words.js';

export const REFRESH_MS = 3000;

const STATES = { available: 'Available', reserved: 'In somebody\'s hands', sold: 'Sold' };

// The buttons and the words that turn the pages of a list.
export class Pages {
  offset = 0;

  constructor({ before, label, after }, size, load) {
    Object.assign(this, { before, label, after, size });
    before.addEventListener('click', () => this.turn(-size, load));
    after.addEventListener('click', () => this.turn(size, load));
  }

  turn(by, load) {
    this.offset = Math.max(0, this.offset + by);
    load();
  }

  show(total) {
    const end = Math.min(this.offset + this.size, total);
    this.label.textContent = `${Math.min(this.offset + 1, total)}–${end} of ${number(total)}`;
    this.before.disabled = this.offset === 0;
    this.after.disabled = end >= total;
    this.before.parentElement.hidden = this.offset === 0 && end >= total;
  }
}

// `query` returns the parameters that name the items, and `draw` makes the element of an item, with a button.
export class ItemList {
  elements = new Map();

  constructor({ list, nav, size, query, draw }) {
    Object.assign(this, { list, query, draw, pages: new Pages(nav, size, () => this.load()) });
    this.refresh = rarely(REFRESH_MS, () => this.load());
  }

  begin() {
    this.pages.offset = 0;
    this.elements.clear();
    this.list.replaceChildren();
    this.load();
  }

  async load() {
    const { pages, elements } = this;
    const target = `/items?${this.query()}offset=${pages.offset}&limit=${pages.size}`;
    const { status, body } = await ask('GET', target);
    const isCurrent = target === `/items?${this.query()}offset=${pages.offset}&limit=${pages.size}`;
    if (status !== 200 || !isCurrent || body.sale_id !== sale()?.sale_id) return;
    const shown = body.items.map((item) => this.show(item));
    // Elements of other pages are forgotten.
    for (const [id, element] of elements) if (!shown.includes(element)) elements.delete(id);
    arrange(this.list, shown);
    this.allow();
    pages.show(body.items_total);
  }

  show(item) {
    const element = this.elements.get(item.item_id) ?? this.draw(item, make('p', { className: 'state' }));
    this.elements.set(item.item_id, element);
    element.querySelector('.state').textContent = STATES[item.state];
    element.classList.toggle('gone', item.state === 'sold');
    element.dataset.state = item.state;
    return element;
  }

  // Lets the buyer reserve the items that are free, while the sale is open.
  allow() {
    for (const element of this.elements.values()) {
      element.querySelector('button').disabled = element.dataset.state !== 'available' || !canReserve(sale());
    }
  }
}
