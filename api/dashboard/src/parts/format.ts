/** Figures as people read them, in the language of the browser. */
const count = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat(undefined, { notation: 'compact', maximumFractionDigits: 1 });
const bytes = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

export function formatCount(value: number): string {
  return value < 100_000 ? count.format(value) : compact.format(value);
}

/** Less than this is still more than nothing. */
const LEAST_USD = 0.00001;

/** Dollars, with as many digits as a small cost needs. */
export function formatCost(usd: number): string {
  if (usd > 0 && usd < LEAST_USD) return `< ${formatCost(LEAST_USD)}`;
  const digits = usd === 0 || usd >= 1 ? 2 : usd >= 0.01 ? 3 : 5;
  return new Intl.NumberFormat(undefined, {
    style: 'currency',
    currency: 'USD',
    currencyDisplay: 'narrowSymbol',
    minimumFractionDigits: 2,
    maximumFractionDigits: digits,
  }).format(usd);
}

export function formatMs(ms: number | null | undefined): string {
  if (ms == null) return '–';
  if (ms < 1_000) return `${count.format(ms)} ms`;
  const secs = ms / 1_000;
  if (secs < 60) return `${secs.toFixed(secs < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(secs / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(secs % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}

export function formatBytes(size: number): string {
  let value = size;
  let unit = 0;
  while (value >= 1024 && unit < bytes.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : count.format(value)} ${bytes[unit] ?? ''}`;
}

const UNITS: [Intl.RelativeTimeFormatUnit, number][] = [
  ['day', 86_400],
  ['hour', 3_600],
  ['minute', 60],
  ['second', 1],
];
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: 'auto', style: 'short' });

export function formatAgo(at: string, now: number): string {
  const secs = Math.round((Date.parse(at) - now) / 1_000);
  const [unit, size] = UNITS.find(([, size]) => Math.abs(secs) >= size) ?? ['second', 1];
  return relative.format(Math.trunc(secs / size), unit);
}

const whole = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeZone: 'UTC' });

export function formatTime(at: string): string {
  return whole.format(new Date(at));
}

/** A UTC day, such as `2026-01-31`. */
export function formatDay(date: string): string {
  return day.format(new Date(`${date}T00:00:00Z`));
}

/** An id as far as people tell it from others. */
export function shortId(id: string): string {
  return id.replace(/^([a-z]+)_[0-9a-f]{24}([0-9a-f]{8})$/, '$1_…$2');
}
