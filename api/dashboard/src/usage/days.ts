const DAY_MS = 86_400_000;

/** The UTC day so many days before today, such as `2026-01-31`. */
export function daysAgo(days: number, now = Date.now()): string {
  return dayOf(now - days * DAY_MS);
}

export function dayAfter(day: string): string {
  return dayOf(Date.parse(startOf(day)) + DAY_MS);
}

/** Whether it is such a day, and one that the calendar has. */
export function isDay(text: string): boolean {
  const time = Date.parse(startOf(text));
  return !Number.isNaN(time) && dayOf(time) === text;
}

export function startOf(day: string): string {
  return `${day}T00:00:00Z`;
}

function dayOf(time: number): string {
  return new Date(time).toISOString().slice(0, 10);
}
