import { describe, expect, it } from 'vitest';

import { formatAgo, formatBytes, formatCost, formatCount, formatDay, formatMs, formatTime, shortId } from './format';

describe('figures', () => {
  it.each([
    [null, '–'],
    [0, '0 ms'],
    [999, '999 ms'],
    [1_500, '1.5 s'],
    [59_000, '59 s'],
    [61_000, '1 min 1 s'],
    [3_660_000, '1 h 1 min'],
    [200_000_000, '2 days'],
  ])('tell that %s ms are %s', (ms, text) => expect(formatMs(ms)).toBe(text));

  it.each([
    [0, '0 B'],
    [1023, '1,023 B'],
    [1536, '1.5 KiB'],
    [20 * 1024 ** 2, '20 MiB'],
  ])('tell that %s bytes are %s', (bytes, text) => expect(formatBytes(bytes)).toBe(text));

  it.each([
    [0, '$0.00'],
    [0.000000001, '< $0.00001'],
    [0.00001, '$0.00001'],
    [0.009876, '$0.00988'],
    [0.01234, '$0.012'],
    [0.5, '$0.50'],
    [1.239, '$1.24'],
    [1234.5, '$1,234.50'],
  ])('tell that %s dollars are %s', (usd, text) => expect(formatCost(usd)).toBe(text));

  it.each([
    [0, '0'],
    [99_999, '99,999'],
    [100_000, '100K'],
    [1_250_000, '1.3M'],
  ])('tell that %s things are %s', (count, text) => expect(formatCount(count)).toBe(text));

  it('tell a day of UTC, wherever one is', () => {
    expect(formatDay('2026-01-31')).toBe('Jan 31, 2026');
  });

  it('tell a time of where one is, to the second', () => {
    expect(formatTime(new Date(2026, 0, 31, 15, 4, 5).toISOString())).toMatch(/^Jan 31, 2026, 3:04:05\sPM$/);
  });

  it('tell how long ago something was in the largest unit that fits', () => {
    const now = Date.parse('2026-01-31T12:00:00Z');

    expect(formatAgo('2026-01-31T11:58:30Z', now)).toBe('1 min. ago');
    expect(formatAgo('2026-01-29T11:00:00Z', now)).toBe('2 days ago');
    expect(formatAgo('2026-01-31T12:00:00Z', now)).toBe('now');
  });

  it('shorten an id, and nothing that only looks like one', () => {
    expect(shortId('job_01a21639526271b787637fd63a50e562')).toBe('job_…3a50e562');
    expect(shortId('ada_lovelace@example.com')).toBe('ada_lovelace@example.com');
  });
});
