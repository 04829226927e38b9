// The elements of the page, and what it says to the buyer.

const MESSAGE_MS = 15000;
const NEUTRAL_PICTURE = '/shop/product.svg';

export const at = (id) => document.getElementById(id);

export function make(kind, fields = {}, ...children) {
  const element = Object.assign(document.createElement(kind), fields);
  element.append(...children);
  return element;
}

export function button(text, label, className, act) {
  const element = make('button', { type: 'button', textContent: text, className });
  element.setAttribute('aria-label', label);
  element.addEventListener('click', act);
  return element;
}

// The image of a product, or a neutral picture if there is none or it cannot be loaded.
export function picture(address, size) {
  const image = make('img', { alt: '', width: size, height: size, loading: 'lazy' });
  image.addEventListener('error', () => { image.src = NEUTRAL_PICTURE; }, { once: true });
  image.src = address ?? NEUTRAL_PICTURE;
  return image;
}

export function bar() {
  const element = make('div', { className: 'bar' }, make('span', { className: 'sold' }), make('span', { className: 'held' }));
  element.setAttribute('aria-hidden', 'true');
  return element;
}

export function fill(element, { sold, reserved, items_total: total }) {
  const [soldPart, heldPart] = element.children;
  soldPart.style.width = `${(100 * sold) / total}%`;
  heldPart.style.width = `${(100 * reserved) / total}%`;
}

// Changes a text only if it is another one, so that nothing is drawn or read aloud again.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Shows these elements in this order. Those that stay keep the focus.
export function arrange(list, elements) {
  const isSame = elements.length === list.children.length && elements.every((one, place) => list.children[place] === one);
  if (isSame) return;
  const focused = document.activeElement;
  list.replaceChildren(...elements);
  if (list.contains(focused)) focused.focus();
}

let silence = null;

// `more` are elements after the text, such as a link.
export function say(text, ...more) {
  at('message').replaceChildren(text, ...more);
  clearTimeout(silence);
  silence = setTimeout(() => { at('message').textContent = ''; }, MESSAGE_MS);
}
