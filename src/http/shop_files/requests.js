// Requests to the shop, and the clock of the shop by its answers.

import { say } from './elements.js';
import { isPassing, waiting } from './words.js';

const ANSWER_TIMEOUT_MS = 15000;
const TRIES = 20;
const WAIT_MAX_S = 10;

let clockSkewMs = 0;

export const now = () => Date.now() + clockSkewMs;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export async function ask(method, target, key) {
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
export async function decide(method, target, key) {
  for (let attempt = 1; ; attempt += 1) {
    const answer = await ask(method, target, key);
    if (!isPassing(answer) || attempt === TRIES) return answer;
    say(waiting(answer));
    await pause(1000 * Math.min(answer.seconds * attempt, WAIT_MAX_S) * (0.75 + Math.random() / 2));
  }
}

// Returns a function that lets `act` run soon: at most once in `everyMs`, not at the same moment as in other browsers, and
// only while somebody looks.
export function rarely(everyMs, act) {
  let isDue = false;
  let lastMs = -Infinity;
  return () => {
    if (isDue || document.hidden) return;
    isDue = true;
    const waitMs = Math.max(everyMs * Math.random(), lastMs + everyMs - performance.now());
    setTimeout(() => {
      isDue = false;
      lastMs = performance.now();
      act();
    }, waitMs);
  };
}
