import { expect, it } from 'vitest';

import { dayAfter, daysAgo, isDay, startOf } from './days';

it('days are those of UTC, over the ends of months and years', () => {
  const newYear = Date.parse('2026-01-01T00:30:00Z');

  expect([daysAgo(0, newYear), daysAgo(1, newYear)]).toEqual(['2026-01-01', '2025-12-31']);
  expect(dayAfter('2026-02-28')).toBe('2026-03-01');
  expect(startOf('2026-03-01')).toBe('2026-03-01T00:00:00Z');
});

it.each(['', 'x', '2026-1-1', '2026-02-29', '2026-13-01', '2026-01-01T00:00:00Z', '+010000-01-01'])('no day is %j', (text) => {
  expect(isDay(text)).toBe(false);
});

it('a leap day is one', () => {
  expect(isDay('2028-02-29')).toBe(true);
});
