// The shop: shows the sales, and buys by the public API only. With a plan, a sale has products. Without one, it has items
// with generated names.

import { at, button, make, picture } from './shop/elements.js';
import { reserve, resume, watchHolds } from './shop/holds.js';
import { ItemList } from './shop/items.js';
import { allowProducts, beginProducts, refreshProducts } from './shop/products.js';
import { canReserve, changes, follow, isPlanned, sale, watchClock } from './shop/sales.js';

const PAGE_ITEMS = 24;
const TICK_MS = 250;

function drawItem(item, state) {
  const address = `${item.image}?sale=${sale().sale_id}`;
  const take = button('Reserve', `Reserve ${item.name}`, '', () => reserve({ parameters: `&item_id=${item.item_id}`, name: item.name }));
  return make('li', { className: 'item' }, picture(address, 150), make('h3', { textContent: item.name }), state, take);
}

const nav = { before: at('before'), label: at('page'), after: at('after') };
const items = new ItemList({ list: at('items'), nav, size: PAGE_ITEMS, query: () => '', draw: drawItem });

function begin() {
  const isPlan = isPlanned();
  at('any').hidden = isPlan;
  at('all').hidden = isPlan;
  at('goods').hidden = !isPlan;
  at('skip').href = isPlan ? '#goods-title' : '#items-title';
  if (isPlan) beginProducts();
  else items.begin();
}

function refresh() {
  if (isPlanned()) refreshProducts();
  else if (sale() !== null) items.refresh();
}

// Lets the buyer reserve what can be reserved now.
function allow() {
  at('any').disabled = !canReserve(sale());
  if (isPlanned()) allowProducts();
  else items.allow();
}

at('any').addEventListener('click', () => reserve({ parameters: '', name: 'Any item' }));
changes.addEventListener('chosen', begin);
changes.addEventListener('stock', refresh);
changes.addEventListener('drawn', allow);
document.addEventListener('visibilitychange', refresh);
resume();
follow();
setInterval(() => { watchHolds(); watchClock(); }, TICK_MS);
