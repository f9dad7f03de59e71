import { describe, expect, it } from 'vitest';

import { formatAgo, formatBytes, formatMs, shortId } from './format';

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
